"""What methods of the vision tower leave of tiles, and in which order, as their own codes do."""

from __future__ import annotations

import pytest

from llava import pruning
from tests import tiny, tiny_next


@pytest.fixture(scope="module")
def spatial():
    return tiny.double(tiny_next.model(7, layers=1, mm_patch_merge_type="spatial"))


def test_visionzip_puts_what_shows_no_patch_behind_the_canvas(spatial):
    """Two pictures of one and of two rows of tiles; 8 tokens a view: CLS, 6 patches, 1 merged."""
    sizes = [(200, 100), (112, 112)]
    pixels = tiny_next.views(sizes, spatial.config)
    chosen = pruning.build("visionzip", target_token_num=64)
    both = spatial.encode_images(pixels, sizes, pruner=chosen, groups=[2])
    for image, tiles in zip(both, (2, 4)):
        view, place = image.tile.tolist(), image.patch.tolist()
        assert view[:8] == [0] * 8 and place[0] == image.whole
        patches, rest = slice(8, 8 + 6 * tiles), slice(8 + 6 * tiles, None)
        assert place[patches] == sorted(place[patches]) and max(place[patches]) < image.whole
        # CLS tokens of the tiles in their order, then a merged token of each.
        assert view[rest] == [*range(1, tiles + 1)] * 2
        assert place[rest][:tiles] == [image.whole + 1 + i for i in range(tiles)]
        assert max(place[rest][tiles:]) < image.whole
        # A picture alone is what it is beside another.
        i = 0 if tiles == 2 else 1
        alone = pruning.build("visionzip", target_token_num=8 * (1 + tiles))
        (single,) = spatial.encode_images([pixels[i]], [sizes[i]], pruner=alone)
        assert single.patch.tolist() == place and single.tile.tolist() == view


def test_hired_loses_what_it_chose_on_the_border(spatial):
    """200 x 100 fills two tiles side by side. Read as one above the other, 4 x 8 patches show it
    in rows 3 and 4 alone: the last of the left tile, the first of the right one."""
    sizes = [(200, 100)]
    pixels = tiny_next.views(sizes, spatial.config)

    def tokens(**settings):
        chosen = pruning.build("hired", target_token_num=24, **settings)
        (image,) = spatial.encode_images(pixels, sizes, pruner=chosen)
        # By view: patch ids on the canvas of 4 x 8 are 16 + 8 row + column.
        return list(zip(image.tile.tolist(), [place - 16 for place in image.patch.tolist()]))

    kept = tokens(border="kept")
    assert tokens(border="cut") == kept and len(kept) > 20
    left = [
        (view, place) for view, place in kept if view == 0 or place // 8 == (3 if view == 1 else 0)
    ]
    found = tokens()
    assert sorted(found) == sorted(left) and len(found) < len(kept)
    # Tile above tile, each row by row.
    assert [view for view, _ in found] == sorted(view for view, _ in found)
    for tile in (1, 2):
        places = [place for view, place in found if view == tile]
        assert places == sorted(places)


def test_hired_loses_the_border_of_a_picture_that_fills_no_canvas(spatial):
    """80 x 100: the first column of the left tiles and the last of the right ones are black."""
    sizes = [(80, 100)]
    pixels = tiny_next.views(sizes, spatial.config)
    found = {}
    for border in ("transposed", "cut", "kept"):
        chosen = pruning.build("hired", target_token_num=60, border=border)
        (image,) = spatial.encode_images(pixels, sizes, pruner=chosen)
        found[border] = image.patch.tolist()
    black = {16 + 8 * row + column for row in range(8) for column in (0, 7)}
    assert found["transposed"] == found["cut"] == [p for p in found["kept"] if p not in black]
    assert len(found["cut"]) < len(found["kept"])


def test_hired_keeps_a_token_of_each_picture_that_may_have_one(spatial):
    """A T of 1 rounds down to nothing for the overview and for every tile."""
    sizes = [(200, 100)]
    pixels = tiny_next.views(sizes, spatial.config)
    (image,) = spatial.encode_images(
        pixels, sizes, pruner=pruning.build("hired", target_token_num=1)
    )
    assert image.tile.tolist() == [0]
