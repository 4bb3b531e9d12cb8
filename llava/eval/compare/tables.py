"""A table of the paper from one command: what is missing is run, the published values stand beside.

    python -m llava.eval.compare.tables --table 1 --model-path models/llava-v1.5-7b \
        --data playground/data/eval --out RUNS
    python -m llava.eval.compare.tables --table 1 --data playground/data/eval --out RUNS \
        --render-only

Tables: 1 (LLaVA-1.5-7B), 2 (LLaVA-NeXT-7B), 3 (Senna), 4a and 4b (indicators, curves), extended and
13b (of the official page); `published` has their numbers. Runs are those of
`sweep`, in RUNS/<benchmark>/<run>.jsonl: what is complete is left alone, what was cut
off continues, and tables share runs. Beside the table's methods the floor is run: no image, random
tokens (three seeds) and a uniform grid; `--methods` names others, of the table or not. Every other
flag is one of the sweep. Tables 2 and 13b run a checkpoint that tiles pictures as the official code
does (--merge-type spatial --processing fill), unless these flags say otherwise.

A benchmark whose folder is not in --data, and a row that cannot be run, is named on stderr and its
cells stay empty. Everything that RUNS has of the table's benchmarks stands in the table, also runs
that another sweep made. The last line of stdout is the table as JSON. Exit status: 0, 2 on wrong
input, 3 if a row could not be run, else that of the first run that was not completed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from llava.common import program
from llava.pruning import METHODS

from ..benchmarks import BENCHMARKS
from ..benchmarks.base import Benchmark
from ..run.interruption import Interruption
from ..run.models import tiles_pictures
from ..run.record import RECORD
from ..run.runner import EXIT_COMPLETE, EXIT_INTERRUPTED, EXIT_SOME_FAILED, EXIT_USAGE
from . import sweep
from .paper_table import fill
from .paper_table_text import markdown, notes, write_csv
from .published import TABLES, PublishedTable
from .report import add_output_arguments, collect, start_logging
from .runs import PlannedRun, parse_runs

FLOOR = ("no-image", "random", "uniform-grid")
_SEEDS = (0, 1, 2)


def build_parser(tables: Mapping[str, PublishedTable]) -> argparse.ArgumentParser:
    """The command line; what it does not know is the sweep's."""
    parser = argparse.ArgumentParser(
        prog=program.name("llava.eval.compare.tables"),
        description="Run what a table of the paper lacks, and print it with the published values "
        "beside the measured ones. Other flags (--model-path, --batch-size, --limit, ...) are "
        "those of llava.eval.compare.sweep. Run the same command again to continue.",
        allow_abbrev=False,
    )
    parser.add_argument("--table", required=True, choices=list(tables))
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of the benchmarks' folders"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="RUNS", help="answers and records are here"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help="run these and the unpruned model; default: those of the table, and the floor",
    )
    parser.add_argument(
        "--benchmarks",
        nargs="+",
        metavar="NAME",
        help="run only these of the table's; default: all whose folder is in --data",
    )
    parser.add_argument(
        "--render-only", action="store_true", help="run nothing: the table from records alone"
    )
    add_output_arguments(parser)
    return parser


def main(
    argv: Sequence[str] | None = None,
    benchmarks: Mapping[str, Benchmark] = BENCHMARKS,
    tables: Mapping[str, PublishedTable] = TABLES,
) -> int:
    """Run the command line and return its exit status."""
    start_logging()
    parser = build_parser(tables)
    args, rest = parser.parse_known_args(argv)
    if args.render_only and rest:
        parser.error(f"--render-only takes no flags of the sweep: {' '.join(rest)}")
    if any(flag.partition("=")[0] == "--runs" for flag in rest):
        parser.error(
            "--runs are the table's. Run others with llava.eval.compare.sweep and the same --out: "
            "they stand in the table too"
        )
    with Interruption():
        try:
            return _main(args, rest, benchmarks, tables[args.table])
        except KeyboardInterrupt:
            _say("Interrupted; the same command continues.")
            return EXIT_INTERRUPTED


