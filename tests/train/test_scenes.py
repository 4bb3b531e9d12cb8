"""Scenes: determinism, geometry, readability, labels."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.train import scenes
from llava.train.drawing import render
from llava.train.labels import SLOTS, label_patches, spell
from llava.train.questions import KINDS, ask, describe
from llava.train.scenes import (
    GRID,
    IMAGE_SIZE,
    PATCH_SIZE,
    TEST_SEEDS,
    TRAINING_SEEDS,
    VALIDATION_SEEDS,
    WORDS,
    Sign,
    Style,
    make_scene,
    overlap,
)

SEEDS = st.integers(min_value=0, max_value=2**40 - 1)


def _luminance(rgb: tuple[int, int, int]) -> float:
    """Relative luminance of WCAG 2."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_same_seed_gives_same_bytes(seed: int) -> None:
    assert make_scene(seed) == make_scene(seed)
    assert render(make_scene(seed)).tobytes() == render(make_scene(seed)).tobytes()


def test_different_seeds_give_different_pictures() -> None:
    digests = {hashlib.sha256(render(make_scene(s)).tobytes()).digest() for s in range(30)}
    assert len(digests) == 30


def test_seed_ranges_are_disjoint() -> None:
    ranges = sorted((TEST_SEEDS, VALIDATION_SEEDS, TRAINING_SEEDS), key=lambda r: r.start)
    assert all(len(r) > 0 for r in ranges)
    for lower, upper in pairwise(ranges):
        assert lower.stop <= upper.start


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_signs_are_distinct_apart_inside_and_legible(seed: int) -> None:
    scene = make_scene(seed)
    assert 1 <= len(scene.signs) <= 4
    assert len({sign.colour for sign in scene.signs}) == len(scene.signs)
    assert len({sign.text for sign in scene.signs}) == len(scene.signs)
    for index, sign in enumerate(scene.signs):
        assert 14 <= sign.letter_height <= 40
        assert sign.text in WORDS or 10 <= int(sign.text) <= 99
        assert sign.width / 2 < sign.x < IMAGE_SIZE - sign.width / 2
        assert sign.height / 2 < sign.y < IMAGE_SIZE - sign.height / 2
        assert not any(overlap(sign, other) for other in scene.signs[:index])
        light, dark = sorted((_luminance(sign.rgb), _luminance(sign.ink)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 2.5, (sign.colour, sign.rgb, sign.ink)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_a_window_holds_its_signs(seed: int) -> None:
    scene = make_scene(seed, Style(window=112, signs=(1, 2)))
    assert render(scene).size == (112, 112)
    assert scene.left % PATCH_SIZE == scene.top % PATCH_SIZE == 0
    assert len(scene.signs) >= 1
    for sign in scene.signs:
        assert scene.left < sign.x - sign.width / 2 and sign.x + sign.width / 2 < scene.left + 112
        assert scene.top < sign.y - sign.height / 2 and sign.y + sign.height / 2 < scene.top + 112


def test_plate_colour_and_ink_are_where_the_graph_says() -> None:
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE] + 0.5
    for seed in range(20):
        scene = make_scene(seed)
        picture = np.array(render(scene)).astype(int)
        for sign in scene.signs:
            across, down = sign.to_plate(x, y)
            inside = (abs(across) < sign.width / 2 - 2) & (abs(down) < sign.height / 2 - 2)
            pixels = picture[inside]
            assert (pixels == sign.rgb).all(1).mean() > 0.25
            assert (abs(pixels - sign.ink).max(1) < 60).mean() > 0.03


def test_place_names_the_cell_of_the_centre() -> None:
    def place(x: float, y: float) -> str:
        return Sign("stop", "red", (0, 0, 0), (0, 0, 0), 20, 0.0, x, y, 50, 30).place

    assert place(30, 30) == "top left"
    assert place(168, 168) == "middle"
    assert place(335, 170) == "right"
    assert place(170, 336) == "bottom"


def test_bad_styles_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 14"):
        Style(window=100)
    with pytest.raises(ValueError, match="letters"):
        Style(letters=(30, 20))


def test_styles_blend() -> None:
    easy, hard = Style(signs=(1, 1), letters=(30, 40), window=112), Style(window=112)
    assert easy.towards(hard, 0.0) == easy
    assert easy.towards(hard, 1.0) == hard
    assert easy.towards(hard, 0.5).letters == (22, 40)


def test_patch_labels_follow_the_graph() -> None:
    sign = Sign("stop", "red", (205, 35, 40), (255,) * 3, 28, 0.0, 168.0, 168.0, 120, 60)
    scene = scenes.Scene(0, 0, 0, IMAGE_SIZE, 4, bytes(48), (), (sign,))
    labels = label_patches(scene)
    colour = labels.colour.view(GRID, GRID)
    # plate from (108, 138) to (228, 198): patch centres 7 + 14 i inside are 8..15 and 10..13
    assert colour.nonzero().amin(0).tolist() == [10, 8]
    assert colour.nonzero().amax(0).tolist() == [13, 15]
    assert int((colour > 0).sum()) == 4 * 8
    assert labels.weight.sum() == pytest.approx(1)
    assert labels.text[labels.weight > 0].unique(dim=0).tolist() == [spell("stop")]
    letters = labels.letter.view(GRID, GRID)[11]
    order = [int(c) for c in letters.unique_consecutive() if c > 0]
    assert order == spell("stop")[:4]


def test_patch_labels_of_a_window_are_those_of_the_picture() -> None:
    window = make_scene(5, Style(window=112, signs=(2, 2), letters=(14, 20)))
    whole = scenes.Scene(0, 0, 0, IMAGE_SIZE, 4, bytes(48), (), window.signs)
    row, column = window.top // PATCH_SIZE, window.left // PATCH_SIZE
    for name in ("colour", "letter", "text"):
        full = getattr(label_patches(whole), name).unflatten(0, (GRID, GRID))
        part = getattr(label_patches(window), name).unflatten(0, (8, 8))
        assert torch.equal(full[row : row + 8, column : column + 8], part)
        assert int((full > 0).sum()) == int((part > 0).sum())


def test_spelling_pads_to_the_longest_word() -> None:
    assert spell("42") == [31, 29, 0, 0, 0]
    assert all(len(spell(word)) == SLOTS for word in WORDS)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_questions_are_answered_by_the_graph(seed: int) -> None:
    scene = make_scene(seed)
    questions = ask(scene, tuple(KINDS))
    assert len({q.text for q in questions}) == len(questions) == 3 * len(scene.signs)
    by_colour = {sign.colour: sign for sign in scene.signs}
    by_text = {sign.text: sign for sign in scene.signs}
    for question in questions:
        words = question.text.rstrip("?").split()
        if question.kind == "colour":
            assert question.answer == by_text[words[-1]].colour
        else:
            sign = by_colour[words[-2]]
            assert question.answer == (sign.text if question.kind == "read" else sign.place)
        if question.kind == "read":
            assert words[1] == ("number" if question.answer.isdigit() else "word")
    listed = describe(scene).split(", ")
    assert {tuple(item.split()[:2]) for item in listed} == {(s.colour, s.text) for s in scene.signs}
