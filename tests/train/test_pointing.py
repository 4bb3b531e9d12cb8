"""What questions point to, and the loss that asks attention to go there."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llava.constants import IGNORE_INDEX
from llava.model.tokenizer import load_tokenizer
from llava.train.data import TurnEncoder
from llava.train.items import Sign, Thing
from llava.train.pointing import (
    CHOOSES,
    FOCUS,
    MENTION,
    RIGHT,
    AttentionGuide,
    focus,
    mentions,
    right_option,
)
from llava.train.question import Question
from llava.train.questions import KINDS, ask
from llava.train.scenes import TRAINING_SEEDS, Scene, make_scene
from llava.train.turns import Turn, View
from llava.train.watching import outputs_of

LAYERS, BEFORE, TEXT = 12, 6, 3  # one token before five patches, then three tokens of text


def _thing(colour: str, shape: str, x: float) -> Thing:
    return Thing(colour, (0, 0, 0), 0.0, x, 40.0, 30, 30, shape, "plain", "small")


@pytest.fixture
def scene() -> Scene:
    """0 red circle, 1 blue circle, 2 red star, 3 sign STOP top left, 4 sign 42 on the right."""
    signs = (
        Sign("green", (0, 0, 0), 0.0, 30.0, 30.0, 40, 20, "stop", (9, 9, 9), 14),
        Sign("black", (0, 0, 0), 0.0, 300.0, 160.0, 40, 20, "42", (9, 9, 9), 14),
    )
    things = (
        _thing("red", "circle", 100.0),
        _thing("blue", "circle", 200.0),
        _thing("red", "star", 300.0),
    )
    return replace(make_scene(5), things=things, signs=signs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Is there a red circle in the image?", [("a red circle", (0,))]),
        ("How many circles are there in the image?", [("How many circles", (0, 1))]),
        ("Is there a moon in the image?", [("a moon", ())]),
        (
            "Is the star to the left of the blue object?",
            [("Is the star", (2,)), ("the blue object", (1,))],
        ),
        ("What color is the sign that says 42?", [("sign that says 42", (4,))]),
        ("What does the sign at the top left say?", [("the sign at the top left", (3,))]),
        (
            "What pattern does the object with the same color as the star have?",
            [("color as the star", (2,))],
        ),
        ("Is the star red?\nA. the circle", [("Is the star", (2,))]),
    ],
)
def test_mentions_are_found(
    scene: Scene, text: str, expected: list[tuple[str, tuple[int, ...]]]
) -> None:
    found = list(mentions(text, scene))
    assert [items for _, items in found] == [items for _, items in expected]
    for (end, _), (phrase, _) in zip(found, expected, strict=True):
        assert text[:end].endswith(phrase)


def test_every_question_mentions_something_and_names_its_targets() -> None:
    for seed in TRAINING_SEEDS[:20]:
        drawn = make_scene(seed)
        for question in ask(drawn, KINDS):
            named = list(mentions(question.text, drawn))
            assert named, question.text
            if re.match("Is|Where|What (color|shape|pattern)", question.text) and question.targets:
                first = drawn.items.index(question.targets[0])
                assert any(first in items for _, items in named), question.text


def test_the_focus_is_what_the_answer_is_read_from(scene: Scene) -> None:
    red_circle, blue_circle, star, *_ = scene.items
    both = Question("same color", "Do they?", "yes", (red_circle, star), 2)
    assert focus(both, scene) == (0, 2)
    beside = Question("beside", "What shape is below the star?", "circle", (star, blue_circle), 2)
    assert focus(beside, scene) == (1,)
    exists = Question("exists", "Is there a circle in the image?", "yes", (red_circle,))
    assert focus(exists, scene) == (0, 1)


def test_the_line_of_the_right_option_is_found() -> None:
    text = "What color is it?\nA. red\nB. blue\nAnswer with a letter."
    start, end = right_option(text, "B")
    assert text[start:end] == "\nB. blue"
    assert right_option(text, "blue") is None
    assert right_option("Is there a circle?", "7") is None


def test_tokens_of_mentions_and_options_are_marked(scene: Scene) -> None:
    encoder = TurnEncoder(load_tokenizer("playground/demo/llava-demo"))
    text = "What color is the star?\nA. blue\nB. red\n" + "Answer with a letter."
    named = tuple(mentions(text, scene))
    turns = encoder.pack([[Turn(text, "B", View.PICTURE, named, (2,))]])

    def words(places: torch.Tensor) -> str:
        return encoder.tokenizer.decode(turns.ids[0][places].tolist()).strip()

    assert words(turns.pointing[0] == MENTION) == "star"
    assert turns.items[0][turns.pointing[0] == MENTION].nonzero().tolist() == [[0, 2]]
    assert words(turns.options[0] == RIGHT) == "B. red"
    asks = turns.options[0] == CHOOSES
    assert torch.equal(asks, turns.pointing[0] == FOCUS)
    assert turns.labels[0].ne(IGNORE_INDEX).nonzero()[0] == asks.nonzero()[0] + 1
    hidden = encoder.pack([[Turn(text, "B", View.HIDDEN)]])
    assert not hidden.options.any() and not hidden.pointing.any()


def _guided(
    pointing: list[int], items: list[list[bool]], options: tuple[int, ...] = (0, 0, 0)
) -> dict[str, torch.Tensor]:
    """Losses of a decoder whose attention is uniform, as all its queries are 0."""
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_attention_heads=2,
        num_hidden_layers=LAYERS,
    )
    decoder = LlamaForCausalLM(config)
    for layer in decoder.model.layers:
        torch.nn.init.zeros_(layer.self_attn.q_proj.weight)
    guide = AttentionGuide(decoder)
    length = BEFORE + TEXT
    positions = torch.arange(length)[None]
    mask = torch.ones(length, length).tril().bool()[None, None]
    with outputs_of(guide.projections) as projected:
        decoder(inputs_embeds=torch.randn(1, length, 8), position_ids=positions)
    return guide.loss(
        projected,
        torch.tensor([pointing]),
        torch.tensor([items]),
        torch.tensor([options]),
        torch.tensor([[0, 0, 1, -1, -1]]),
        mask,
        positions,
    )


def test_the_loss_is_the_logarithm_of_the_attention_on_each_item() -> None:
    """The second text token sees 8 places: item 0 lies on two of them, item 1 on one."""
    found = _guided([0, MENTION, 0], [[False, False], [True, False], [False, False]])
    assert found.keys() == {"mention", "mention_share"}
    assert float(found["mention"].detach()) == pytest.approx(-math.log(2 / 8), rel=1e-5)
    assert float(found["mention_share"]) == pytest.approx(2 / 8, rel=1e-5)
    found = _guided([0, 0, FOCUS], [[False, False], [False, False], [True, True]])
    expected = (-math.log(2 / 9) - math.log(1 / 9)) / 2
    assert float(found["focus"].detach()) == pytest.approx(expected, rel=1e-5)


def test_what_is_not_there_attends_to_bos() -> None:
    found = _guided([MENTION, 0, 0], [[False, False]] * 3)
    assert float(found["mention"].detach()) == pytest.approx(-math.log(1 / 7), rel=1e-5)


def test_what_chooses_attends_to_the_right_option() -> None:
    """The last of nine places; the option is the two text tokens before it."""
    found = _guided([0, 0, 0], [[False, False]] * 3, (RIGHT, RIGHT, CHOOSES))
    assert found.keys() == {"option", "option_share"}
    assert float(found["option"].detach()) == pytest.approx(-math.log(2 / 9), rel=1e-5)


def test_only_half_of_the_heads_of_two_layers_are_guided() -> None:
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=8,
        num_attention_heads=4,
        num_hidden_layers=LAYERS,
    )
    decoder = LlamaForCausalLM(config)
    guide = AttentionGuide(decoder)
    positions = torch.arange(9)[None]
    mask = torch.ones(9, 9).tril().bool()[None, None]
    with outputs_of(guide.projections) as projected:
        decoder(inputs_embeds=torch.randn(1, 9, 16), position_ids=positions)
    items = torch.tensor([[[True], [False], [True]]])
    owner = torch.tensor([[0, 0, -1, -1, -1]])
    pointing, options = torch.tensor([[MENTION, 0, FOCUS]]), torch.zeros(1, 3)
    found = guide.loss(projected, pointing, items, options, owner, mask, positions)
    (found["mention"] + found["focus"]).backward()
    moved = {
        index
        for index, layer in enumerate(decoder.model.layers)
        if (gradient := layer.self_attn.q_proj.weight.grad) is not None and gradient.any()
    }
    assert {2, 5} <= moved  # layers before 5 also move, as they make its input
    query = decoder.model.layers[5].self_attn.q_proj.weight.grad
    assert query[:8].any() and not query[8:].any()
    assert not any(layer.self_attn.q_proj._forward_hooks for layer in decoder.model.layers)
