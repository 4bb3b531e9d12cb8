"""Methods on the vision side keep what their official code kept, in its order, and hand on the same
features; AutoPrune from pixels to answers. All files of `vision/` are replayed."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from llava.mm_utils import letterbox_mask
from tests.closeness import assert_close

from . import vision_replay as replay
from .vision_replay import Case

DATA = Path(__file__).parent / "vision"
#: Twelve to 24 layers deep: 4e-6 was seen.
FEATURES = 1e-4
_NOT_CASES = ("letterbox", "autoprune")


@cache
def recorded(method: str) -> dict[str, Any]:
    return json.loads((DATA / f"{method}.json").read_text(encoding="utf-8"))


@cache
def tensors(method: str) -> dict[str, Tensor]:
    path = DATA / f"{method}.safetensors"
    return load_file(path) if path.is_file() else {}


def cases(*methods: str) -> list[Case]:
    files = [path.stem for path in sorted(DATA.glob("*.json")) if path.stem not in _NOT_CASES]
    return [
        Case(method, name, facts)
        for method in methods or files
        for name, facts in recorded(method)["cases"].items()
    ]


def same_features(case: Case, features: Tensor) -> None:
    facts = case.facts
    assert len(features) == facts["tokens"] * (5 if "five" in case.parts else 1)
    room = FEATURES * facts["sum_abs"]
    assert float(features.double().sum()) == pytest.approx(facts["sum"], abs=room)
    assert float(features.double().abs().sum()) == pytest.approx(facts["sum_abs"], abs=room)
    known = tensors(case.method).get(case.name)
    if known is not None and len(known):
        assert_close(features.float(), known, FEATURES)


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.method}-{case.name}")
def test_what_is_kept_and_handed_on(case: Case) -> None:
    if case.method == "divprune":
        features, kept, order = replay.chosen(case)
        if "same" in case.parts:  # features are alike, and their last bits decide
            assert len(set(order)) == len(case.facts["order"])
            return
        assert order == case.facts["order"] and [kept] == case.facts["kept"]
    elif case.method == "tome":
        features, patch, sizes = replay.merged(case)
        assert sizes == case.facts["size"]
        # Each token has the id of a patch that ended in it.
        assert [case.facts["token_of_patch"][p] for p in patch] == list(range(len(patch)))
    elif case.fails_there:
        features, kept = replay.reduced(case)
        wanted = case.budget and case.budget * case.views
        assert len(features) == (wanted or sum(len(view) + 1 for view in kept))
        return
    else:
        features, kept = replay.reduced(case)
        if case.method == "vispruner" and not case.double:
            # The rounds of the diverse ones hang on last bits, which processors differ in: the
            # important ones are the same anywhere.
            share = float(case.name.split("_r")[1].split("_")[0])
            for ours, recorded_ids in zip(kept, case.facts["kept"], strict=True):
                assert len(ours) == len(recorded_ids)
                assert len({*ours} & {*recorded_ids}) >= share * len(recorded_ids)
            return
        assert kept == case.facts["kept"]
    if case.facts["tokens"]:
        same_features(case, features)


@pytest.mark.parametrize(
    "case",
    [Case("autoprune", *item) for item in recorded("autoprune")["cases"].items()],
    ids=lambda case: case.name,
)
def test_autoprune_from_pixels_to_an_answer(case: Case) -> None:
    facts = case.facts
    answer, rows, cache = replay.answered(case)
    trace = cache.trace
    first, complexity = trace.first, trace.samples[0].complexity
    cls, known = first.cls[first.is_visual], tensors("autoprune")
    if case.merge_type is None:
        cls = cls.masked_fill(first.letterbox[first.is_visual], 0)
    assert_close(cls, known[f"{case.name}.cls_attention"], FEATURES)
    assert complexity["mi"] == pytest.approx(facts["mi_layer1"], rel=FEATURES)
    assert complexity["k"] == pytest.approx(facts["k"], rel=FEATURES)
    assert trace.kept_patches(0)[1] == facts["kept_after_layer_0"]
    assert [layer.keys.shape[-2] for layer in cache.layers] == facts["kv_lengths"]
    assert trace.last.lengths[0] == facts["final_length"]
    assert trace.samples[0].pools[1:] == facts["pools"]
    for layer, kept in enumerate(facts["kept_columns"], start=1):
        assert replay.kept_columns(trace, layer, len(kept)) == kept
    begun = [1, *answer]
    assert begun == facts["tokens"]
    text_rows = known.get(f"{case.name}.text_rows")
    # Of two clusters, noise decides there which token is the centre.
    if text_rows is not None and 2 not in facts["clusters"]:
        assert_close(rows, text_rows, FEATURES)


@pytest.mark.parametrize("size", recorded("letterbox")["letterbox"])
def test_letterbox_mask(size: str) -> None:
    rows, columns, patches, which_rows, which_columns = recorded("letterbox")["letterbox"][size]
    width, height = map(int, size.split("x"))
    mask = letterbox_mask((width, height), 24).view(24, 24)
    assert mask.all(1).int().tolist() == which_rows and sum(which_rows) == rows
    assert mask.all(0).int().tolist() == which_columns and sum(which_columns) == columns
    assert int(mask.sum()) == patches
