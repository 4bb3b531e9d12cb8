"""AutoPrune's switches, from the command line down to the tokens that a model keeps."""

from __future__ import annotations

import argparse

import pytest
import torch

from llava.mm_utils import letterbox_mask
from llava.pruning.arguments import add_pruning_arguments, pruner_from_args
from llava.pruning.trace import PruneTrace
from tests import tiny

# 36 visual tokens, at most 25 after the pre-selection, 10 a layer.
BASE = ("--target-token-num", "10", "--x0", "3")
SIZE = (84, 40)


@pytest.fixture(scope="module")
def model():
    return tiny.model(3, image_size=84)


@torch.no_grad()
def prefill(model, *items: str) -> tuple[torch.Tensor, PruneTrace]:
    """Last logits and trace of one wide picture's prompt under `--set` items."""
    parser = argparse.ArgumentParser()
    add_pruning_arguments(parser)
    flags = [part for item in items for part in ("--set", item)]
    out = model.generate(
        tiny.prompt(3)[None],
        images=tiny.pixels(3, size=84),
        image_sizes=[SIZE],
        pruner=pruner_from_args(parser.parse_args([*BASE, *flags])),
        do_sample=False,
        max_new_tokens=1,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return out.logits[0][0], out.past_key_values.trace


@pytest.fixture(scope="module")
def usual(model):
    logits, trace = prefill(model)
    sample = trace.samples[0]
    assert (sample.entering[:2], sum(sample.leaving) - 60) == ([36, 25], pytest.approx(0, abs=6))
    return logits, trace


def test_pre_selection(model, usual) -> None:
    _, trace = prefill(model, "preselect_ratio=none")
    assert trace.samples[0].entering[1] == 36
    assert trace.samples[0].rows[0] == 0 < usual[1].samples[0].rows[0]
    _, trace = prefill(model, "preselect_ratio=1.5")
    assert trace.samples[0].entering[1] == 15
    # The text term moves tokens in and out, not their number.
    _, trace = prefill(model, "preselect_text=1000")
    assert trace.samples[0].entering[1] == 25
    assert set(trace.kept_patches(0)[1]) != set(usual[1].kept_patches(0)[1])


@pytest.mark.parametrize(("every", "steps"), [(2, [0, 1, 3, 5]), (4, [0, 1, 5])])
def test_the_trace_shows_the_steps(model, usual, every: int, steps: list[int]) -> None:
    """Layer 0 is the pre-selection's; a step is where rows are looked at and tokens leave."""
    sample = prefill(model, f"prune_every={every}", "k0=1")[1].samples[0]
    assert [i for i in range(6) if sample.leaving[i] < sample.entering[i]] == steps
    assert [i for i in range(6) if sample.rows[i]] == steps
    assert [i for i in range(6) if sample.pools[i]] == steps[1:]
    assert sum(sample.leaving) == pytest.approx(60, abs=3)
    assert sum(map(bool, usual[1].samples[0].rows)) > len(steps)


def test_recycling(model, usual) -> None:
    assert max(usual[1].samples[0].pools) > 0 and any(usual[1].merged_patches(0))
    logits, trace = prefill(model, "recycle_ratio=0")
    assert trace.samples[0].pools == [0] * 6 and not any(trace.merged_patches(0))
    assert (logits - usual[0]).abs().max() > 1e-3


def test_letterbox_mask(model, usual) -> None:
    """With the mask, the picture's own patches go first: none is dropped for a padded one."""
    inside = {i for i, padded in enumerate(letterbox_mask(SIZE, 6).tolist()) if not padded}
    assert 20 <= len(inside) < 36

    def cut(*items: str) -> set[int]:
        _, trace = prefill(model, "preselect_ratio=1.5", "preselect_text=0", *items)
        return set(trace.kept_patches(0)[1])

    assert cut() <= inside
    assert not cut("letterbox_mask=false") <= inside


def test_positions(model, usual) -> None:
    logits, trace = prefill(model, "positions=original")
    assert trace.samples[0].entering[:2] == usual[1].samples[0].entering[:2]
    assert (logits - usual[0]).abs().max() > 1e-3


def test_layer_of_the_mutual_information(model) -> None:
    # Of 60 tokens that leave the 6 layers, 15 leave each of the first three.
    before, after = (
        prefill(model, "preselect_ratio=1.5", f"mi_layer={layer}")[1].samples[0] for layer in (1, 3)
    )
    assert before.entering[2] < 15
    assert after.entering[1:5] == [15, 15, 15, after.leaving[3]] and after.leaving[3] < 15
    assert after.rows[1:4] == [0, 0, before.rows[1]]
    assert abs(after.complexity["mi"] - before.complexity["mi"]) > 1e-3


def test_rows_made_distributions(model, usual) -> None:
    before, after = usual[1].samples[0].complexity, prefill(model, "normalise_rows=true")[1]
    # Rows on the image alone hold all their mass, and with it more information.
    assert after.samples[0].complexity["mi"] > before["mi"] + 0.1


def test_indicators(model, usual) -> None:
    found = {"mi": usual[1].samples[0]}
    for name in ("mean_attention", "cosine_similarity", "static"):
        # Enough for the value of the indicator to show in whole tokens.
        found[name] = prefill(model, f"indicator={name}", "gamma=0.6")[1].samples[0]
    for name, sample in found.items():
        k = {"k", "x0", "scale"}
        assert set(sample.complexity) == (k if name == "static" else k | {name})
        assert sample.entering[:2] == [36, 25]
    assert 0 < found["mean_attention"].complexity["mean_attention"] < 1
    assert -1 < found["cosine_similarity"].complexity["cosine_similarity"] < 1
    assert found["static"].complexity["k"] == 0.4
    slopes = {round(sample.complexity["k"], 6) for sample in found.values()}
    assert len(slopes) == 4
    assert found["static"].leaving != found["mean_attention"].leaving


def test_curves(model, usual) -> None:
    settings = ("indicator=static", "recycle_ratio=0")
    leaving = {
        name: tuple(prefill(model, f"curve={name}", *settings)[1].samples[0].leaving)
        for name in ("logistic", "linear", "tanh", "exponential")
    }
    assert len(set(leaving.values())) == 4
    for counts in leaving.values():
        assert sorted(counts, reverse=True) == list(counts)
        assert abs(sum(counts) - 60) <= 3
