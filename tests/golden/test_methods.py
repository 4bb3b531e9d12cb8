"""FastV, SparseVLM, PyramidDrop, DART and VScan against recorded runs of their official code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llava.pruning.methods.sparsevlm import find_raters
from tests.closeness import FLOAT32, assert_close

from .replay import Recording, Replay

CASES = sorted((Path(__file__).parent / "methods").glob("*.json"))


@pytest.fixture(scope="module", params=CASES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> tuple[Recording, Replay]:
    recording = Recording(request.param)
    return recording, Replay(recording)


def test_the_same_tokens_enter_every_layer(case: tuple[Recording, Replay]) -> None:
    recording, replay = case
    entering, recycled = replay.tokens
    for layer, patches in recording.entering.items():
        assert entering[layer] == patches, layer
    for entry in recording.layers:
        assert len(entering[entry["layer"]]) == entry["n_visual_entering"]
    assert recycled == recording.recycled
    if (numbers := recording.facts.get("raters_by_same_expression")) is not None:
        raters = find_raters(replay.layout, replay.embeds)[0]
        assert torch.where(raters)[0].tolist() == numbers


def test_positions_and_what_each_layer_holds(case: tuple[Recording, Replay]) -> None:
    recording, replay = case
    assert recording.positions
    for layer, positions in recording.positions.items():
        assert replay.positions(layer) == positions, layer
    lengths = recording.facts.get("cache_lengths_after_prefill_or_step", replay.lengths)
    decoded = lengths[0] - replay.lengths[0]
    assert decoded in (0, 1) and lengths == [length + decoded for length in replay.lengths]
    decode_positions = replay.decode_positions.expand(len(replay.lengths), 1, 1)
    assert decode_positions.flatten().tolist() == [p - decoded for p in recording.decode_positions]


def test_states_of_text_of_merged_tokens_and_of_the_decoded_token(
    case: tuple[Recording, Replay],
) -> None:
    recording, replay = case
    tensors = dict(recording.tensors)
    text = tensors.pop("text_rows")
    assert_close(replay.hidden[-len(text) :], text, FLOAT32)
    assert_close(replay.step, tensors.pop("decode_step"), FLOAT32)
    if (before := tensors.pop("text_rows_before_norm", None)) is not None:
        assert_close(replay.states[-1][-len(before) :], before, FLOAT32)
    for name, states in tensors.items():
        if name.startswith("merged_entering_"):
            seen = replay.visual_states(int(name.removeprefix("merged_entering_")))[-len(states) :]
        else:
            count = int(name.removeprefix("first_").removesuffix("_visual_embeds"))
            seen = replay.visual_states(0)[:count]
        assert_close(seen, states, FLOAT32)


@pytest.mark.parametrize(("name", "same"), [("dart_t128", 123), ("dart_t64", 62)])
def test_pivots_of_dart_in_the_order_of_its_sets(name: str, same: int) -> None:
    """How many tokens stay in either order, as the official code has it with Python's own sets."""
    recording = Recording(Path(__file__).parent / "methods" / f"{name}.json")
    pruner = replace(recording.pruner, pivot_order="set")
    entering, _ = Replay(recording, pruner).tokens
    assert len(entering[2]) == len(recording.entering[2])
    assert len({*entering[2]} & {*recording.entering[2]}) == same
