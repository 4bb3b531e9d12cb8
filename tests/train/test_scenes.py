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
from llava.train.items import GRID, IMAGE_SIZE, PATCH_SIZE, Sign, Thing, overlap
from llava.train.labels import COLOUR, KIND, LOOK, SLOTS, caption, label_patches, spell
from llava.train.scenes import TEST_SEEDS, TRAINING_SEEDS, VALIDATION_SEEDS, Style, make_scene
from llava.train.vocabulary import PARTNERS, PATTERNS, SHAPES, UNSEEN_WORDS, WORDS

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
def test_items_are_apart_inside_and_legible(seed: int) -> None:
    scene = make_scene(seed)
    assert len(scene.signs) <= 3 and 1 <= len(scene.things) <= 5
    assert len({sign.colour for sign in scene.signs}) == len(scene.signs)
    assert len({sign.text for sign in scene.signs}) == len(scene.signs)
    for index, item in enumerate(scene.items):
        assert item.width / 2 < item.x < IMAGE_SIZE - item.width / 2
        assert item.height / 2 < item.y < IMAGE_SIZE - item.height / 2
        assert not any(overlap(item, other) for other in scene.items[:index])
    for sign in scene.signs:
        assert 14 <= sign.letter_height <= 36
        assert sign.text in (*WORDS, *UNSEEN_WORDS) or 10 <= int(sign.text) <= 99
        light, dark = sorted((_luminance(sign.rgb), _luminance(sign.ink)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 2.5, (sign.colour, sign.rgb, sign.ink)
    for thing in scene.things:
        assert thing.shape in SHAPES and thing.pattern in PATTERNS
        low, high = {"small": (28, 38), "large": (58, 74)}[thing.size]
        assert low <= thing.width == thing.height <= high


def test_popular_shapes_and_partners_come_often() -> None:
    scenes_ = [make_scene(seed) for seed in TRAINING_SEEDS[:600]]
    counts = {s: sum(t.shape == s for scene in scenes_ for t in scene.things) for s in SHAPES}
    popular = [counts[shape] for shape, weight in SHAPES.items() if weight == 2]
    others = [counts[shape] for shape, weight in SHAPES.items() if weight == 1]
    assert np.mean(popular) > 1.2 * np.mean(others)
    assert all(PARTNERS[PARTNERS[shape]] == shape for shape in SHAPES)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_a_window_holds_its_signs(seed: int) -> None:
    scene = make_scene(seed, Style(window=112, things=(1, 2), signs=(0, 1)))
    assert render(scene).size == (112, 112)
    assert scene.left % PATCH_SIZE == scene.top % PATCH_SIZE == 0
    assert len(scene.items) >= 1
    for sign in scene.items:
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


def test_things_look_as_the_graph_says() -> None:
    """Their colour, more of it the plainer they are."""
    shares: dict[str, list[float]] = {pattern: [] for pattern in PATTERNS}
    shapes = set()
    for seed in range(60):
        scene = make_scene(seed)
        picture = np.array(render(scene)).astype(int)
        for thing in scene.things:
            top, left = round(thing.y - thing.width / 2), round(thing.x - thing.width / 2)
            face = picture[top : top + thing.height, left : left + thing.width]
            share = (abs(face - thing.rgb).max(2) < 8).mean()
            assert share > 0.1, (thing.shape, thing.pattern)
            if thing.shape == "square":
                shares[thing.pattern].append(float(share))
            shapes.add(thing.shape)
    assert shapes == set(SHAPES)
    plain, striped, dotted = (np.mean(shares[pattern]) for pattern in PATTERNS)
    assert plain > 0.75 and 0.35 < striped < 0.65 and striped < dotted < 0.85


def test_place_names_the_cell_of_the_centre() -> None:
    def place(x: float, y: float) -> str:
        return Sign("red", (0, 0, 0), 0.0, x, y, 50, 30, "stop", (0, 0, 0), 20).place

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
    easy = Style(things=(1, 1), letters=(30, 40), window=112)
    hard = Style(window=112)
    assert easy.towards(hard, 0.0) == easy
    assert easy.towards(hard, 1.0) == hard
    assert easy.towards(hard, 0.5).letters == (22, 38)
    assert easy.towards(hard, 0.5).things == (2, 3)
    alike = Style(same_colour=0.5, made_up=1.0)
    assert alike.towards(Style(), 0.5) == Style(same_colour=0.375, made_up=0.5)


def test_a_style_can_make_up_words_and_repeat_colours() -> None:
    style = Style(signs=(3, 3), things=(4, 4), repeated=0.0, same_colour=1.0, made_up=1.0)
    words = set()
    for seed in TRAINING_SEEDS[:40]:
        scene = make_scene(seed, style)
        words |= {sign.text for sign in scene.signs if not sign.is_number}
        assert len({thing.colour for thing in scene.things}) <= 2  # one for pairs never shown
    assert len(words) > 40 and not words & {*UNSEEN_WORDS}
    assert len(words & {*WORDS}) <= 2
    assert set("".join(words)) <= set("".join(WORDS))


def test_patch_labels_follow_the_graph() -> None:
    sign = Sign("red", (205, 35, 40), 0.0, 168.0, 168.0, 120, 60, "stop", (255,) * 3, 28)
    star = Thing("blue", (40, 80, 205), 0.0, 35.0, 301.0, 70, 70, "star", "striped", "large")
    scene = scenes.Scene(0, 0, 0, IMAGE_SIZE, 4, bytes(48), (), (sign,), (star,))
    labels = label_patches(scene)
    on_sign = (labels.kind == KIND["sign"]).view(GRID, GRID)
    # plate from (108, 138) to (228, 198): patch centres 7 + 14 i inside are 8..15 and 10..13
    assert on_sign.nonzero().amin(0).tolist() == [10, 8]
    assert on_sign.nonzero().amax(0).tolist() == [13, 15]
    assert int(on_sign.sum()) == 4 * 8
    flat = on_sign.flatten()
    assert labels.colour[flat].unique().tolist() == [COLOUR["red"]]
    assert labels.weight[flat].sum() == pytest.approx(1)
    assert labels.text[flat].unique(dim=0).tolist() == [spell("stop")]
    assert labels.centre[flat].unique(dim=0).tolist() == [[0.5, 0.5]]
    assert labels.look[flat].unique().tolist() == [0]
    letters = labels.letter.view(GRID, GRID)[11]
    order = [int(c) for c in letters.unique_consecutive() if c > 0]
    assert order == spell("stop")[:4]

    on_star = labels.kind == KIND["star"]
    assert int(on_star.sum()) == 5 * 5
    assert labels.look[on_star].unique().tolist() == [LOOK["striped", "large"]]
    assert labels.weight.sum() == pytest.approx(2)
    assert labels.letter[on_star].unique().tolist() == [0]


def test_a_caption_names_all_that_a_patch_can_show() -> None:
    sign = Sign("red", (0, 0, 0), 0.0, 0.0, 0.0, 9, 9, "42", (0, 0, 0), 20)
    star = Thing("blue", (0, 0, 0), 0.0, 0.0, 0.0, 9, 9, "star", "striped", "large")
    assert caption(sign) == [COLOUR["red"], KIND["sign"], 0, *spell("42")]
    assert caption(star) == [COLOUR["blue"], KIND["star"], LOOK["striped", "large"], *spell("")]


def test_patch_labels_of_a_window_are_those_of_the_picture() -> None:
    window = make_scene(5, Style(window=112, things=(1, 2), signs=(1, 1), letters=(14, 20)))
    whole = scenes.Scene(0, 0, 0, IMAGE_SIZE, 4, bytes(48), (), window.signs, window.things)
    row, column = window.top // PATCH_SIZE, window.left // PATCH_SIZE
    for name in ("colour", "kind", "look", "letter", "text", "centre"):
        full = getattr(label_patches(whole), name).unflatten(0, (GRID, GRID))
        part = getattr(label_patches(window), name).unflatten(0, (8, 8))
        assert torch.equal(full[row : row + 8, column : column + 8], part)
        assert int((full > 0).sum()) == int((part > 0).sum())


def test_spelling_pads_to_the_longest_word() -> None:
    assert spell("42") == [31, 29, 0, 0, 0]
    assert all(len(spell(word)) == SLOTS for word in (*WORDS, *UNSEEN_WORDS))