def _main(
    args: argparse.Namespace,
    rest: Sequence[str],
    benchmarks: Mapping[str, Benchmark],
    table: PublishedTable,
) -> int:
    code = 0
    try:
        if not args.render_only:
            code = _run(table, args, rest, benchmarks)
            if code in (EXIT_USAGE, EXIT_INTERRUPTED):
                return code
        filled = fill(table, collect(_folders(args.out, table), args.data, benchmarks))
        text = json.dumps(filled)
        if args.csv is not None:
            write_csv(args.csv, filled)
        if args.json is not None:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(text + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        _say(f"error: {error}")
        return EXIT_USAGE
    print(f"**{table.title}**\n\n{markdown(filled)}\n")
    print("\n".join(notes(filled)))
    print(text, flush=True)
    return code


def planned(table: PublishedTable, methods: Sequence[str] | None = None) -> list[str]:
    """The runs of a table, as `llava.eval.compare.runs` reads them, each once.

    `methods` are names, of the table's rows or not; None are all of the table and the floor. The
    unpruned model comes first wherever rows are related to it.

    Raises:
        ValueError: a method that is neither in the table nor in `llava.pruning`.
    """
    whole = () if table.in_columns else ("none",)
    chosen = [*whole, *(methods or (*table.methods, *(FLOOR if whole else ())))]
    runs: list[str] = []
    for row in table.rows:
        if row.method in chosen:
            runs += [row.run(row.budget(column)) for column in table.columns]
    for method in chosen:
        if method not in table.methods:
            runs += _beside(table, method)
    return list(dict.fromkeys(runs))


def _beside(table: PublishedTable, method: str) -> list[str]:
    """The runs of a method that has no rows in the table, at the table's budgets."""
    if method not in METHODS:
        raise ValueError(
            f"--methods {method}: expected one of the table's, {', '.join(table.methods)}, or "
            f"another of {', '.join(sorted(METHODS.keys() - set(table.methods)))}"
        )
    known = {field.name for field in fields(METHODS[method])}
    budgets = [f":{budget}" for budget in table.budgets]
    budgets = budgets if METHODS[method].takes_budget() else [""]
    seeds = [f"@seed={seed}" for seed in _SEEDS] if "seed" in known else [""]
    return [method + budget + seed for budget in budgets for seed in seeds]


def _run(
    table: PublishedTable,
    args: argparse.Namespace,
    rest: Sequence[str],
    benchmarks: Mapping[str, Benchmark],
) -> int:
    specs = planned(table, args.methods)
    runs = list(_possible(specs))
    if not runs:
        raise ValueError("no run of the table is possible.")
    command = [*rest, "--data", str(args.data), "--out", str(args.out)]
    command += ["--benchmarks", *_chosen(table, args, benchmarks)]
    parser = sweep.build_parser(benchmarks)
    flags = parser.parse_args(command)
    if table.tiled and _tiles(flags):
        parser.set_defaults(**table.tiled)
        flags = parser.parse_args(command)
    outcome = sweep.run_all(flags, benchmarks, runs)
    return outcome.code or (EXIT_SOME_FAILED if len(runs) < len(specs) else EXIT_COMPLETE)


def _tiles(flags: argparse.Namespace) -> bool:
    """Whether the checkpoint tiles pictures; what is wrong with one, loading it says better."""
    try:
        return tiles_pictures(flags.model_path, flags.offline)
    except (ValueError, OSError):
        return False


def _possible(specs: Sequence[str]) -> Iterator[PlannedRun]:
    """The runs whose settings are right; the others are named on stderr."""
    for spec in specs:
        try:
            yield from parse_runs([spec])
        except ValueError as error:
            _say(f"Cannot be run, stays empty: {error}")


def _chosen(
    table: PublishedTable, args: argparse.Namespace, benchmarks: Mapping[str, Benchmark]
) -> list[str]:
    """The benchmarks to run.

    Raises:
        ValueError: one that is not the table's.
        FileNotFoundError: the data of none is there.
    """
    if args.benchmarks:
        if unknown := set(args.benchmarks) - set(table.benchmarks):
            raise ValueError(
                f"--benchmarks {', '.join(sorted(unknown))}: table {table.name} has "
                f"{', '.join(table.benchmarks)}"
            )
        return args.benchmarks
    folders = {name: args.data / benchmarks[name].folder for name in table.benchmarks}
    there = [name for name, folder in folders.items() if folder.is_dir()]
    for name in [name for name in folders if name not in there]:
        _say(f"Not there, stays empty: {name}, no folder {folders[name]}.")
    if not there:
        raise FileNotFoundError(f"{args.data} has no folder of table {table.name}'s benchmarks.")
    return there


def _folders(out: Path, table: PublishedTable) -> list[Path]:
    """The folders of RUNS with runs on the table's benchmarks: only these are scored."""
    folders = [out / name for name in table.benchmarks if any((out / name).rglob(f"*{RECORD}"))]
    if not folders:
        raise FileNotFoundError(
            f"{out} holds no runs of table {table.name}: expected <benchmark>/<run>{RECORD} in it, "
            f"with one of {', '.join(table.benchmarks)}"
        )
    return folders


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    program.run(main)
