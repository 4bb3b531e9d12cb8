"""Tiling: canvases, tiles and the order of tokens, with LLaVA's real numbers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlavaNextImageProcessorPil

from llava import anyres
from llava.anyres import NEWLINE, select_best_resolution, token_order, unpadded
from llava.mm_utils import load_image_processor, process_images

from . import tiny_next

PINPOINTS = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]

#: Canvas (width, height) and map (width, height) of pictures; the last number is all tokens.
TABLE = {
    "224x224 336x336": ((336, 672), (24, 24), 1176),
    "320x240": ((336, 672), (24, 18), 1026),
    "200x300": ((336, 672), (24, 36), 1476),
    "480x360 640x480 500x375 800x600 1024x768": ((672, 672), (48, 36), 2340),
    "480x640 375x500 768x1024": ((672, 672), (36, 48), 2352),
    "640x427 1024x683": ((672, 672), (48, 32), 2144),
    "1280x720 1600x900 1920x1080": ((672, 672), (48, 28), 1948),
    "640x640 672x672 2000x2000": ((672, 672), (48, 48), 2928),
    "2000x500 1344x336": ((1008, 336), (72, 18), 1890),
    "500x2000": ((336, 1008), (18, 72), 1944),
    "1000x300": ((1008, 336), (72, 22), 2182),
    "300x1000": ((336, 1008), (22, 72), 2232),
    "250x50": ((336, 672), (24, 4), 676),
}
ROWS = [
    (tuple(map(int, size.split("x"))), *row)
    for sizes, row in TABLE.items()
    for size in sizes.split()
]


def order(size, merge_type="spatial_unpad", reading="llava"):
    shape = anyres.get_anyres_image_grid_shape(size, PINPOINTS, 336, reading)
    return token_order(size, shape, 24, merge_type, reading)


@pytest.mark.parametrize(("size", "canvas", "shape", "tokens"), ROWS, ids=lambda row: str(row))
def test_the_table_of_token_counts(size, canvas, shape, tokens):
    assert select_best_resolution(size, PINPOINTS) == canvas
    found = order(size)
    across, down = shape
    assert len(found) == tokens == 576 + down * (across + 1)
    assert (found == NEWLINE).sum() == down
    rows = found[576:].view(down, across + 1)
    assert (rows[:, -1] == NEWLINE).all() and (rows[:, :-1] != NEWLINE).all()
    assert found[:576].tolist() == list(range(576))
    views = 1 + canvas[0] * canvas[1] // 336**2
    assert len(order(size, "spatial")) == len(order(size, "flat")) == 576 * views


@pytest.mark.parametrize(
    ("size", "tokens"), [((320, 240), 1368), ((200, 300), 984), ((336, 336), 1176)]
)
def test_llava_hf_takes_the_other_canvas_below_one_tile(size, tokens):
    assert select_best_resolution(size, PINPOINTS, "llava-hf") == (672, 336)
    assert len(order(size, reading="llava-hf")) == tokens


#: The canvas that a picture fills best, and the fraction of it that it covers, by hand.
FILLED = {
    (640, 427): (672, 336),  # 503 x 336 of 672 x 336 is 0.749; 672 x 448 of 672 x 672 is 0.667
    (1024, 683): (672, 336),
    (683, 1024): (336, 672),
    (640, 480): (672, 672),  # 0.75; 448 x 336 of 672 x 336 is 0.667
    (320, 240): (672, 672),  # however small
    (40, 20): (672, 336),
    (336, 336): (672, 672),
    (1280, 720): (672, 336),  # 597 x 336 is 0.888
    (2000, 500): (1008, 336),  # 0.75; 672 x 168 of 672 x 336 is 0.5
    (500, 2000): (336, 1008),
    (840, 336): (1008, 336),  # 840 x 336 is 0.833; 672 x 268 of 672 x 336 is 0.798
    (800, 336): (672, 336),  # 672 x 282 is 0.839; 800 x 336 of 1008 x 336 is 0.794
}


@pytest.mark.parametrize(("size", "canvas"), FILLED.items(), ids=str)
def test_the_canvas_that_a_picture_fills_best(size, canvas):
    assert select_best_resolution(size, PINPOINTS, "fill") == canvas
    shape = anyres.get_anyres_image_grid_shape(size, PINPOINTS, 336, "fill")
    assert shape == (canvas[0] // 336, canvas[1] // 336)
    assert len(order(size, "spatial", "fill")) == 576 * (1 + shape[0] * shape[1])


def test_of_equally_filled_canvases_the_first_wins():
    for pinpoints in ([(336, 336), (672, 672)], [(672, 672), (336, 336)]):
        assert select_best_resolution((100, 100), pinpoints, "fill") == pinpoints[0]
    assert select_best_resolution((500, 500), PINPOINTS[:2], "fill") == (336, 672)
    assert select_best_resolution((500, 500), PINPOINTS[1::-1], "fill") == (672, 336)


def test_a_fixed_canvas_asks_no_list():
    for size in FILLED:
        assert select_best_resolution(size, PINPOINTS, "672x672") == (672, 672)
        assert select_best_resolution(size, PINPOINTS, "672x336") == (672, 336)
    assert anyres.fixed_canvas("672x1008", 336) == (672, 1008)
    assert [anyres.fixed_canvas(reading) for reading in anyres.READINGS] == [None] * 3


WRONG = ["", "Fill", "672", "672x", "x672", "672X672", "0x672", "0672x672", "-336x336", "672x672 "]
WRONG += ["999999x999999", "672x" + "6" * 5000, "full", "6.72e2x672", "672x672x672", "٦x٦"]


@pytest.mark.parametrize("reading", WRONG, ids=lambda text: text[:14])
def test_what_is_no_reading(reading):
    with pytest.raises(ValueError, match=r"one of llava, llava-hf, fill, or .* 672x672, multiples"):
        anyres.fixed_canvas(reading, 336)
    with pytest.raises(ValueError, match="processing must be one of"):
        select_best_resolution((640, 480), PINPOINTS, reading)


def test_a_canvas_of_no_whole_tiles():
    with pytest.raises(ValueError, match=r"112x112, multiples of 56, got '56x100'"):
        anyres.fixed_canvas("56x100", 56)


def test_the_trained_readings_differ_only_below_one_tile():
    for width in range(30, 1400, 61):
        for height in range(30, 1400, 67):
            found = [
                select_best_resolution((width, height), PINPOINTS, reading)
                for reading in ("llava", "llava-hf")
            ]
            assert (found[0] != found[1]) == (max(width, height) <= 336), (width, height)


def test_rows_of_the_canvas_go_across_tiles():
    """Two tiles side by side, 2 x 2 patches each: patches 4 5 | 8 9 above 6 7 | 10 11."""
    spatial = token_order((200, 100), (2, 1), 2, "spatial")
    assert spatial.tolist() == [0, 1, 2, 3, 4, 5, 8, 9, 6, 7, 10, 11]
    newline = token_order((200, 100), (2, 1), 2, "spatial_unpad")
    assert newline.tolist() == [0, 1, 2, 3, 4, 5, 8, 9, NEWLINE, 6, 7, 10, 11, NEWLINE]
    assert token_order((200, 100), (2, 1), 2, "flat").tolist() == list(range(12))
    # One above the other: 4 5, 6 7, 8 9, 10 11, of which 6 7 and 8 9 show a picture of 4 : 1 ... 2.
    tall = token_order((100, 100), (1, 2), 2, "spatial_unpad")
    assert tall.tolist() == [0, 1, 2, 3, 6, 7, NEWLINE, 8, 9, NEWLINE]


def test_an_odd_border_leaves_one_line():
    # 12 columns, int(90 * 12 / 300) = 3 of 4 rows: floor(1 / 2) rows are cut off.
    assert unpadded((300, 90), 4, 12) == (slice(0, 4), slice(0, 12))
    # int(100 * 24 / 300) = 8 of 24: 8 at both ends.
    assert unpadded((300, 100), 24, 24) == (slice(8, 16), slice(0, 24))
    assert unpadded((100, 300), 24, 24) == (slice(0, 24), slice(8, 16))


def test_the_border_of_the_canvas_by_view():
    """80 x 100 on 2 x 2 tiles of 2 x 2: int(80 * 4 / 100) = 3 of 4 columns, which cuts nothing; as
    4 x 4 patches each, int(80 * 8 / 100) = 6 of 8: the first column of the left tiles, the last
    of the right ones."""
    assert not anyres.border((80, 100), (2, 2), 2).any()
    found = anyres.border((80, 100), (2, 2), 4).view(5, 4, 4)
    left, right = [True, False, False, False], [False, False, False, True]
    assert found.tolist() == [[[False] * 4] * 4, *[[left] * 4, [right] * 4] * 2]
    # Above and below a wide picture on a tall canvas: 4 x 2 of 4 x 8 patches are left.
    found = anyres.border((40, 20), (1, 2), 4).view(3, 4, 4)
    assert found.all(2).tolist() == [[False] * 4, [True] * 3 + [False], [False] + [True] * 3]


def test_a_picture_is_centred_on_black_and_its_short_side_rounded_up():
    image = tiny_next.picture((300, 90))
    fitted = anyres.resize_and_pad_image(image, (168, 56))
    # 90 * 168 / 300 = 50.4: 51 rows, 2 black ones above and 3 below.
    black = (np.asarray(fitted) == 0).all((1, 2))
    assert black.tolist() == [True] * 2 + [False] * 51 + [True] * 3
    views = anyres.views(image, (168, 56), 56)
    assert [view.size for view in views] == [(56, 56)] * 4
    assert np.array_equal(np.asarray(views[2]), np.asarray(fitted)[:, 56:112])
    assert np.array_equal(np.asarray(views[0]), np.asarray(image.resize((56, 56), 3)))


SIZES = [(640, 480), (300, 1000), (320, 240), (500, 375), (1000, 300), (250, 50), (336, 336)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_are_those_of_transformers_next_processor(size, tmp_path):
    """As llava-hf reads the canvases; and as LLaVA does, if the pairs are turned round."""
    image = tiny_next.picture(size)
    clip = load_image_processor(tmp_path)
    for reading in ("llava", "llava-hf"):
        config = SimpleNamespace(
            image_aspect_ratio="anyres",
            image_grid_pinpoints=[list(pair) for pair in PINPOINTS],
            anyres_reading=reading,
        )
        pinpoints = [list(p if reading == "llava-hf" else p[::-1]) for p in PINPOINTS]
        stock = LlavaNextImageProcessorPil(
            size={"shortest_edge": 336},
            crop_size={"height": 336, "width": 336},
            image_grid_pinpoints=pinpoints,
        )
        theirs = stock(image, return_tensors="pt")["pixel_values"]
        ours = process_images([image], clip, config)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("reading", "canvas"), [("fill", (672, 336)), ("1008x672", (1008, 672))])
def test_pixels_of_another_canvas(reading, canvas, tmp_path):
    """Those that transformers makes where its list has no other canvas."""
    image, clip = tiny_next.picture((640, 427)), load_image_processor(tmp_path)
    config = SimpleNamespace(
        image_aspect_ratio="anyres",
        image_grid_pinpoints=[list(pair) for pair in PINPOINTS],
        anyres_reading=reading,
    )
    stock = LlavaNextImageProcessorPil(
        size={"shortest_edge": 336},
        crop_size={"height": 336, "width": 336},
        image_grid_pinpoints=[list(canvas[::-1])],
    )
    theirs = stock(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(process_images([image], clip, config), theirs)


def test_pictures_with_different_tiles_come_as_a_list(tmp_path):
    config = SimpleNamespace(**tiny_next.NEXT)
    made = process_images(
        [tiny_next.picture((112, 112)).convert("L"), tiny_next.picture((40, 20))],
        tiny_next.processor(tmp_path),
        config,
    )
    assert [tuple(one.shape) for one in made] == [(5, 3, 56, 56), (3, 3, 56, 56)]


class TestPinpoints:
    def test_a_list_or_a_string_that_spells_one(self):
        for value in (tiny_next.PINPOINTS, str(tiny_next.PINPOINTS)):
            assert anyres.read_pinpoints(value, 56, "here")[:2] == [(56, 112), (112, 56)]

    @pytest.mark.parametrize(
        "value", [None, [], "[[56, 112]", "anyres_max_9", [[56]], [[56, 100]], [56, 112], "(1x1)"]
    )
    def test_anything_else_is_refused(self, value):
        with pytest.raises(ValueError, match=r"here: image_grid_pinpoints must .* multiples of 56"):
            anyres.read_pinpoints(value, 56, "here")

    def test_no_canvas_at_all(self):
        with pytest.raises(ValueError, match="at least one canvas"):
            select_best_resolution((10, 10), [])


def test_an_unknown_merge_type():
    with pytest.raises(ValueError, match="one of flat, spatial, spatial_unpad, got 'unpad'"):
        token_order((10, 10), (1, 2), 4, "unpad")
