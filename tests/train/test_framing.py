"""Wide and tall pictures: cut where nothing is lost and no question or answer changes."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from llava.train.drawing import render
from llava.train.framing import aspect, frame
from llava.train.items import IMAGE_SIZE, MARGIN, Item, Thing, half
from llava.train.questions import KINDS, ask
from llava.train.scenes import Scene, make_scene
from llava.train.vocabulary import PLACES

CUT = list(
    islice((s for s in map(make_scene, range(900_000, 901_000)) if aspect(s) != "square"), 60)
)


def _scene(*centres: tuple[float, float]) -> Scene:
    """Red squares of 30 pixels."""
    things = tuple(
        Thing("red", (205, 35, 40), 0.0, x, y, 30, 30, "square", "plain", "small")
        for x, y in centres
    )
    return Scene(0, 0, 0, IMAGE_SIZE, 4, bytes(48), (), (), things)


@pytest.mark.parametrize(
    ("centres", "expected", "name"),
    [
        # 160 rows with the margin: the shortest side will do, out of the middle.
        (((40, 108), (168, 228)), (0, 74, 336, 262), "wide"),
        (((108, 40), (228, 168)), (74, 0, 262, 336), "tall"),
        # The upper item leaves no room above row 50, the lower one none below 250.
        (((40, 70), (300, 230)), (0, 50, 336, 250), "wide"),
        # From row 74 on, 200 would be below 2/3 of 188 rows, and it is in the middle of the square.
        (((40, 100), (300, 200)), (0, 75, 336, 263), "wide"),
        # Both are in the middle third of the square, and too far apart for that of any cut.
        (((40, 113), (300, 223)), (0, 0, 336, 336), "square"),
        # No room.
        (((40, 300), (300, 40)), (0, 0, 336, 336), "square"),
    ],
)
def test_by_hand(centres, expected, name) -> None:
    scene = _scene(*centres)
    assert (frame(scene), aspect(scene)) == (expected, name)


def test_there_are_wide_and_tall_ones_and_most_are_square() -> None:
    aspects = [aspect(make_scene(seed)) for seed in range(900_000, 900_200)]
    assert 0.1 < aspects.count("wide") / 200 < 0.3 and 0.1 < aspects.count("tall") / 200 < 0.3


def test_a_cut_is_of_moderate_shape_and_loses_no_item() -> None:
    for scene in CUT:
        left, top, right, bottom = frame(scene)
        sides = sorted((right - left, bottom - top))
        assert sides[1] == IMAGE_SIZE and 1.3 <= IMAGE_SIZE / sides[0] <= 1.8
        for item in scene.items:
            across, down = half(item)
            assert left + MARGIN <= item.x - across and item.x + across <= right - MARGIN
            assert top + MARGIN <= item.y - down and item.y + down <= bottom - MARGIN


def test_between_bars_every_question_has_its_answer() -> None:
    """Of all kinds, asked about the scene as it lies in the padded square."""
    for scene in CUT:
        left, top, right, bottom = frame(scene)
        across = (IMAGE_SIZE - right + left) // 2 - left
        down = (IMAGE_SIZE - bottom + top) // 2 - top

        def moved(item: Item, across: int = across, down: int = down) -> Item:
            return replace(item, x=item.x + across, y=item.y + down)

        padded = replace(
            scene, things=tuple(map(moved, scene.things)), signs=tuple(map(moved, scene.signs))
        )
        asked, again = ask(scene, KINDS), ask(padded, KINDS)
        assert [(q.text, q.answer) for q in asked] == [(q.text, q.answer) for q in again]
        assert len(asked) > 20


def test_places_are_those_in_the_cut_too() -> None:
    for scene in CUT:
        left, top, right, bottom = frame(scene)
        for item in scene.items:
            row = int(3 * (item.y - top) / (bottom - top))
            column = int(3 * (item.x - left) / (right - left))
            assert PLACES[row][column] == item.place


def test_what_is_left_out_is_the_ground() -> None:
    """The item of a rendered scene is where the cut has it, pixel for pixel."""
    scene = _scene((40, 108), (168, 228))
    cut = np.array(render(scene).crop(frame(scene)))
    assert cut.shape == (188, 336, 3)
    assert (cut[108 - 74, 40] == (205, 35, 40)).all() and (cut[228 - 74, 168] == cut[34, 40]).all()
