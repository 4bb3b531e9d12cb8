"""The solver on problems small enough to be solved by hand, and its one message."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from llava.pruning.budget import Flow, Target, token_target
from llava.pruning.checks import BudgetError
from llava.pruning.solver import Problem, down, fill, nearest, solve, top_up, up


def problem(amount: float, **changes) -> Problem:
    """Of ten tokens 10 s and 5 s (rounded down, at least 1) leave two layers at a scale s."""

    def keep(scale: float) -> list[int]:
        return [max(int(10 * scale), 1), max(int(5 * scale), 1)]

    target = replace(token_target(amount / 2, 2, "leaving"), amount=amount)
    given = Problem(
        keep=keep,
        flow=lambda counts: Flow([10, counts[0]], counts),
        target=target,
        places=2,
        n_visual=10,
        where="somewhere",
        choices=nearest,
    )
    return replace(given, **changes)


@pytest.mark.parametrize(
    ("amount", "choices", "counts"),
    [
        # The counts leap from (5, 2) to (6, 3), which are 7 and 9 tokens.
        (8, nearest, (5, 2)),
        (8.5, nearest, (6, 3)),
        (8.5, down, (5, 2)),
        (7.5, up, (6, 3)),
        (7, up, (5, 2)),
        (8, fill, (6, 2)),
        (8, top_up((1, 0)), (5, 3)),
        (8, top_up((0, 1)), (6, 2)),
    ],
)
def test_what_is_chosen_between_both_sides_of_a_leap(amount, choices, counts) -> None:
    scale, chosen = solve(problem(amount, choices=choices))
    assert chosen == counts
    assert scale == pytest.approx(0.6)


def test_the_target_is_of_what_it_counts() -> None:
    entering = token_target(7.5, 2, "entering")
    # 10 enter the first layer, so 5 may enter the second.
    assert solve(problem(0, target=entering, choices=down))[1] == (5, 2)


def test_a_scale_that_grows_goes_as_far_as_it_must() -> None:
    def keep(scale: float) -> list[int]:
        return [min(int(scale / 10), 9) + 1] * 2

    grown = problem(12, keep=keep, grows=lambda scale: scale < 1000, choices=down)
    scale, counts = solve(grown)
    assert counts == (6, 6) and scale == pytest.approx(60)
    # Without, the scale ends at 1, where a single token is kept.
    assert solve(replace(grown, grows=lambda scale: False))[1] == (1, 1)


def test_counts_that_no_scale_reaches_are_filled() -> None:
    at_most_five = problem(13, keep=lambda scale: [max(int(5 * scale), 1)] * 2, choices=fill)
    assert solve(at_most_five)[1] == (5, 5)
    assert solve(replace(at_most_five, full=(10, 10)))[1] == (8, 5)


def test_the_floor_is_named_in_units_of_the_budget() -> None:
    share = Target("target_kv", 0.05, 20.0, 1.0, lambda flow: flow.total("leaving"))
    message = (
        "target_kv 0.05 is below the floor of 0.1: that much cost 10 visual tokens with a single "
        "one kept somewhere"
    )
    with pytest.raises(BudgetError, match=f"^{re.escape(message)}$"):
        solve(problem(1, target=share))
    assert solve(problem(2))[1] == (1, 1)
    # The six digits of a floor are enough of it.
    assert solve(problem(2 - 1e-5, target=replace(share, amount=2 - 1e-5, slack=1e-5)))[1] == (1, 1)
