"""What the decoder should know at a token: which tokens are asked, and the exact losses."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llava.constants import IGNORE_INDEX
from llava.model.tokenizer import load_tokenizer
from llava.train.data import TurnEncoder, make_batch
from llava.train.labels import COLOUR, KIND, LOOK
from llava.train.pointing import (
    FOCUS,
    MENTION,
    Comparable,
    Compared,
    compared,
    focus,
    mentions,
    via,
)
from llava.train.questions import KINDS, ask
from llava.train.readouts import DEPTH, ReadOuts
from llava.train.recipe import Stage
from llava.train.scenes import TRAINING_SEEDS, Style, make_scene
from llava.train.turns import Turn, View
from llava.train.watching import outputs_of

LAYERS, WIDTH, VOCABULARY = 12, 8, 32


@pytest.fixture(scope="module")
def encoder() -> TurnEncoder:
    return TurnEncoder(load_tokenizer("playground/demo/llava-demo"))


def test_what_is_compared_gives_the_answer() -> None:
    kinds: dict[Comparable, set[str]] = defaultdict(set)
    for seed in TRAINING_SEEDS[:20]:
        scene = make_scene(seed)
        for question in ask(scene, KINDS):
            found = compared(question, scene)
            if found is None:
                continue
            what, *ends = found
            kinds[what].add(question.kind)
            if what == Comparable.NUMBERS:
                value, than = ends
                assert question.targets[0].text == str(value)
                assert (value > than) == (("larger" in question.text) == (question.answer == "yes"))
                continue
            one, other = (scene.items[index] for index in ends)
            assert (one, other) == question.targets[-2:]
            is_left = "to the left of" in question.text and question.answer == "yes"
            if is_left or question.answer == "left":
                assert one.x < other.x
            if what == Comparable.COLOURS:
                assert (one.colour == other.colour) == (question.answer == "yes")
    assert kinds == {
        Comparable.PLACES: {"is side", "choose side", "twin side"},
        Comparable.COLOURS: {"same color"},
        Comparable.NUMBERS: {"number"},
    }


def test_what_is_on_the_way_is_named_and_is_not_the_focus() -> None:
    kinds = set()
    for seed in TRAINING_SEEDS[:20]:
        scene = make_scene(seed)
        for question in ask(scene, KINDS):
            if (index := via(question, scene)) is not None:
                kinds.add(question.kind)
                assert any(index in items for _, items in mentions(question.text, scene))
                assert index not in focus(question, scene)
    assert kinds == {"beside", "twin shape", "twin pattern", "twin side"}


@pytest.mark.parametrize(("options", "word"), [("\nA. blue\nB. red", "red"), ("\nA. 0\nB. 4", "4")])
def test_a_choice_is_asked_for_its_answer_in_words(
    encoder: TurnEncoder, options: str, word: str
) -> None:
    text = f"What is it?{options}\nAnswer with a letter."
    pair = Compared(Comparable.PLACES, 3, 1)
    turns = encoder.pack([[Turn(text, "B", via=2, compared=pair), Turn("What color?", "red")]])
    begins = turns.labels.roll(-1, 1).ne(IGNORE_INDEX) & turns.labels.eq(IGNORE_INDEX)
    first = begins[0].nonzero()[0]
    assert torch.equal(turns.spoken[0].ne(IGNORE_INDEX).nonzero()[0], first)
    assert encoder.tokenizer.decode([int(turns.spoken[0, first])]) == word
    assert (turns.compared[0] >= 0).all(-1).nonzero().tolist() == [first.tolist()]
    assert turns.compared[0, first].tolist() == [[Comparable.PLACES, 3, 1]]
    assert turns.via[0].tolist() == [2 if place == first else -1 for place in range(len(begins[0]))]
    hidden = encoder.pack([[Turn(text, "B", View.HIDDEN)]])
    assert hidden.spoken.eq(IGNORE_INDEX).all()


def _decoder() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_attention_heads=2,
        num_hidden_layers=LAYERS,
    )
    return LlamaForCausalLM(config)


def _read_out(
    turns_of: list[Turn], encoder: TurnEncoder
) -> tuple[dict[str, torch.Tensor], set[int]]:
    """Losses of heads that say nothing, on the first training scene, and the layers they move."""
    torch.manual_seed(0)
    decoder = _decoder()
    readouts = ReadOuts(decoder)
    batch = make_batch([make_scene(TRAINING_SEEDS[0])], encoder.pack([turns_of]))
    length = batch.turns.ids.shape[1]
    with outputs_of(readouts.layers) as states:
        decoder(inputs_embeds=torch.randn(1, 5 + length, WIDTH))
    found = readouts(states, batch.turns, batch.labels)
    sum(found[name] for name in DEPTH if name in found).backward()
    for parameter in readouts.parameters():
        torch.nn.init.zeros_(parameter)
    found = readouts(states, batch.turns, batch.labels)
    layers = {
        index
        for index, layer in enumerate(decoder.model.layers)
        if (gradient := layer.mlp.up_proj.weight.grad) is not None and gradient.any()
    }
    return {name: value.detach() for name, value in found.items()}, layers


def test_a_mention_knows_what_it_names(encoder: TurnEncoder) -> None:
    scene = make_scene(TRAINING_SEEDS[0])
    question = next(q for q in ask(scene, ("color",)) if len(q.targets) == 1)
    named = tuple(mentions(question.text, scene))
    turn = Turn(question.text, question.answer, View.PICTURE, named)
    found, layers = _read_out([turn], encoder)
    assert found.keys() == {"named", "named_text_right", "named_centre"}
    target = question.targets[0]
    centre = 10 * ((target.x / 336) ** 2 + (target.y / 336) ** 2)
    # heads that find all classes alike; a thing has no text, so the text's loss counts nothing
    expected = sum(math.log(len(names) + 1) for names in (KIND, COLOUR, LOOK)) + centre
    assert float(found["named"]) == pytest.approx(expected, rel=1e-4)
    assert layers == {0, 1, 2, 3}


def test_an_answer_knows_its_focus_and_the_way_between_two(encoder: TurnEncoder) -> None:
    scene = make_scene(TRAINING_SEEDS[0])
    question = next(iter(ask(scene, ("choose side",))))
    one, other = question.targets
    pair = compared(question, scene)
    found, layers = _read_out([Turn("Which?", "left", focus=(pair.first,), compared=pair)], encoder)
    assert found.keys() == {"read", "read_text_right", "read_centre", "way"}
    way = 10 * (((one.x - other.x) / 336) ** 2 + ((one.y - other.y) / 336) ** 2)
    assert float(found["way"]) == pytest.approx(way, rel=1e-4)
    assert layers == set(range(8))


def test_an_answer_knows_what_is_on_the_way_two_colours_and_two_numbers(
    encoder: TurnEncoder,
) -> None:
    found, layers = _read_out([Turn("Which?", "red", via=0)], encoder)
    assert found.keys() == {"via", "via_text_right", "via_centre"} and layers == set(range(5))
    two = Turn("Same?", "no", compared=Compared(Comparable.COLOURS, 0, 1))
    found, layers = _read_out([two], encoder)
    assert found.keys() == {"colours", "colours_right"} and layers == set(range(8))
    assert float(found["colours"]) == pytest.approx(math.log(len(COLOUR) + 1), rel=1e-4)
    numbers = Turn("Larger?", "no", compared=Compared(Comparable.NUMBERS, 20, 50))
    found, layers = _read_out([numbers], encoder)
    assert found.keys() == {"numbers"} and layers == set(range(8))
    assert float(found["numbers"]) == pytest.approx(10 * (0.2**2 + 0.5**2), rel=1e-4)


def test_what_names_none_or_several_is_not_read(encoder: TurnEncoder) -> None:
    turn = Turn("Are they there?", "no", mentions=((8, ()), (12, (0, 1))), focus=(0, 1))
    turns = encoder.pack([[turn]])
    assert {MENTION, FOCUS} <= set(turns.pointing.flatten().tolist())
    readouts = ReadOuts(_decoder())
    states = dict.fromkeys(DEPTH, torch.zeros(*turns.ids.shape, WIDTH))
    batch = make_batch([make_scene(TRAINING_SEEDS[0])], turns)
    assert readouts(states, batch.turns, batch.labels) == {}


def test_guidance_grows_during_four_warm_ups() -> None:
    stage = Stage("s", 1000, 8, Style(), Style(), rate=1e-3, turns=4, pointing=0.2, warmup=50)
    assert stage.guidance(0) == pytest.approx(0.001)
    assert stage.guidance(99) == pytest.approx(0.1)
    assert stage.guidance(199) == stage.guidance(900) == 0.2
