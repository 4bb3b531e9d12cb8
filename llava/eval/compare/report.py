"""The table of a comparison: a row for each run, a column for each benchmark, then what it costs.

    python -m llava.eval.compare.report RUNS --data playground/data/eval
    python -m llava.eval.compare.report a/n_64.jsonl b/n_64.jsonl --data playground/data/eval \
        --csv t.csv

RUNS is a folder of `sweep`; answers of the other programs will do too. Everything comes
from the answers and the run records beside them; no model is needed. How it is counted stands
under the table. The last line of stdout is the table as JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.common import program
from llava.pruning import label

from ..benchmarks import BENCHMARKS
from ..benchmarks.base import Benchmark
from ..run.record import COMPLETE, FAILURES, read_record, sibling
from .comparison import compare
from .markdown import table as write_table
from .results import Result, find_runs, read_result, require_comparable

#: Heading, key, and how a value is shown.
_COSTS = (
    ("tokens entering", "tokens_entering", "{:.1f}"),
    ("tokens leaving", "tokens_leaving", "{:.1f}"),
    ("FLOPs (published counting)", "prefill_flops_ratio", "{:.1%}"),
    ("with scoring", "prefill_flops_ratio_with_scoring", "{:.1%}"),
    ("FLOPs (computed)", "computed_flops_ratio", "{:.1%}"),
    ("KV bytes", "kv_bytes_ratio", "{:.1%}"),
    ("prefill ms", "prefill_ms", "{:.1f}"),
)

UNPARSED = (
    "- % unparsed: the share of answers that give no letter, or more than one, and count as wrong. "
    "MMBench's and ScienceQA's scores without it have none."
)


def main(
    argv: Sequence[str] | None = None, benchmarks: Mapping[str, Benchmark] = BENCHMARKS
) -> int:
    """Run the command line; 2 on wrong input."""
    start_logging()
    parser = argparse.ArgumentParser(
        prog=program.name("llava.eval.compare.report"),
        description="Tabulate finished runs: scores, tokens, FLOPs, KV bytes and prefill time.",
        allow_abbrev=False,
    )
    add_runs_arguments(parser)
    add_output_arguments(parser)
    args = parser.parse_args(argv)
    return report(args.runs, args, benchmarks)


def add_runs_arguments(parser: argparse.ArgumentParser) -> None:
    """Add which runs to look at, and where their benchmarks are."""
    parser.add_argument(
        "runs", type=Path, nargs="+", help="folders of runs, or answers of finished runs"
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of the benchmarks' folders"
    )


def add_output_arguments(parser: argparse._ActionsContainer) -> None:
    """Add --csv and --json."""
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table there as CSV too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it there as JSON too")


def report(
    paths: Sequence[Path],
    args: argparse.Namespace,
    benchmarks: Mapping[str, Benchmark],
    more: Mapping[str, Any] | None = None,
) -> int:
    """Print the table of these runs and write the files asked for; the exit status.

    `args` has `data`, `csv` and `json`; `more` are further fields of the table's JSON. Runs in a
    folder that are not complete are left out, with a word on stderr; one that was named itself is
    an error.
    """
    try:
        table = compare(collect(paths, args.data, benchmarks)) | dict(more or {})
        if any(path.is_dir() for path in paths):
            table["rows"].sort(key=natural_order)
        text = json.dumps(table)
        if args.csv is not None:
            _write_csv(args.csv, table)
        if args.json is not None:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(text + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(markdown(table))
    print()
    print("\n".join(notes(table)))
    print(text, flush=True)
    return 0


def collect(paths: Sequence[Path], data: Path, benchmarks: Mapping[str, Benchmark]) -> list[Result]:
    """The runs that these files and folders hold, scored, in the order of the benchmarks.

    Runs in a folder that are not complete are left out, with a word on stderr.

    Raises:
        FileNotFoundError, ValueError: a folder without runs, what `read_result` raises, or runs
            that cannot stand in one table.
    """
    files = [file for path in paths for file in _complete(path)]
    results = [read_result(file, data, benchmarks) for file in dict.fromkeys(files)]
    require_comparable(results)
    return sorted(results, key=lambda result: list(benchmarks).index(result.benchmark.name))


def markdown(table: Mapping[str, Any]) -> str:
    """The comparison as a Markdown table; what was not run is an empty cell."""
    return write_table(*cells(table))


def cells(table: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The headings and the rows of the comparison as texts; what was not run is empty."""
    titles = [_title(entry) for entry in table["benchmarks"].values()]
    headings = ["method", "budget", *titles, "relative", *(heading for heading, _, _ in _COSTS)]
    rows = []
    for row in table["rows"]:
        scores = [cell or {"percent": None, "sd": None} for cell in row["benchmarks"].values()]
        rows.append(
            [
                row_label(row),
                budget_text(row["budget"]),
                *(score_text(c["percent"], c["sd"], c.get("unparsed")) for c in scores),
                with_deviation(row["relative"], row["relative_sd"]),
                *("" if row[key] is None else shown.format(row[key]) for _, key, shown in _COSTS),
            ]
        )
    return headings, rows


