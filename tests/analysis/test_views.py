"""Where tokens are on a tiled picture: each shows the pixels that the tower got for it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from llava import pruning
from llava.analysis import keep, overlay, traced, views
from llava.anyres import NEWLINE
from llava.conversation import image_prompt
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.tiles import tilings
from llava.pruning.layout import Segment, TokenLayout

from .. import checkpoints_next, senna_files, tiny_next

QUESTION = "What is on the sign?"
#: Wider and higher than its canvas, of one tile's size, and an odd border.
SIZES = [(200, 100), (80, 100), (300, 90), (112, 112), (40, 20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoints_next.write_original(tmp_path_factory.mktemp("next"))


def loaded(folder, merge_type: str = "spatial_unpad", processing: str = "llava"):
    return load_pretrained_model(
        folder, dtype="float32", device="cpu", merge_type=merge_type, processing=processing
    )[:3]


@pytest.fixture(scope="module")
def tiles(folder):
    return loaded(folder)


@pytest.mark.parametrize("merge_type", ["spatial_unpad", "spatial", "flat"])
@pytest.mark.parametrize("processing", ["llava", "fill"])
def test_each_token_shows_the_pixels_that_the_tower_got(folder, merge_type, processing) -> None:
    _, model, image_processor = loaded(folder, merge_type, processing)
    mean, std = (
        np.array(getattr(image_processor, f"image_{name}"), np.float32) for name in ("mean", "std")
    )
    for size in SIZES:
        picture = tiny_next.picture(size)
        pixels = process_images([picture], image_processor, model.config)[0]
        tiling = tilings(model.config, 4, 56, [len(pixels)], [size])[0]
        order = tiling.order.tolist()
        shown: dict[int, np.ndarray] = {}
        for view in views.views(picture, image_processor, model):
            image = np.asarray(view.picture, np.float32)
            assert image.shape == (view.rows * 14, view.columns * 14, 3)
            for patch, token in enumerate(view.tokens):
                top, left = patch // view.columns * 14, patch % view.columns * 14
                assert token not in shown
                shown[token] = image[top : top + 14, left : left + 14]
            assert set(view.padding) == {
                token for token in view.tokens if tiling.border[order[token]]
            }
        assert set(shown) == {token for token, number in enumerate(order) if number != NEWLINE}
        for token, image in shown.items():
            tile, patch = divmod(order[token], 16)
            top, left = patch // 4 * 14, patch % 4 * 14
            got = pixels[tile, :, top : top + 14, left : left + 14].permute(1, 2, 0).numpy()
            assert np.abs((got * std + mean) * 255 - image).max() < 0.01


def test_a_tiled_answer_is_drawn_over_both_views(tiles) -> None:
    tokenizer, model, image_processor = tiles
    pruner = pruning.build("autoprune", target_fraction=0.4, x0=1.4, recycle_ratio=0.3)
    picture = tiny_next.picture((200, 100))
    answer = traced.run(
        model, tokenizer, image_processor, picture, QUESTION, pruner, max_new_tokens=2
    )
    assert [len(kept) for kept in answer.kept[:-1]] == answer.sample.entering
    assert answer.sample.entering[0] == tiny_next.COUNTS[200, 100] == 52
    overview, canvas = answer.views
    assert (overview.columns, overview.rows, canvas.columns, canvas.rows) == (4, 4, 8, 4)
    assert (overview.title, canvas.title) == ("overview", "2 x 1 tiles")
    places = [token for token in range(52) if token < 16 or (token - 16) % 9 != 8]
    assert [*overview.tokens, *canvas.tokens] == places
    assert any(answer.merged)
    for layer, kept in enumerate(answer.kept):
        for view, drawn in zip(answer.views, overlay.panels(answer, layer, 14), strict=True):
            same = (np.asarray(drawn) == np.asarray(view.picture)).all(-1)
            bright = {
                token
                for patch, token in enumerate(view.tokens)
                if same[patch // view.columns * 14 + 7, patch % view.columns * 14 + 7]
            }
            assert bright == set(kept) & set(view.tokens)


def test_merged_tokens_of_two_views() -> None:
    view = views.View(tiny_next.picture((20, 10)), 2, 1, [5, 3])
    assert view.patches([3, 4, 5]) == [1, 0]
    merged = overlay.merged_on(view, {3: (3, 9), 9: (5, 9), 8: (8, 7)})
    assert merged == {1: [1], overlay.ELSEWHERE: [0]}
    drawn = overlay.draw(view.picture, (2, 1), [1], merged=merged, cell=10)
    assert drawn.getpixel((10, 0)) == overlay.MERGED and drawn.getpixel((0, 0)) != overlay.MERGED


def test_keep_draws_tiles_and_tells_where_ids_are(folder, tmp_path, capsys) -> None:
    image = tmp_path / "picture.png"
    tiny_next.picture((200, 100)).save(image)
    command = ["--model-path", str(folder), "--device", "cpu", "--image", str(image)]
    command += ["--question", QUESTION, "--max-new-tokens", "1", "--method", "fastv:8@depth=1"]
    for name in ("a.png", "a.json"):
        assert keep.main([*command, "--out", str(tmp_path / name)]) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert [(view["columns"], view["rows"]) for view in found["views"]] == [(4, 4), (8, 4)]
    assert len(found["methods"]["fastv-8@depth=1"]["kept"][-1]) == 8
    capsys.readouterr()


def test_mixed_tokens_are_answered_and_not_drawn(tmp_path) -> None:
    """Senna's adapter: 32 tokens of 128 are left, none has a place, and the picture is dimmed."""
    tokenizer, model, image_processor = senna(tmp_path)
    answer = traced.run(
        *(model, tokenizer, image_processor, tiny_next.picture((40, 20)), "Plan?"),
        pruning.build("random", target_token_num=32),
        max_new_tokens=1,
    )
    (view,) = answer.views
    assert view.mixed and len(view.tokens) == 128
    assert {len(kept) for kept in answer.kept} == {view.count(answer.kept[0])} == {32}
    assert view.patches(answer.kept[0]) == [] and keep.places(answer) == {"views": []}
    (drawn,) = overlay.panels(answer, 0)
    whole = np.asarray(view.picture, np.float32)
    dark = np.asarray(view.picture.convert("L"), np.float32)[..., None] * overlay._DIM
    assert np.abs(np.asarray(drawn) - (whole / 4 + dark * 3 / 4)).max() < 2


