"""Which part of pruning carries it: rows at equal work, on the same questions, with intervals.

    python -m llava.analysis.study --model-path CHECKPOINT --data playground/data/mini --out RUNS
    python -m llava.analysis.study --methods --tokens 64 128 192 --model-path CHECKPOINT \
        --data playground/data/mini --out RUNS

Without --methods: AutoPrune's preset `balanced`, changed in one respect a row (`study_rows`). With
it: every method of the package, with its own positions and the other ones. --tokens are visual
tokens entering a layer of `balanced` where its pre-selection costs nothing (`study_rows.WORK`);
every row gets the budget at which its prefill costs the same FLOPs, scoring and merging included
(`study_budget`; --counting computed: what really ran).
Intervals are of a bootstrap over questions, differences those of pairs (`study_statistics`).
Budgets are for one picture. A question with several may cost a row more than its budget before the
first cut: then it is left out of all rows, and the notes below the table say how many are.

Runs are those of `sweep`: the same command continues, the model is loaded once and a picture goes
through the vision tower once. Parts (--benchmarks) can run side by side into one RUNS; the whole
command then prints all of it. Every other flag is one of the sweep. --only names groups or labels
to run and print. The last line of stdout is the table as JSON.
Exit status: 0, 2 on wrong input, else that of the first run that was not completed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, NamedTuple

from llava.common import flags, json_files, program
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.benchmarks.base import Benchmark
from llava.eval.compare import sweep
from llava.eval.compare.report import start_logging
from llava.eval.compare.runs import PlannedRun, parse_runs, runs_in_decoder
from llava.eval.run.interruption import Interruption
from llava.eval.run.models import ModelOnce, layers_to_scale_to
from llava.eval.run.runner import EXIT_INTERRUPTED, EXIT_USAGE
from llava.pruning.methods.autoprune import AutoPrune

from .study_budget import COMPUTED, PUBLISHED, Meter, tokens_for
from .study_rows import (
    ABLATIONS,
    BASE,
    INDICATORS,
    SPREAD,
    WORK,
    Row,
    ShuffledAutoPrune,
    methods,
)
from .study_tables import markdown, matrix, notes, table

PLAN = "study.json"  # in the folder of the runs: the budgets that were found
_TENTH = 0.1  # of a token, to which a budget of a method that takes any number is found


class Planned(NamedTuple):
    """A row at a budget: tokens of `WORK`, and the run that costs the same; None: refused."""

    row: Row
    tokens: float
    run: PlannedRun | None


def build_parser() -> argparse.ArgumentParser:
    """The command line; what it does not know is the sweep's."""
    parser = argparse.ArgumentParser(
        prog=program.name("llava.analysis.study"),
        description="Which part of pruning carries it: rows at equal work on the same questions, "
        "with intervals. Other flags (--model-path, --batch-size, --limit, --dtype, ...) are those "
        "of llava.eval.compare.sweep. Run the same command again to continue.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of the benchmarks' folders"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="RUNS", help="answers and records are here"
    )
    parser.add_argument("--methods", action="store_true", help="all methods, not the ablations")
    parser.add_argument(
        "--tokens",
        nargs="+",
        type=flags.number(1),
        default=[64.0],
        metavar="T",
        help="tokens entering a layer, whose FLOPs all rows get (default: 64); see study_rows.WORK",
    )
    parser.add_argument("--counting", choices=(PUBLISHED, COMPUTED), default=PUBLISHED)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="groups or labels of rows")
    parser.add_argument(
        "--pictures",
        choices=("all", "even", "odd"),
        default="all",
        help="score the questions about every second picture only",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it there as JSON too")
    return parser


def main(
    argv: Sequence[str] | None = None, benchmarks: Mapping[str, Benchmark] = BENCHMARKS
) -> int:
    """Run the command line and return its exit status."""
    start_logging()
    args, rest = build_parser().parse_known_args(argv)
    with Interruption():
        try:
            return _main(args, rest, benchmarks)
        except KeyboardInterrupt:
            _say("Interrupted; the same command continues.")
            return EXIT_INTERRUPTED
        except (ValueError, OSError) as error:
            _say(f"error: {error}")
            return EXIT_USAGE


def _main(
    args: argparse.Namespace, rest: Sequence[str], benchmarks: Mapping[str, Benchmark]
) -> int:
    command = [*rest, "--data", str(args.data), "--out", str(args.out)]
    command = command if "--batch-size" in rest else [*command, "--batch-size", "16"]
    swept = sweep.build_parser(benchmarks).parse_args(command)
    model = ModelOnce()
    planned = plan(args, swept, benchmarks, model)
    runs = parse_runs(["none"]) + [p.run for p in planned if p.run is not None]
    outcome = sweep.run_all(swept, benchmarks, runs, model)
    if outcome.code in (EXIT_USAGE, EXIT_INTERRUPTED) or not outcome.complete:
        return outcome.code
    unpruned = [file for file in outcome.complete if file.name == "none.jsonl"]
    if not unpruned:
        return outcome.code
    rows = [
        (p.row, p.tokens, [file.with_name(f"{p.run.name}.jsonl") for file in unpruned])
        for p in planned
        if p.run is not None
    ]
    parity = {"all": None, "even": 0, "odd": 1}[args.pictures]
    result = table(rows, unpruned, args.data, benchmarks, parity)
    result |= {"counting": args.counting, "pictures": args.pictures}
    text = json.dumps(result)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(text + "\n", encoding="utf-8")
    tables = [markdown(result)]
    if len(args.tokens) > 1:
        tables.insert(0, matrix(result))
    print("\n\n".join([*tables, "\n".join(notes(result))]))
    print(text, flush=True)
    return outcome.code


def plan(
    args: argparse.Namespace,
    swept: argparse.Namespace,
    benchmarks: Mapping[str, Benchmark],
    model: ModelOnce,
) -> list[Planned]:
    """Every row at every budget. Budgets are looked up in the plan of an earlier run, which may
    belong to another part of the benchmarks, or found.

    Raises ValueError for --only of no row, and what the sweep says of its flags.
    """
    budgets = _Budgets(args, swept, benchmarks, model)
    rows = list(methods()) if args.methods else list(ABLATIONS)
    pairs = [(row, budgets.in_decoder(parse_runs([row.run])[0])) for row in rows]
    adapts = {"adaptation", *INDICATORS}
    if not args.methods and (not args.only or adapts & {n.partition(",")[0] for n in args.only}):
        pairs += _adaptation(budgets)
    work = budgets.in_decoder(parse_runs([WORK])[0])
    result, seen = [], []
    for row, run in pairs:
        if args.only and not {row.group, row.label} & {*args.only}:
            continue
        if run.pruner in seen:  # what the preset has anyway
            continue
        seen.append(run.pruner)
        for tokens in args.tokens:
            result.append(Planned(row, tokens, budgets.at_work_of(work, tokens, run)))
    if not result:
        raise ValueError(f"--only {' '.join(args.only)}: no such row")
    budgets.save()
    return result


def _adaptation(budgets: _Budgets) -> list[tuple[Row, PlannedRun]]:
    """The preset with slopes that follow an indicator: as published, reversed, and shuffled."""
    base = budgets.in_decoder(parse_runs([BASE])[0])
    pairs = []
    for name in INDICATORS:
        pruner = replace(base.pruner, indicator=name, inflection="beta", beta=0.0)
        assert isinstance(pruner, AutoPrune)
        values = budgets.measured(pruner)
        if len(values) < 2 or not pstdev(values):
            continue
        for sign, word in ((1, "per sample"), (-1, "reversed")):
            gamma = sign * SPREAD / pstdev(values)
            adapted = replace(pruner, gamma=gamma, k0=pruner.k0 + gamma * fmean(values))
            row = Row("adaptation", f"{name}, {word}", "")
            pairs.append((row, PlannedRun(f"adapted@{name}.{word[0]}", adapted, base.given)))
            if word == "per sample" and name == INDICATORS[0]:
                settings = {field.name: getattr(adapted, field.name) for field in fields(adapted)}
                mixed = ShuffledAutoPrune(**settings, values=tuple(values))
                row = Row("adaptation", f"{name}, shuffled between samples", "")
                pairs.append((row, PlannedRun(f"adapted@{name}.s", mixed, base.given)))
    return pairs


class _Budgets:
    """Budgets of equal work, found with the model or known from an earlier run."""

    def __init__(
        self,
        args: argparse.Namespace,
        swept: argparse.Namespace,
        benchmarks: Mapping[str, Benchmark],
        model: ModelOnce,
    ) -> None:
        self._path = args.out / PLAN
        self._swept, self._benchmarks, self._model = swept, benchmarks, model
        self._counting = args.counting
        self._layers = layers_to_scale_to(swept)
        self._meter: Meter | None = None
        self._known: dict[str, Any] = {}
        if self._path.is_file():
            self._known = json_files.read(self._path)

    def in_decoder(self, run: PlannedRun) -> PlannedRun:
        """The run with its depths in this decoder, so that nobody moves them again."""
        moved = runs_in_decoder([run], self._layers, self._swept.depth_layers)[0]
        return replace(moved, given=moved.given | {*moved.pruner.depths})

    def at_work_of(self, work: PlannedRun, tokens: float, run: PlannedRun) -> PlannedRun | None:
        """`run` with the budget that costs what `work` costs at so many tokens."""
        method, at, rest = run.name.partition("@")
        if run.pruner == work.pruner:
            budget: float | None = tokens
        else:
            key = f"{run.name} at the FLOPs ({self._counting}) of {work.name} at {tokens:g}"
            if key not in self._known:
                self._known[key] = self._find(work, tokens, run)
                self.save()
            budget = self._known[key]
        if budget is None:
            _say(f"Left out: {run.name} has no budget with the FLOPs of {tokens:g} tokens.")
            return None
        pruner = replace(run.pruner, target_token_num=budget)  # type: ignore[call-arg]
        given = run.given | {"target_token_num"}
        return PlannedRun(f"{method}-{budget:g}{at}{rest}", pruner, given)

    def measured(self, pruner: AutoPrune) -> list[float]:
        """What the indicator of a pruner is of the meter's questions, at the preset's budget."""
        name = {"mutual_information": "mi"}.get(pruner.indicator, pruner.indicator)
        if name not in self._known:
            answers = self.meter.answers(pruner) or []
            numbers = [answer["complexity"][name] for answer in answers if answer["complexity"]]
            self._known[name] = [round(value, 6) for value in numbers]
            self.save()
        values: list[float] = self._known[name]
        return values

    @property
    def meter(self) -> Meter:
        """Loads the model, once it is needed."""
        if self._meter is None:
            none = parse_runs(["none"])
            tasks = list(sweep.tasks_of(self._swept, self._benchmarks, none))
            self._meter = Meter(tasks, self._model, self._counting)
        return self._meter

    def save(self) -> None:
        """Write what is known, all or nothing."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_name(f"{PLAN}.{os.getpid()}")
        new.write_text(json.dumps(self._known, indent=1) + "\n", encoding="utf-8")
        os.replace(new, self._path)

    def _find(self, work: PlannedRun, tokens: float, run: PlannedRun) -> float | None:
        key = f"FLOPs ({self._counting}) of {work.name} at {tokens:g}"
        if key not in self._known:
            self._known[key] = self.meter.share(_with(work, tokens))
        if self._known[key] is None:
            return None
        step = _TENTH if getattr(run.pruner, "fractional", False) else 1.0

        def cost(tokens: float) -> float | None:
            try:
                return self.meter.share(_with(run, round(tokens, 1)))
            except ValueError as error:  # what the method cannot do with this model
                raise ValueError(f"{run.name}: {error}") from None

        try:
            budget = tokens_for(self._known[key], cost, self.meter.most, step)
        except ValueError as error:
            _say(f"Cannot be run: {error}")
            return None
        return None if budget is None else round(budget, 1)


def _with(run: PlannedRun, tokens: float) -> Any:
    whole = int(tokens) if float(tokens).is_integer() else tokens
    return replace(run.pruner, target_token_num=whole)  # type: ignore[call-arg]


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    program.run(main)
