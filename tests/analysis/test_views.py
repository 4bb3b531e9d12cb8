"""Where tokens are on a tiled picture: each shows the pixels that the tower got for it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from llava import pruning
from llava.analysis import keep, overlay, traced, views
from llava.anyres import NEWLINE
from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model
from llava.model.tiles import tilings

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
    """Senna's adapter: six tokens of 128 are left, and none has a place."""
    folder = senna_files.write_senna(tmp_path / "senna")
    tokenizer, model, image_processor, _ = load_pretrained_model(
        folder, vision_tower=tmp_path / senna_files.TOWER, dtype="float32", device="cpu"
    )
    answer = traced.run(
        *(model, tokenizer, image_processor, tiny_next.picture((40, 20)), "Plan?"),
        pruning.build("random", target_token_num=6),
        max_new_tokens=1,
    )
    assert answer.views == () and {len(kept) for kept in answer.kept} == {6}
    with pytest.raises(ValueError, match="no visual token of this checkpoint has a place"):
        overlay.panels(answer, 0)