def senna(folder):
    written = senna_files.write_senna(folder / "senna")
    tower = folder / senna_files.TOWER
    return load_pretrained_model(written, vision_tower=tower, dtype="float32", device="cpu")[:3]


def test_several_pictures_in_their_places(tmp_path, tiles) -> None:
    """Views, ids and the answer are those of a call of the model with all pictures."""
    pictures = {
        name: tiny_next.picture(size, seed)
        for seed, (name, size) in enumerate({"A": (200, 100), "B": (40, 20)}.items())
    }
    text = "Here:\n<image>\nthere: <image> What?"
    pruner = pruning.build("fastv", depth=1, target_token_num=50)
    tokenizer, model, image_processor = tiles
    order = (model, tokenizer, image_processor, pictures, text, pruner)
    answer = traced.run(*order, max_new_tokens=2)
    prompt = image_prompt(text, 0, "vicuna_v1", model.config)
    pixels = process_images([*pictures.values()], image_processor, model.config)
    output = model.generate(
        tokenizer_image_token(prompt, tokenizer, return_tensors="pt")[None],
        images=pixels,
        image_sizes=[(200, 100), (40, 20)],
        pruner=pruner,
        max_new_tokens=2,
        do_sample=False,
        return_dict_in_generate=True,
    )
    assert [list(kept) for kept in answer.kept] == output.past_key_values.trace.kept_patches(0)
    titles = ["A, overview", "A, 2 x 1 tiles", "B, overview", "B, 1 x 2 tiles"]
    assert [view.title for view in answer.views] == titles
    first, _, overview, canvas = answer.views
    assert list(first.tokens) == list(range(16)) and list(overview.tokens) == list(range(52, 68))
    assert list(canvas.tokens) == [68, 69, 70, 71, 73, 74, 75, 76]
    for view, alone in zip(answer.views[2:], views.views(pictures["B"], image_processor, model)):
        assert view.picture == alone.picture
        assert view.padding == tuple(52 + token for token in alone.padding)

    tokenizer, model, image_processor = senna(tmp_path)
    answer = traced.run(model, tokenizer, image_processor, *order[3:], max_new_tokens=1)
    assert [list(view.tokens)[::127] for view in answer.views] == [[0, 127], [128, 255]]


def test_a_cls_token_moves_the_next_picture_on() -> None:
    ids = torch.tensor([0, 2, 4])
    runs = [Segment(3, 0, ids, whole=4), Segment(2), Segment(3, 1, ids, whole=4), Segment(1)]
    assert traced.first_ids(TokenLayout.from_segments([runs])) == [0, 5]
