"""How runs are written on the command line."""

from __future__ import annotations

import pytest

from llava import pruning
from llava.eval.compare.runs import parse_runs


def test_budgets_fields_and_presets() -> None:
    runs = parse_runs(
        ["none", "autoprune:192,64", "autoprune:64@preset=paper,budget_mode=strict", "no-image"]
    )
    assert [(run.name, run.pruner) for run in runs] == [
        ("none", pruning.build("none")),
        ("autoprune-192", pruning.build("autoprune", target_token_num=192)),
        ("autoprune-64", pruning.build("autoprune", target_token_num=64)),
        (
            "autoprune-64@budget_mode=strict,preset=paper",
            pruning.build("autoprune", preset="paper", target_token_num=64, budget_mode="strict"),
        ),
        ("no-image", pruning.build("no-image")),
    ]


def test_types_come_from_the_method() -> None:
    seeded, bound, without = parse_runs(
        ["random:64@seed=1", "autoprune@target_flops=2.5e-1", "autoprune:8@preselect_ratio=none"]
    )
    assert seeded.pruner.seed == 1 and seeded.name == "random-64@seed=1"
    assert bound.pruner.target_flops == 0.25 and bound.name == "autoprune@target_flops=2.5e-1"
    assert without.pruner.preselect_ratio is None


def test_flags_are_for_methods_that_have_them_and_runs_overrule_them() -> None:
    flags = {"x0": 7.0, "gamma": None}
    plain, own, dense = parse_runs(["autoprune:64", "autoprune:64@x0=3", "none"], flags)
    assert (plain.pruner.x0, plain.pruner.gamma) == (7, pruning.build("autoprune").gamma)
    assert own.pruner.x0 == 3 and dense.pruner == pruning.build("none")


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["autoprun:64"], "unknown method 'autoprun'; did you mean 'autoprune'"),
        (["none:64"], "run 'none:64': method none takes no budget"),
        (["autoprune:"], "a budget must be a number of tokens, got ''"),
        (["autoprune:many"], "got 'many'"),
        (["autoprune:0"], "target_token_num must be at least 1, got 0"),
        (["autoprune:64@"], "expected FIELD=VALUE behind @"),
        (["autoprune:64@x0"], "got 'x0'"),
        (["autoprune:64@x0=1,x0=2"], "x0 is there twice"),
        (["autoprune:64@x0=a/b"], "got 'x0=a/b'"),
        (["autoprune:64@gama=1"], "setting of method autoprune 'gama'; did you mean 'gamma'"),
        (["autoprune:64@preset=papre"], "unknown preset 'papre'; did you mean 'paper'"),
        (["autoprune:64@target_kv=0.5"], "give the budget or target_kv, not both"),
        (["random:64@seed=one"], "seed must be int, got 'one'"),
        (["autoprune 64"], "expected METHOD"),
        (["autoprune:64,32,64"], "autoprune-64 is there twice"),
        (["none", "none"], "none is there twice"),
    ],
)
def test_what_is_wrong_is_named(specs, message) -> None:
    with pytest.raises(ValueError, match=r"^run ") as error:
        parse_runs(specs)
    assert message in str(error.value)


def test_a_plan_of_runs_takes_several_numbers() -> None:
    (run,) = parse_runs(["pdrop:192@stages=8+16+24"])
    assert run.pruner == pruning.build("pdrop", target_token_num=192, stages=(8, 16, 24))
    assert run.name == "pdrop-192@stages=8+16+24"
