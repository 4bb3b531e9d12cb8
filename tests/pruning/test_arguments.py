"""The command-line flags of pruning."""

from __future__ import annotations

import argparse

import pytest

from llava import pruning
from llava.pruning import Pruner
from llava.pruning.arguments import add_pruning_arguments, pruner_from_args
from llava.pruning.methods.autoprune import AutoPrune
from llava.pruning.methods.dense import Dense
from llava.pruning.methods.pdrop import PDrop
from llava.pruning.methods.sparsevlm import SparseVLM


def parse(*flags: str) -> Pruner:
    parser = argparse.ArgumentParser()
    add_pruning_arguments(parser)
    return pruner_from_args(parser.parse_args(flags))


def test_no_flag_leaves_every_default_alone() -> None:
    assert parse() == AutoPrune()
    assert parse("--method", "none") == Dense()
    assert parse("--preset", "paper") == pruning.build("autoprune", preset="paper")


@pytest.mark.parametrize(
    ("flag", "text", "field", "value"),
    [
        ("--target-token-num", "128", "target_token_num", 128.0),
        ("--budget-mode", "strict", "budget_mode", "strict"),
        ("--target-flops", "0.25", "target_flops", 0.25),
        ("--target-kv", "0.5", "target_kv", 0.5),
        ("--x0", "7", "x0", 7.0),
        ("--k0", "0.5", "k0", 0.5),
        ("--gamma", "0.1", "gamma", 0.1),
        ("--beta", "-0.3", "beta", -0.3),
    ],
)
def test_each_flag_sets_its_field_and_nothing_else(flag, text, field, value) -> None:
    assert parse(flag, text) == AutoPrune(**{field: value})


@pytest.mark.parametrize(
    ("item", "field", "value"),
    [
        ("letterbox_mask=false", "letterbox_mask", False),
        ("normalise_rows=Yes", "normalise_rows", True),
        ("prune_last_layer=0", "prune_last_layer", False),
        ("analytic_area=1", "analytic_area", True),
        ("mi_layer=3", "mi_layer", 3),
        ("log_base=10", "log_base", 10.0),
        ("mi_eps=1e-8", "mi_eps", 1e-8),
        ("preselect_ratio=none", "preselect_ratio", None),
        ("preselect_ratio=3", "preselect_ratio", 3.0),
        ("cap_ratio=2.5", "cap_ratio", 2.5),
        ("rounding=floor", "rounding", "floor"),
        ("indicator=static", "indicator", "static"),
        ("curve=exponential", "curve", "exponential"),
        ("target_token_num=96", "target_token_num", 96.0),
    ],
)
def test_set_reads_a_value_as_the_type_of_its_field(item: str, field: str, value) -> None:
    pruner = parse("--set", item)
    assert pruner == AutoPrune(**{field: value})
    assert type(getattr(pruner, field)) is type(value)


def test_set_may_be_repeated_and_wins_over_flags_and_presets() -> None:
    pruner = parse(
        *("--x0", "7", "--preset", "paper"),
        *("--set", "x0=8", "--set", "amplitude=0.5", "--set", "mi_layer=2"),
    )
    assert (pruner.x0, pruner.amplitude, pruner.mi_layer) == (8.0, 0.5, 2)
    assert pruner.rounding == "floor"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("x0", "--set takes FIELD=VALUE, got 'x0'"),
        ("x=3", "unknown setting of method autoprune 'x'"),
        ("roundin=ceil", "did you mean 'rounding'?"),
        ("mi_layer=1.5", "mi_layer must be int, got '1.5'"),
        ("x0=deep", "x0 must be float, got 'deep'"),
        ("x0=none", "x0 must be float, got 'none'"),
        ("letterbox_mask=maybe", "letterbox_mask must be true or false, got 'maybe'"),
        ("rounding=nearest", "rounding must be one of ceil, floor, got 'nearest'"),
        ("curve=tanhh", "curve must be one of logistic, linear, tanh, exponential, got 'tanhh'"),
        ("indicator=mi", "indicator must be one of mutual_information, mean_attention, cosine_sim"),
        ("amplitude=-1", "amplitude must be above 0"),
    ],
)
def test_set_refuses_what_does_not_fit(item: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse("--set", item)
    assert message in str(caught.value)


def test_the_budget_and_curve_of_a_script_are_ignored_by_a_method_without_them() -> None:
    assert parse("--method", "none", "--target-token-num", "64", "--x0", "9") == Dense()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--set", "x0=9"), "unknown setting of method none 'x0'"),
        (("--preset", "paper"), "method none has no presets"),
    ],
)
def test_a_setting_or_preset_that_the_method_lacks_is_refused(flags, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse("--method", "none", *flags)


@pytest.mark.parametrize(
    "flags",
    [
        ("--method", "autopruned"),
        ("--method", "idpruner"),
        ("--preset", "mine"),
        ("--budget-mode", "loose"),
        ("--target-token-num", "many"),
    ],
)
def test_argparse_refuses_what_it_knows_to_be_wrong(flags, capsys) -> None:
    with pytest.raises(SystemExit):
        parse(*flags)
    assert flags[0] in capsys.readouterr().err


def test_a_method_that_is_not_here_says_why(capsys) -> None:
    with pytest.raises(SystemExit):
        parse("--method", "idpruner")
    message = capsys.readouterr().err
    assert "method idpruner is not implemented: its importance comes from VisionSelector" in message
    assert not pruning.NOT_IMPLEMENTED.keys() & pruning.METHODS.keys()


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="target_token_num must be at least 1"):
        parse("--target-token-num", "0")


def test_a_fraction_that_a_method_cannot_aim_at_is_refused() -> None:
    assert parse("--method", "random", "--target-token-num", "9", "--x0", "3").target_token_num == 9
    with pytest.raises(ValueError, match="random has no --target-flops"):
        parse("--method", "random", "--target-flops", "0.25")


def test_several_numbers_have_a_plus_between_them() -> None:
    """A comma would end the setting in a plan of runs."""
    pruner = parse("--method", "pdrop", "--set", "stages=8+16+24", "--set", "ratios=.5+.25+.125")
    assert pruner == PDrop(stages=(8, 16, 24), ratios=(0.5, 0.25, 0.125))
    assert parse("--method", "pdrop", "--set", "ratios=none") == PDrop()
    assert parse("--method", "sparsevlm", "--set", "version=1.5") == SparseVLM()
    last = parse("--method", "sparsevlm", "--set", "raters=last", "--set", "newlines=last")
    assert last == SparseVLM(raters="last", newlines="last")
    assert parse("--set", "to_the_letter=false") == AutoPrune(to_the_letter=False)
    with pytest.raises(ValueError, match="pivot_order must be one of set, norm, got 'falling'"):
        parse("--method", "dart", "--set", "pivot_order=falling")
    message = r"stages must be numbers \(int\) with \+ between them, got '8,16'"
    with pytest.raises(ValueError, match=message):
        parse("--method", "pdrop", "--set", "stages=8,16")
