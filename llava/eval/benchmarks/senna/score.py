"""Planning accuracy, upstream's and an exact one, by class and by action.

`planning_accuracy` is Senna's metric and that of the paper's Table 3: an answer counts if both
annotated words occur in it, wherever, so one that lists every action is always right.
`exact_accuracy` counts an answer that is the two words and nothing else. `f1` is of exactly read
plans; `upstream_f1` follows upstream's formula, where an action that occurs in an answer is a true
positive as soon as the *annotated* word of its kind does, whichever that is. (Upstream's guard
against an empty denominator tests the wrong sum, which changes no value.)
Rules: hustvl/Senna at cddce26, eval_tools. Accuracies and F1 are in percent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..scoring import percentage
from .plan import PATHS, SPEEDS, Plan, parse_plan

#: The actions of upstream's F1 table; it leaves the changes of lane out.
UPSTREAM_ACTIONS = (
    "KEEP",
    "ACCELERATE",
    "DECELERATE",
    "STOP",
    "RIGHT_TURN",
    "LEFT_TURN",
    "STRAIGHT",
)


def occurs(plan: Plan, answer: str) -> bool:
    """Upstream's rule: both words of the annotated plan are somewhere in the answer."""
    return plan.speed in answer and plan.path in answer


def score_plans(answered: Iterable[tuple[Plan, str]]) -> dict[str, Any]:
    """The score of answers, each with its annotated plan.

    Returns:
        samples; planning_accuracy, exact_accuracy, speed_accuracy and path_accuracy (one word of
        the exactly read plan), unreadable (answers that are not exactly a plan); by_class, for each
        annotated SPEED_PATH that occurs, planning_accuracy, exact_accuracy and samples; f1, for
        each action, precision, recall, f1 and samples; upstream_f1. None where there is nothing to
        divide by.
    """
    scored = [(plan, text, parse_plan(text)) for plan, text in answered]
    speeds = [float(read is not None and read.speed == plan.speed) for plan, _, read in scored]
    paths = [float(read is not None and read.path == plan.path) for plan, _, read in scored]
    return {
        "samples": len(scored),
        **_accuracies(scored),
        "speed_accuracy": percentage(speeds),
        "path_accuracy": percentage(paths),
        "unreadable": sum(read is None for _, _, read in scored),
        "by_class": _by_class(scored),
        "f1": {action: _f1(scored, action) for action in (*SPEEDS, *PATHS)},
        "upstream_f1": {action: _upstream_f1(scored, action) for action in UPSTREAM_ACTIONS},
    }


Scored = Sequence[tuple[Plan, str, Plan | None]]


def _accuracies(scored: Scored) -> dict[str, float | None]:
    return {
        "planning_accuracy": percentage([float(occurs(plan, text)) for plan, text, _ in scored]),
        "exact_accuracy": percentage([float(read == plan) for plan, _, read in scored]),
    }


def _by_class(scored: Scored) -> dict[str, dict[str, Any]]:
    table = {}
    for key in (Plan(speed, path).key for speed in SPEEDS for path in PATHS):
        of_class = [pair for pair in scored if pair[0].key == key]
        if of_class:
            table[key] = {**_accuracies(of_class), "samples": len(of_class)}
    return table


def _f1(scored: Scored, action: str) -> dict[str, Any]:
    right = said = there = 0
    for plan, _, read in scored:
        annotated = action in (plan.speed, plan.path)
        answered = read is not None and action in (read.speed, read.path)
        right += annotated and answered
        said += answered
        there += annotated
    precision = 100 * right / said if said else None
    recall = 100 * right / there if there else None
    both = said + there
    return {
        "precision": precision,
        "recall": recall,
        "f1": 200 * right / both if both else None,
        "samples": there,
    }


def _upstream_f1(scored: Scored, action: str) -> float:
    hits = false = lost = 0
    for plan, text, _ in scored:
        annotated = plan.speed if action in SPEEDS else plan.path
        if action in text:
            hits += annotated in text
            false += annotated not in text
        else:
            lost += action in annotated
    both = 2 * hits + false + lost
    return 200 * hits / both if both else 0.0


def describe(result: Mapping[str, Any]) -> list[str]:
    """The score as lines to read: accuracies, the table by class, F1 by action."""
    lines = [
        f"Samples: {result['samples']}",
        f"Planning accuracy (both words occur, upstream's rule): "
        f"{_percent(result['planning_accuracy'])}",
        f"Exact accuracy (the answer is the plan): {_percent(result['exact_accuracy'])}, speed "
        f"{_percent(result['speed_accuracy'])}, path {_percent(result['path_accuracy'])}, "
        f"{result['unreadable']} answers are no plan",
        "",
        f"{'class':<26}{'samples':>8}{'planning':>10}{'exact':>8}",
    ]
    for key, cell in result["by_class"].items():
        numbers = (cell["planning_accuracy"], cell["exact_accuracy"])
        lines.append(f"{key:<26}{cell['samples']:>8}{numbers[0]:>10.2f}{numbers[1]:>8.2f}")
    lines += [
        "",
        f"{'action':<16}{'samples':>8}{'precision':>11}{'recall':>8}{'F1':>8}{'upstream F1':>13}",
    ]
    for action, cell in result["f1"].items():
        shown = [_number(cell[name]) for name in ("precision", "recall", "f1")]
        upstream = _number(result["upstream_f1"].get(action))
        lines.append(
            f"{action:<16}{cell['samples']:>8}{shown[0]:>11}{shown[1]:>8}{shown[2]:>8}{upstream:>13}"
        )
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}%"
