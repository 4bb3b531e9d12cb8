"""The prefills that are timed are the models they are said to be, and take turns."""

from __future__ import annotations

import pytest
import torch

from llava import pruning
from llava.analysis import prefills
from llava.analysis.prefills import PrefillRun, Setup, Timing, build, make_input, take_turns

SETUP = Setup(
    hidden=64,
    intermediate=96,
    layers=4,
    heads=4,
    device=torch.device("cpu"),
    dtype=torch.float32,
    text_tokens=9,
)


def test_dense_is_transformers_own_model_on_the_same_weights() -> None:
    decoders = build(SETUP)
    embeds, layout = make_input(SETUP, 48, 2)
    dense = PrefillRun(decoders, embeds, layout)
    unpruned = PrefillRun(decoders, embeds, layout, pruning.build("none"))
    with torch.inference_mode():
        assert torch.equal(dense(), unpruned())
        token = decoders.head(dense()[:, -1]).argmax(-1).tolist()
        assert dense.first_token() == unpruned.first_token() == token
    assert embeds.shape == (2, 48 + 9, 64) and not torch.equal(embeds[0], embeds[1])
    assert decoders.stock.layers[0] is decoders.ours.layers[0]


def test_building_leaves_the_default_dtype_alone() -> None:
    decoders = build(Setup(**{**vars(SETUP), "dtype": torch.float16}))
    assert decoders.ours.layers[0].mlp.up_proj.weight.dtype == torch.float16
    assert decoders.shape.kv_dtype_bytes == 2
    assert torch.get_default_dtype() == torch.float32


def test_both_decoders_get_the_attention_backend() -> None:
    decoders = build(SETUP)
    decoders.set_attention("eager")
    assert decoders.ours.config._attn_implementation == "eager"
    assert decoders.stock.config._attn_implementation == "eager"
    assert decoders.ours.layers[0].self_attn.config.unwatched._attn_implementation == "eager"


def test_the_cost_is_that_of_the_last_pruned_call() -> None:
    decoders = build(SETUP)
    pruner = pruning.build("fastv", depth=1, target_token_num=24)
    prefill = PrefillRun(decoders, *make_input(SETUP, 48, 1), pruner)
    with pytest.raises(ValueError, match="has run with a pruner"):
        prefill.cost()
    with torch.inference_mode():
        prefill()
    # All 48 enter layer 0, and 24 each of the other three.
    assert prefill.cost().tokens_entering == (48 + 3 * 24) / 4


def test_runs_take_turns_until_the_time_is_up() -> None:
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    device = torch.device("cpu")
    timings = take_turns(runs, device, 3)
    assert "".join(calls) == "ababab"
    assert [len(t) for t in timings.values()] == [3, 3] and timings["a"][0].peak is None

    calls.clear()
    take_turns(runs, device, 5, until=2.5, clock=lambda: len(calls) / 2)
    assert "".join(calls) == "ababab"  # turns begin at 0, 1 and 2
    calls.clear()
    take_turns(runs, device, 5, until=-1.0, clock=lambda: 0.0)
    assert "".join(calls) == "ab"  # the first there always is


def test_memory_is_that_of_the_measured_device(monkeypatch) -> None:
    device, asked = torch.device("cuda:1"), []

    def say(name, value=None):
        return lambda device: asked.append((name, device)) or value

    for name, value in [
        ("reset_peak_memory_stats", None),
        ("memory_allocated", 100),
        ("max_memory_allocated", 250),
        ("synchronize", None),
    ]:
        monkeypatch.setattr(prefills.torch.cuda, name, say(name, value))
    timing = prefills.timed(lambda: asked.append(("run", device)), device)
    assert isinstance(timing, Timing) and timing.peak == 150
    assert {where for _, where in asked} == {device}
    names = [name for name, _ in asked]
    assert names.index("reset_peak_memory_stats") < names.index("run")
    assert names.index("run") < names.index("max_memory_allocated")