def notes(table: Mapping[str, Any]) -> Iterator[str]:
    """How the numbers were counted, a line each."""
    for name, entry in table["benchmarks"].items():
        whole = f"{entry['answered']} of {entry['questions']} questions"
        limit = "" if entry["limit"] is None else f" (--limit {entry['limit']})"
        best = "" if entry["best"] == 100 else f", in percent of {entry['best']:g}"
        n = f"n = {entry['counted']}"
        yield f"- {_title(entry)}: {name}, {entry['metric']}{best}; {whole}{limit}, {n}."
    yield (
        "- Standard error of a score p in percent: sqrt(p (100 - p) / n) points, n the questions "
        "it counts. It holds for shares of right answers, is a bound for partial credit, and rough "
        "for F1 and MME's points. Rows answer the same questions, so what differs between two rows "
        "is surer than that of two independent scores."
    )
    if any(len(row["seeds"]) > 1 for row in table["rows"]):
        yield "- ± is the standard deviation over seeds (n - 1), the number before it their mean."
    cells = (cell for row in table["rows"] for cell in row["benchmarks"].values())
    if any(cell and cell.get("unparsed") for cell in cells):
        yield UNPARSED
    yield (
        "- Relative: mean over the benchmarks of score / unpruned score, in percent; empty unless "
        "all are there."
    )
    unknown = any(row["computed_flops_ratio"] is None for row in table["rows"])
    yield (
        "- Tokens: visual ones a layer, means over layers and over all questions of the row. "
        "FLOPs and KV bytes: of the decoder's prefill, relative to the unpruned model. By the "
        "published counting every token that enters a layer runs through all of it; `with scoring` "
        "adds what choosing and merging tokens costs. Computed is what really ran, choosing and "
        "merging included, relative to the same unpruned FLOPs"
        + ("; empty where a run of an older version does not say it." if unknown else ".")
    )
    if any(None in row["benchmarks"].values() for row in table["rows"]):
        yield "- Rows with empty cells have these numbers of fewer questions than the others."
    yield (
        "- Prefill: mean wall clock a question, to its first token, "
        + {
            True: "without the vision tower, whose features were kept.",
            False: "the vision tower included.",
            None: "where all runs of the row measured the same: some include the vision tower.",
        }[table["vision_apart"]]
    )
    yield from provenance(table)


def provenance(table: Mapping[str, Any]) -> Iterator[str]:
    """Settings that all rows of a method share, and what the runs were made with, a line each."""
    for method, settings in table["settings_of_all"].items():
        shown = ", ".join(f"{name} = {_value(value)}" for name, value in settings.items())
        yield f"- All {method} rows: {shown}."
    origins = "; ".join(f"{k} {' and '.join(v)}" for k, v in table["made_with"].items())
    yield f"- Made with {origins}."


def start_logging() -> None:
    """Warnings go to stderr, each once: files are read again for every run."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_only_once())
    logging.basicConfig(format="%(levelname)s: %(message)s", handlers=[handler])


def _only_once() -> Callable[[logging.LogRecord], bool]:
    seen: set[str] = set()

    def new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        fresh = message not in seen
        seen.add(message)
        return fresh

    return new


def _complete(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for file in find_runs(path):
        record = read_record(file)
        if (status := record.get("status")) == COMPLETE:
            yield file
        else:
            reason = f": {record['refusal']}" if record.get("refusal") else ""
            if not reason and (listed := sibling(file, FAILURES)).is_file():
                reason = f": {listed.name} says why questions have no answer"
            print(f"Left out: {file} is {status!r}{reason}.", file=sys.stderr)


def natural_order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Unpruned first, then by method and settings, larger budgets first."""
    tokens = row["budget"]
    number = -tokens if isinstance(tokens, (int, float)) else 0
    return row["method"] != "none", row_label(row), number, str(tokens)


def _write_csv(path: Path, table: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = ["relative", "relative_sd", *(key for _, key, _ in _COSTS), "questions"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        scores = [n + end for n in table["benchmarks"] for end in ("", "_sd", "_raw", "_unparsed")]
        writer.writerow(["method", "budget", "seeds", *scores, *columns, "git_commit"])
        for row in table["rows"]:
            cells = [cell or {} for cell in row["benchmarks"].values()]
            values = [cell.get(k) for cell in cells for k in ("percent", "sd", "raw", "unparsed")]
            start = [row_label(row), budget_text(row["budget"]), " ".join(map(str, row["seeds"]))]
            costs = [row[column] for column in columns]
            writer.writerow([*start, *values, *costs, " and ".join(row["git_commits"])])


def _title(entry: Mapping[str, Any]) -> str:
    return entry["title"].partition(" (")[0]


def row_label(row: Mapping[str, Any]) -> str:
    """The method of a row and the settings that tell it from others."""
    settings = [f"{name}={_value(value)}" for name, value in row["settings"].items()]
    return " ".join([label(row["method"]), *settings])


def budget_text(value: float | str | None) -> str:
    """A row's budget; empty without one."""
    return "" if value is None else value if isinstance(value, str) else f"{value:g}"


def _value(value: Any) -> str:
    """A setting as --set takes it."""
    if isinstance(value, (list, tuple)):
        return "+".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def score_text(value: float | None, deviation: float | None, unparsed: float | None) -> str:
    """A score and, where there are any, the share of answers that could not be read, in percent."""
    text = with_deviation(value, deviation)
    return f"{text} ({unparsed:.1f} % unparsed)" if unparsed else text


def with_deviation(value: float | None, deviation: float | None) -> str:
    """A mean and its standard deviation, to a tenth; empty where there is none."""
    if value is None:
        return ""
    return f"{value:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")


if __name__ == "__main__":
    program.run(main)
