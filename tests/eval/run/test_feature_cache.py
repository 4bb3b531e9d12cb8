"""Kept features are what the tower gives, bit for bit, and the tower runs once an image."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest
import torch
from PIL import Image

from llava import pruning
from llava.eval.run.feature_cache import FeatureCache, install, pixel_key, stand_in
from llava.eval.run.loading import KnownImage, LoadedQuestion, QuestionImages
from llava.eval.run.questions import QuestionFile
from llava.mm_utils import load_image_processor

from ... import tiny
from ...closeness import FLOAT32, assert_close
from ..benchmark_files import write_benchmark


@pytest.fixture
def model():
    return tiny.model(layers=2)


def prepare(cache: FeatureCache, images: torch.Tensor, probe: tuple[int, ...] = ()) -> None:
    cache.prepare(list(images), [pixel_key(image.numpy()) for image in images], probe)


def test_bitwise_what_the_tower_gives(model):
    images = tiny.pixels(0, 3)
    tower = model.get_vision_tower()
    with torch.inference_mode():
        full = tower(images, probe=(0, 1))
        cache = FeatureCache(tower, 1)
        for probe in ((), (1,), (), (1,), (0, 1), (0,)):
            prepare(cache, images, probe)
            found = cache(images, probe=probe)
            assert torch.equal(found.patches, full.patches)
            assert torch.equal(found.token, full.token)
            for layer in probe:
                assert torch.equal(found.probes[layer].query, full.probes[layer].query)
                assert torch.equal(found.probes[layer].keys, full.probes[layer].keys)
        # once, once more for each new layer, and never for what is known
        assert cache.encoded == 3 * 3
        with pytest.raises(KeyError, match="not prepared for layers"):
            cache(images, probe=(2,))


def test_an_image_is_encoded_once_wherever_it_stands(model):
    a, b, c = tiny.pixels(0, 3)
    tower = model.get_vision_tower()
    cache = FeatureCache(tower, 1)
    prepare(cache, torch.stack([a, b, a]))
    assert cache.encoded == 2
    prepare(cache, torch.stack([c, a]))
    assert cache.encoded == 3
    images = torch.stack([c, a])
    with torch.inference_mode():
        assert_close(cache(images).patches, tower(images).patches, FLOAT32)
    assert cache.encoded == 3


def test_views_of_a_tiled_picture_are_kept_together(model):
    tower = model.get_vision_tower()
    cache = FeatureCache(tower, 1)
    first, second = tiny.pixels(0, 3), tiny.pixels(1, 5)
    keys = [pixel_key(views.numpy()) for views in (first, second)]
    for order in ((0, 1), (1, 0)):
        images = [(first, second)[i] for i in order]
        cache.prepare(images, [keys[i] for i in order], (1,))
        with torch.inference_mode():
            found, full = (f(torch.cat(images), probe=(1,)) for f in (cache, tower))
        assert_close(found.patches, full.patches, FLOAT32)
        assert_close(found.probes[1].keys, full.probes[1].keys, FLOAT32)
    assert (cache.encoded, len(found.patches)) == (2, 8)


def test_images_that_were_not_prepared_go_through_the_tower(model):
    tower = model.get_vision_tower()
    cache = FeatureCache(tower, 1)
    known, other = tiny.pixels(0, 2), tiny.pixels(7, 2)
    prepare(cache, known)
    with torch.inference_mode():
        assert torch.equal(cache(other).patches, tower(other).patches)
        cache.prepare([], [])
        assert torch.equal(cache(known).patches, tower(known).patches)
    assert cache.encoded == 6


def test_the_oldest_go_first(model):
    images = tiny.pixels(0, 3)
    an_image = (16 + 1) * 32 * 4  # patches and the CLS token of 32 float32 each
    cache = FeatureCache(model.get_vision_tower(), 2.5 * an_image / 1e9)
    prepare(cache, images)
    assert (cache.encoded, cache.dropped) == (3, 1)
    prepare(cache, images[1:])
    assert cache.encoded == 3
    prepare(cache, images[:1])
    assert (cache.encoded, cache.dropped) == (4, 2)


def test_no_room_at_all_still_gives_features(model):
    images = tiny.pixels(0, 2)
    cache = FeatureCache(model.get_vision_tower(), 1e-9)
    prepare(cache, images)
    with torch.inference_mode():
        assert torch.equal(cache(images).patches, cache.tower(images).patches)
    assert (cache.encoded, cache.dropped) == (2, 2)


def test_the_model_answers_the_same_with_it(model):
    images, sizes = tiny.pixels(0, 2), [(56, 40), (30, 56)]
    ids, mask = tiny.batch([tiny.prompt(0), tiny.prompt(1, after=9)])
    autoprune = pruning.build("autoprune", target_token_num=9, preselect_ratio=1.5, x0=1)
    pruners = (pruning.build("none"), autoprune)

    def answers() -> list[torch.Tensor]:
        return [
            model.generate(
                ids, images=images, image_sizes=sizes, attention_mask=mask, pruner=pruner,
                max_new_tokens=5, do_sample=False,
            )
            for pruner in pruners
        ]  # fmt: skip

    before = answers()
    install(model, 1)
    cache = model.get_vision_tower()
    prepare(cache, images, (cache.run_layers - 1,))
    assert all(torch.equal(a, b) for a, b in zip(answers(), before, strict=True))
    assert cache.encoded == 2


def test_an_image_is_known_until_its_file_changes_or_its_features_go(tmp_path):
    write_benchmark(tmp_path, "alpha", 6)
    questions = QuestionFile(tmp_path / "alpha" / "questions.jsonl")
    model, processor = tiny.model(layers=2), load_image_processor("no such folder")
    processor.size, processor.crop_size = {"shortest_edge": 56}, {"height": 56, "width": 56}
    cache = FeatureCache(model.get_vision_tower(), 1)

    def load(known=None) -> list[LoadedQuestion]:
        folder = tmp_path / "alpha" / "images"
        images = QuestionImages(questions, array("Q", range(6)), folder, processor, None, known)
        assert images.all_known == all(
            isinstance(item.pixels[0], KnownImage) for item in list(images)
        )
        return list(images)

    items = load()
    for item in items:
        keys = [pixel_key(pixels) for pixels in item.pixels]
        cache.prepare([torch.from_numpy(pixels) for pixels in item.pixels], keys, (1,))
        cache.remember(item, keys)
    assert [item.pixels[0].shape for item in load(cache.known((1,)))] == [(3, 56, 56)] * 6
    assert [item.sizes for item in load(cache.known((1,)))] == [item.sizes for item in items]
    assert not cache.known((0, 1))  # a layer that nobody looked into
    Image.new("RGB", (9, 9)).save(tmp_path / "alpha" / "images" / "1.png")
    known = load(cache.known((1,)))
    assert [isinstance(item.pixels[0], KnownImage) for item in known] == [
        True, True, False, False, True, True
    ]  # fmt: skip
    stranger = replace(known[0], pixels=(replace(known[0].pixels[0], key=b"another"),))
    assert cache.lacks(stranger) and not any(map(cache.lacks, known))
    with pytest.raises(KeyError, match="not kept any more"):
        cache.prepare([stand_in(stranger.pixels[0], torch.zeros(()))], [b"another"])


def test_a_model_without_a_tower_gets_none(model):
    model.model.vision_tower = None
    install(model, 1)
    assert model.get_vision_tower() is None
