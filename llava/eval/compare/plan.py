"""The runs of a comparison, written as METHOD[:BUDGET[,BUDGET...]][@FIELD=VALUE,...].

`autoprune:192,64` is two runs, of 192 and of 64 tokens. What stands behind @ is a preset or any
field of the method's settings: `random:64@seed=1`, `autoprune:64@budget_mode=strict,preset=paper`,
`autoprune@target_flops=0.25`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from llava.pruning import METHODS, Pruner, build
from llava.pruning.arguments import add_pruning_arguments, method_settings, pruner_from_args

from ..run.depths import in_decoder, tell

_SPEC = re.compile(r"(?P<method>[\w+-]+)(:(?P<budgets>[^@]*))?(@(?P<fields>.*))?")
_VALUE = re.compile(r"[\w.+-]+")  # what a file may be called anywhere
_BUDGET = "target_token_num"


@dataclass(frozen=True)
class PlannedRun:
    """A run and its name, which is also that of its files: `autoprune-64@budget_mode=strict`.

    `given` are the fields of `pruner` that somebody set; the others have their defaults.
    """

    name: str
    pruner: Pruner
    given: frozenset[str] = frozenset()


def parse_runs(
    specs: Sequence[str], flags: Mapping[str, float | None] | None = None
) -> list[PlannedRun]:
    """The runs in their order.

    `flags` are settings for every method that has them, such as x0; what a run says itself wins.

    Raises:
        ValueError: not of this form, no such method, field or value, or the same run twice.
    """
    runs: dict[str, PlannedRun] = {}
    for spec in specs:
        try:
            found = _parse(spec, flags or {})
        except ValueError as error:
            raise ValueError(f"run {spec!r}: {error}") from None
        for run in found:
            if run.name in runs:
                raise ValueError(f"run {spec!r}: {run.name} is there twice")
            runs[run.name] = run
    return list(runs.values())


def runs_in_decoder(
    runs: Sequence[PlannedRun], layers: int | None, depth_layers: int | None
) -> list[PlannedRun]:
    """The runs with their depths as `in_decoder` decides them; says each change once."""
    moved = [in_decoder(run.pruner, run.given, layers, depth_layers) for run in runs]
    tell(sentence for _, said in moved for sentence in said)
    return [replace(run, pruner=pruner) for run, (pruner, _) in zip(runs, moved)]


def _parse(spec: str, flags: Mapping[str, float | None]) -> list[PlannedRun]:
    parts = _SPEC.fullmatch(spec)
    if parts is None:
        raise ValueError("expected METHOD[:BUDGET[,BUDGET...]][@FIELD=VALUE,...]")
    method = parts["method"]
    if method not in METHODS:
        build(method)  # raises, with the nearest name
    own: dict[str, str] = {}
    for item in (parts["fields"] or "").split(",") if parts["fields"] is not None else []:
        name, separator, value = item.partition("=")
        if not separator or not _VALUE.fullmatch(value):
            raise ValueError(f"expected FIELD=VALUE behind @, a comma between two, got {item!r}")
        if name in own:
            raise ValueError(f"{name} is there twice")
        own[name] = value
    budgets: list[float | None] = [None]
    if parts["budgets"] is not None:
        if not METHODS[method].takes_budget():
            raise ValueError(f"method {method} takes no budget")
        if both := own.keys() & {_BUDGET, "target_fraction", "target_flops", "target_kv"}:
            raise ValueError(f"give the budget or {both.pop()}, not both")
        budgets = [_number(text) for text in parts["budgets"].split(",")]
    return [_run(_name(method, budget, own), method, budget, own, flags) for budget in budgets]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"a budget must be a number of tokens, got {text!r}") from None


def _name(method: str, budget: float | None, own: Mapping[str, str]) -> str:
    settings = ",".join(f"{name}={own[name]}" for name in sorted(own))
    return method + (f"-{budget:g}" if budget is not None else "") + (settings and f"@{settings}")


def _run(
    name: str,
    method: str,
    budget: float | None,
    own: Mapping[str, str],
    flags: Mapping[str, float | None],
) -> PlannedRun:
    parser = argparse.ArgumentParser()
    add_pruning_arguments(parser)
    args = parser.parse_args([])
    given = {**flags, "method": method, _BUDGET: budget, "preset": own.get("preset")}
    vars(args).update(given)
    args.set = [f"{name}={value}" for name, value in own.items() if name != "preset"]
    return PlannedRun(name, pruner_from_args(args), frozenset(method_settings(args)))
