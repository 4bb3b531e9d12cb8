"""The runs of a comparison, written as METHOD[:BUDGET[,BUDGET...]][@FIELD=VALUE,...].

`autoprune:192,64` is two runs, of 192 and of 64 tokens. What stands behind @ is a preset or any
field of the method's settings: `random:64@seed=1`, `autoprune:64@budget_mode=strict,preset=paper`,
`autoprune@target_flops=0.25`. A run is read from its text once; what follows has typed settings.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from llava.common import flags
from llava.pruning import METHODS, Pruner, build
from llava.pruning.arguments import read_setting

from ..run.depths import in_decoder, tell

#: Settings of AutoPrune's curve.
CURVE = ("x0", "k0", "gamma", "beta")
#: Settings that a command gives once, for every method that has them.
SHARED = (*CURVE, "clip")

_SPEC = re.compile(r"(?P<method>[\w+-]+)(:(?P<budgets>[^@]*))?(@(?P<fields>.*))?")
_VALUE = re.compile(r"[\w.+-]+")  # what a file may be called anywhere
_BUDGET = "target_token_num"
#: How a budget is given; of two in a record the first counts.
BUDGETS = ("target_fraction", "target_flops", "target_kv", _BUDGET)


@dataclass(frozen=True)
class PlannedRun:
    """A run and its name, which is also that of its files: `autoprune-64@budget_mode=strict`.

    `given` are the fields of `pruner` that somebody set; the others have their defaults.
    """

    name: str
    pruner: Pruner
    given: frozenset[str] = frozenset()


def add_shared_arguments(group: argparse._ActionsContainer) -> None:
    """Add a flag for each of `SHARED`."""
    group.add_argument("--clip", metavar="DIR", help="see llava.eval.model_vqa_loader --help")
    for name in CURVE:
        group.add_argument(
            f"--{name}", type=flags.number(), help="see llava.eval.model_vqa_loader --help"
        )


def parse_runs(
    specs: Sequence[str],
    shared: Mapping[str, Any] | None = None,
    tokens: float | None = None,
) -> list[PlannedRun]:
    """The runs in their order.

    `shared` are settings for every method that has them, such as x0, `tokens` the budget of methods
    that take one; what a run says itself wins.

    Raises:
        ValueError: not of this form, no such method, field or value, or the same run twice.
    """
    runs: dict[str, PlannedRun] = {}
    for spec in specs:
        try:
            of_spec = with_shared(_parse(spec, tokens), shared or {})
        except ValueError as error:
            raise ValueError(f"run {spec!r}: {error}") from None
        for run in of_spec:
            if run.name in runs:
                raise ValueError(f"run {spec!r}: {run.name} is there twice")
            runs[run.name] = run
    return list(runs.values())


def with_shared(runs: Sequence[PlannedRun], shared: Mapping[str, Any]) -> list[PlannedRun]:
    """The runs with settings for every method that has them; those of a run itself, and None, stay.

    Raises:
        ValueError: a value that a method cannot have.
    """
    result = []
    for run in runs:
        free = {field.name for field in fields(run.pruner)} - run.given
        values = {k: v for k, v in shared.items() if v is not None and k in free}
        given = run.given | values.keys()
        result.append(replace(run, pruner=replace(run.pruner, **values), given=given))
    return result


def runs_in_decoder(
    runs: Sequence[PlannedRun], layers: int | None, depth_layers: int | None
) -> list[PlannedRun]:
    """The runs with their depths as `in_decoder` decides them; says each change once."""
    moved = [in_decoder(run.pruner, run.given, layers, depth_layers) for run in runs]
    tell(sentence for _, said in moved for sentence in said)
    return [replace(run, pruner=pruner) for run, (pruner, _) in zip(runs, moved)]


def _parse(spec: str, tokens: float | None) -> list[PlannedRun]:
    parts = _SPEC.fullmatch(spec)
    if parts is None:
        raise ValueError("expected METHOD[:BUDGET[,BUDGET...]][@FIELD=VALUE,...]")
    method = parts["method"]
    if method not in METHODS:
        build(method)  # raises, with the nearest name
    cls = METHODS[method]
    texts: dict[str, str] = {}
    for item in (parts["fields"] or "").split(",") if parts["fields"] is not None else []:
        name, separator, text = item.partition("=")
        if not separator or not _VALUE.fullmatch(text):
            raise ValueError(f"expected FIELD=VALUE behind @, a comma between two, got {item!r}")
        if name in texts:
            raise ValueError(f"{name} is there twice")
        texts[name] = text
    budgets: list[float | None] = [None]
    if parts["budgets"] is not None:
        if not cls.takes_budget():
            raise ValueError(f"method {method} takes no budget")
        if both := texts.keys() & BUDGETS:
            raise ValueError(f"give the budget or {both.pop()}, not both")
        budgets = [_number(text) for text in parts["budgets"].split(",")]
    elif cls.takes_budget() and not texts.keys() & BUDGETS:
        budgets = [tokens]
    known = {field.name for field in fields(cls)}
    settings = {k: read_setting(cls, k, text) if k in known else text for k, text in texts.items()}
    preset = settings.pop("preset", None)
    runs = []
    for budget in budgets:
        values = settings if budget is None else {**settings, _BUDGET: budget}
        pruner = build(method, preset=preset, **values)
        runs.append(PlannedRun(_name(method, budget, texts), pruner, frozenset(values)))
    return runs


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"a budget must be a number of tokens, got {text!r}") from None


def _name(method: str, budget: float | None, texts: Mapping[str, str]) -> str:
    settings = ",".join(f"{name}={texts[name]}" for name in sorted(texts))
    return method + (f"-{budget:g}" if budget is not None else "") + (settings and f"@{settings}")
