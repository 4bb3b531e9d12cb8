"""Pixels of the overlay and places on the sheet, worked out by hand."""

from __future__ import annotations

import pytest
from PIL import Image

from llava.analysis.overlay import LETTERBOX, MERGED, draw, stack, strip

COLOURS = [(200, 100, 50), (0, 0, 250), (250, 250, 250), (100, 200, 0)]
# Brightness (299 R + 587 G + 114 B) / 1000, times 0.28: what a dropped patch shows.
DARK = [34, 7, 70, 41]


@pytest.fixture
def picture() -> Image.Image:
    """Four patches of one colour each, 10 pixels a side."""
    image = Image.new("RGB", (20, 20))
    for patch, colour in enumerate(COLOURS):
        image.paste(
            colour, (patch % 2 * 10, patch // 2 * 10, patch % 2 * 10 + 10, 10 + patch // 2 * 10)
        )
    return image


def centre(image: Image.Image, patch: int, cell: int = 10) -> tuple[int, ...]:
    return image.getpixel((patch % 2 * cell + cell // 2, patch // 2 * cell + cell // 2))


def corner(image: Image.Image, patch: int, cell: int = 10) -> tuple[int, ...]:
    return image.getpixel((patch % 2 * cell, patch // 2 * cell))


def test_kept_patches_are_the_picture_and_dropped_ones_dark(picture) -> None:
    drawn = draw(picture, 2, [0, 3], cell=10)
    assert drawn.size == (20, 20)
    assert [centre(drawn, patch) for patch in (0, 3)] == [COLOURS[0], COLOURS[3]]
    for patch in (1, 2):
        red, green, blue = centre(drawn, patch)
        assert red == green == blue and abs(red - DARK[patch]) <= 1
    assert draw(picture, 2, range(4), cell=10).tobytes() == picture.tobytes()


def test_a_merged_patch_has_a_frame_and_its_members_a_tint(picture) -> None:
    drawn = draw(picture, 2, [0, 3], merged={3: [1, 3]}, cell=10)
    assert corner(drawn, 3) == MERGED and centre(drawn, 3) == COLOURS[3]
    assert corner(drawn, 0) == COLOURS[0]
    # 65 % of the dark grey and 35 % of the colour.
    wanted = [0.65 * DARK[1] + 0.35 * part for part in MERGED]
    assert all(abs(a - b) <= 1 for a, b in zip(centre(drawn, 1), wanted))
    assert len(set(centre(drawn, 2))) == 1


def test_padding_has_a_line_whether_kept_or_not(picture) -> None:
    drawn = draw(picture, 2, [0], letterbox=[0, 1], cell=10)
    for patch in range(4):
        ends = [(patch % 2 * 10, patch // 2 * 10 + 9), (patch % 2 * 10 + 9, patch // 2 * 10)]
        lined = [drawn.getpixel(end) == LETTERBOX for end in ends]
        assert lined == [patch < 2] * 2


def test_the_picture_is_resized_to_the_patches(picture) -> None:
    assert draw(picture, 2, [0], cell=14).size == (28, 28)
    assert centre(draw(picture, 2, [0], cell=14), 0, 14) == COLOURS[0]


def test_a_cls_token_is_nowhere_on_the_picture(picture) -> None:
    assert draw(picture, 2, [0, 4], cell=10).tobytes() == draw(picture, 2, [0], cell=10).tobytes()


@pytest.mark.parametrize(
    "changes", [{"kept": [5]}, {"kept": [-1]}, {"merged": {7: [0]}}, {"letterbox": [9]}]
)
def test_patches_that_are_not_on_the_picture_are_refused(picture, changes) -> None:
    with pytest.raises(ValueError, match="is not on a picture of 2 x 2 patches"):
        draw(picture, 2, **{"kept": [0], **changes})


def test_only_squares_are_drawn() -> None:
    with pytest.raises(ValueError, match=r"square picture .* \(20, 10\)"):
        draw(Image.new("RGB", (20, 10)), 2, [0])


def test_a_strip_has_its_panels_in_rows_below_their_titles() -> None:
    panels = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "blue")]
    sheet = strip(panels, ["a", "b", "c"], columns=2)
    assert sheet.width == 2 * 40 + 3 * 8
    runs = [colour for colour in _middles(sheet, 28) if colour != (255, 255, 255)]
    assert runs == [(255, 0, 0), (0, 0, 255)]
    assert [colour for colour in _middles(sheet, 76) if colour != (255, 255, 255)] == [(0, 128, 0)]
    taller = strip(panels, ["a", "b", "c"], columns=2, heading="two words " * 8)
    assert taller.size > sheet.size or taller.height > sheet.height
    # A title of three lines needs more room than one of one.
    assert strip(panels, ["much too long", "b", "c"], 2).height > sheet.height


def _middles(sheet: Image.Image, x: int) -> list[tuple[int, ...]]:
    """The colours down a column, each once in a row, without the black of letters."""
    found: list[tuple[int, ...]] = []
    for y in range(sheet.height):
        colour = sheet.getpixel((x, y))
        flat = all(part in (0, 128, 255) for part in colour) and colour != (0, 0, 0)
        if flat and (not found or found[-1] != colour):
            found.append(colour)
    return found


def test_a_stack_is_as_wide_as_the_widest() -> None:
    sheet = stack([Image.new("RGB", (10, 5), "red"), Image.new("RGB", (30, 7), "blue")])
    assert sheet.size == (30, 12)
    assert sheet.getpixel((0, 0)) == (255, 0, 0) and sheet.getpixel((20, 0)) == (255, 255, 255)
    assert sheet.getpixel((20, 5)) == (0, 0, 255)


@pytest.mark.parametrize(("sizes", "titles"), [([(4, 4), (5, 5)], 2), ([(4, 4)], 2), ([], 0)])
def test_a_strip_wants_panels_of_one_size_with_titles(sizes, titles) -> None:
    with pytest.raises(ValueError, match="panels of one size and a title for each"):
        strip([Image.new("RGB", size) for size in sizes], ["t"] * titles)
