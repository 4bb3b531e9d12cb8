"""The settings of the methods: names, presets, refusals, and their way through JSON."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, fields

import pytest

from llava import pruning
from llava.pruning.checks import declared_types
from llava.pruning.methods.autoprune import AutoPrune

# What the table at the head of llava/pruning/methods/autoprune/settings.py says of each preset.
DOCUMENTED = {
    "released": {
        "preselect_ratio": 2.5,
        "preselect_text": 0.3,
        "letterbox_mask": True,
        "mi_layer": 1,
        "normalise_rows": False,
        "mi_heads": "sum",
        "log_base": 2.0,
        "mi_eps": 1e-6,
        "clamp_slope": True,
        "inflection": "slope",
        "amplitude": 0.75,
        "analytic_area": False,
        "rounding": "ceil",
        "recycle_ratio": 0.3,
        "positions": "compact",
        "prune_last_layer": True,
    },
    "paper": {
        "preselect_ratio": None,
        "letterbox_mask": False,
        "mi_layer": 1,
        "normalise_rows": True,
        "mi_heads": "mean",
        "log_base": math.e,
        "mi_eps": 0.0,
        "clamp_slope": False,
        "inflection": "beta",
        "beta": 0.2,
        "amplitude": 1.0,
        "analytic_area": True,
        "rounding": "floor",
        "recycle_ratio": 0.0,
        "positions": "original",
        "prune_last_layer": False,
    },
    "balanced": {
        "budget_mode": "strict",
        "indicator": "static",
        "x0": 8.0,
        "preselect_at": "entry",
        "preselect_ratio": 2.5,
        "preselect_candidates": 2.0,
        "rank_rows": "last",
        "recycle_ratio": 0.0,
        "positions": "original",
        "prune_last_layer": False,
    },
}
COMMON = {
    "preselect_at": "layer_0",
    "preselect_candidates": 1.0,
    "target_token_num": 64,
    "target_fraction": None,
    "budget_per": "sample",
    "tile_scores": "raw",
    "border_mask": False,
    "budget_mode": "published",
    "target_flops": None,
    "target_kv": None,
    "indicator": "mutual_information",
    "curve": "logistic",
    "x0": 14.9,
    "k0": 0.4,
    "gamma": 0.2,
    "cap_ratio": None,
    "rank_rows": "text",
    "mi_rows": "text",
    "prune_every": 1,
    "to_the_letter": True,
    "tower_scores": "cls",
}


@pytest.mark.parametrize("preset", DOCUMENTED)
def test_preset_sets_what_its_table_says(preset: str) -> None:
    pruner = pruning.build("autoprune", preset=preset)
    expected = {**COMMON, **DOCUMENTED[preset]}
    assert {name: getattr(pruner, name) for name in expected} == expected
    assert pruner.needs_cls is (preset != "paper")


def test_every_field_is_documented_and_every_preset_tested() -> None:
    documented = set(COMMON) | set(DOCUMENTED["released"]) | set(DOCUMENTED["paper"])
    assert {field.name for field in fields(AutoPrune)} == documented
    assert set(AutoPrune.presets) == set(DOCUMENTED)


def test_released_is_the_default_and_settings_win_over_a_preset() -> None:
    assert pruning.build("autoprune") == pruning.build("autoprune", preset="released")
    assert pruning.build("autoprune") == AutoPrune()
    mixed = pruning.build("autoprune", preset="paper", rounding="ceil", x0=7)
    assert (mixed.rounding, mixed.x0, mixed.amplitude) == ("ceil", 7, 1.0)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("autoprun", {}, "unknown method 'autoprun'; did you mean 'autoprune'?"),
        ("zzz", {}, "unknown method 'zzz'"),
        ("idpruner", {}, "method idpruner is not implemented: its importance comes from"),
        ("sparsevila", {"target_token_num": 64}, "its code is not public"),
        ("autoprune", {"preset": "papr"}, "unknown preset 'papr'; did you mean 'paper'?"),
        ("autoprune", {"target_tokens": 3}, "did you mean 'target_token_num'?"),
        ("autoprune", {"gama": 3}, "unknown setting of method autoprune 'gama'; did you mean"),
        ("none", {"x0": 3}, "unknown setting of method none 'x0'"),
        ("none", {"preset": "paper"}, "method none has no presets"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(method: str, settings, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        pruning.build(method, **settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("method", pruning.METHODS)
def test_settings_survive_json(method: str) -> None:
    pruner = pruning.build(method)
    assert pruning.build(**json.loads(json.dumps(pruner.to_dict()))) == pruner


def test_changed_settings_survive_json() -> None:
    pruner = pruning.build("autoprune", preset="paper", target_flops=0.31, gamma=1 / 3)
    written = json.loads(json.dumps(pruner.to_dict()))
    assert written["method"] == "autoprune"
    assert set(written) == {"method", *(field.name for field in fields(AutoPrune))}
    assert pruning.build(**written) == pruner


def test_settings_are_frozen_and_hashable() -> None:
    pruner = AutoPrune()
    with pytest.raises(FrozenInstanceError):
        pruner.x0 = 3.0
    assert hash(pruner) == hash(AutoPrune())
    with pytest.raises(TypeError):
        AutoPrune(64)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_token_num", 0.5),
        ("target_token_num", math.nan),
        ("budget_mode", "loose"),
        ("target_flops", 0.0),
        ("target_flops", 1.01),
        ("target_kv", -0.1),
        ("x0", math.inf),
        ("k0", math.nan),
        ("gamma", -math.inf),
        ("beta", math.nan),
        ("inflection", "none"),
        ("indicator", "entropy"),
        ("indicator", None),
        ("curve", "step"),
        ("mi_layer", -1),
        ("prune_every", 0),
        ("prune_every", -4),
        ("mi_rows", "all"),
        ("mi_heads", "max"),
        ("mi_eps", -1e-9),
        ("log_base", 1.0),
        ("amplitude", 0.0),
        ("amplitude", math.inf),
        ("rounding", "nearest"),
        ("cap_ratio", 0.9),
        ("preselect_ratio", 0.0),
        ("preselect_ratio", math.inf),
        ("preselect_text", math.nan),
        ("recycle_ratio", -0.1),
        ("recycle_ratio", 1.1),
        ("rank_rows", "first"),
        ("positions", "dense"),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(field: str, value) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be .*, got "):
        AutoPrune(**{field: value})


WRONG = (math.nan, math.inf, -math.inf, 1e308, 10**20, 10**400, "x", [], {}, [[1]], {"a": []})


@pytest.mark.parametrize("method", pruning.METHODS)
def test_every_field_is_held_to_its_declared_type(method: str) -> None:
    cls = pruning.METHODS[method]
    for field in fields(cls):
        options = declared_types(cls)[field.name]
        numbers = {int, float} & set(options)
        for value in (*WRONG, *([True] if numbers else [])):
            with pytest.raises(ValueError, match=f"^{field.name} must be .*, got ") as refused:
                cls(**{field.name: value})
            assert len(str(refused.value)) < 300


def test_two_budgets_are_refused() -> None:
    with pytest.raises(ValueError, match="target_flops or target_kv, not both"):
        AutoPrune(target_flops=0.5, target_kv=0.5)
