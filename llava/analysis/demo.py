"""The demonstration: a small comparison, its table and bars, and two files to look at.

    bash scripts/demo.sh        calls this with the embedded checkpoint and the mini benchmarks

It takes the flags of `llava.eval.compare.sweep`, shows one live line while it asks, and ends with
a short table: accuracy (the mean of the benchmarks in percent of the best, with its 95 % interval),
visual tokens that enter a layer, prefill FLOPs (published counting, scoring included) and
milliseconds to the first token. --picture shows which patches of one question go on, --page the
runs and what pruning changed. `autoprune report` prints the whole table of the same runs.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llava.common import program
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.benchmarks.base import Benchmark
from llava.eval.compare import sweep
from llava.eval.compare.comparison import accuracy, compare, recorded_pruner
from llava.eval.compare.report import budget_text, collect, row_label
from llava.eval.compare.results import Result
from llava.eval.compare.runs import CURVE
from llava.eval.run.runner import EXIT_COMPLETE
from llava.mm_utils import load_image

from .tradeoff import TOWER

_NAMES = {"none": "unpruned", "no-image": "no picture", "uniform-grid": "uniform grid"}
_CARDS = 8
_BAR = 24  # characters
_EIGHTHS = " ▏▎▍▌▋▊▉"


def main(
    argv: Sequence[str] | None = None, benchmarks: Mapping[str, Benchmark] = BENCHMARKS
) -> int:
    """Run the command line; the exit status of the sweep, 2 on wrong input."""
    parser = sweep.build_parser(benchmarks)
    parser.prog = program.name("llava.analysis.demo")
    parser.description = "A small comparison with a short table, bars and two files to look at."
    parser.add_argument("--picture", type=Path, default=Path("demo.png"), metavar="FILE")
    parser.add_argument(
        "--ask", nargs=2, metavar=("IMAGE", "QUESTION"), required=True, help="what --picture shows"
    )
    parser.add_argument("--page", type=Path, default=Path("report.html"), metavar="FILE")
    args = parser.parse_args(argv)
    with _quiet():
        outcome = sweep.run_all(args, benchmarks, live=True)
    if outcome.code != EXIT_COMPLETE:
        return outcome.code
    try:
        results = collect(outcome.complete, args.data, benchmarks)
        table = compare(results)
        print(short_table(table))
        print()
        print("\n".join(bars(table)))
        print()
        print("\n".join(_notes(table)))
        _draw(args, results, table["rows"])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"\nWritten: {args.picture} (which patches go on) and {args.page} (answers that changed)."
    )
    print("Open them, or ask the model yourself, in a browser:")
    print(f"    .venv/bin/autoprune view --model-path {args.model_path}")
    return EXIT_COMPLETE


@contextmanager
def _quiet() -> Iterator[None]:
    """Without this package's warnings: what is odd about the mini benchmarks is known."""
    logger = logging.getLogger("llava")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def short_table(table: Mapping[str, Any]) -> str:
    """The comparison in five columns, padded to be read in a terminal; Markdown all the same."""
    headings = ["", "accuracy, %", "tokens a layer", "FLOPs", "first token"]
    rows = [
        [
            label(row),
            accuracy_text(row),
            f"{row['tokens_entering']:.0f}",
            f"{row['prefill_flops_ratio_with_scoring']:.0%}",
            "" if row["prefill_ms"] is None else f"{row['prefill_ms']:.0f} ms",
        ]
        for row in table["rows"]
    ]
    widths = [max(map(len, column)) for column in zip(headings, *rows)]
    lines = [headings, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |"
        for line in lines
    )


def label(row: Mapping[str, Any]) -> str:
    """A row's name for a reader, such as `autoprune 64, balanced`; without scaled depths."""
    settings = {name: value for name, value in row["settings"].items() if name not in CURVE}
    name = row_label(row | {"settings": {}})
    more = row_label(row | {"settings": settings})[len(name) :].replace("preset=", "").strip()
    shown = " ".join([_NAMES.get(name, name), budget_text(row["budget"])]).strip()
    return f"{shown}, {more}" if more else shown


def accuracy_text(row: Mapping[str, Any]) -> str:
    """Such as `92.1 ± 2.4`: see `llava.eval.compare.comparison.accuracy`.

    Raises:
        ValueError: a benchmark has no score.
    """
    mean, half = accuracy(row)
    if mean is None or half is None:
        raise ValueError(f"{label(row)}: a benchmark has no score; ask more questions (--limit)")
    return f"{mean:.1f} ± {half:.1f}"


def bars(table: Mapping[str, Any]) -> Iterator[str]:
    """What is kept and what it costs: two bars a row, as long as the numbers of the table."""
    rows = table["rows"]
    width = max(len(label(row)) for row in rows)
    yield f"{'':{width}}  {'accuracy':{_BAR + 6}}FLOPs"
    for row in rows:
        right, cost = accuracy(row)[0] or 0, 100 * row["prefill_flops_ratio_with_scoring"]
        yield f"{label(row):{width}}  {_bar(right):{_BAR}} {right:3.0f}  {_bar(cost)} {cost:.0f} %"


def _bar(percent: float) -> str:
    whole, part = divmod(round(percent / 100 * _BAR * 8), 8)
    return "█" * whole + (_EIGHTHS[part] if part else "")


def _notes(table: Mapping[str, Any]) -> Iterator[str]:
    questions = sum(entry["answered"] for entry in table["benchmarks"].values())
    titles = [entry["title"].partition(" (")[0] for entry in table["benchmarks"].values()]
    yield (
        f"Accuracy: mean of {', '.join(titles)}, {questions} questions a row, ± its 95 % interval."
    )
    yield "Tokens: visual ones that enter a layer, mean. FLOPs: prefill, scoring included."
    yield f"First token: mean wall clock of a prefill{TOWER[table['vision_apart']]}."


def _draw(
    args: argparse.Namespace, results: Sequence[Result], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write the picture and the page, unless they are younger than every answer."""
    newest = max(result.answers_file.stat().st_mtime for result in results)
    files = args.picture, args.page
    if all(file.is_file() and file.stat().st_mtime >= newest for file in files):
        return
    # Imported here because a second run needs neither model nor transformers.
    from . import keep, page, traced

    print("Drawing ...", file=sys.stderr, flush=True)
    ask = page.Asker(results[0], args.data, None, args.device, args.offline)
    content = page.gather(results, args.data, _CARDS, ask=ask)
    args.page.parent.mkdir(parents=True, exist_ok=True)
    args.page.write_text(page.render(content), encoding="utf-8", errors="replace")
    pruned = [result for result in results if result.pruner["method"] not in _NAMES]
    names = [label(row) for row in rows if row["method"] not in _NAMES]
    if not pruned:
        raise ValueError("no run prunes by a method: nothing to draw")
    pruner = recorded_pruner(pruned[-1].answers_file, pruned[-1].pruner)
    image, question = load_image(Path(args.ask[0])), args.ask[1]
    tokenizer, model, processor, _ = ask.model
    trace = traced.run(model, tokenizer, processor, image, question, pruner)
    layers = [0, trace.layers // 3, trace.layers]
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    drawn = keep.sheet({names[-1]: trace}, question, layers)
    drawn.save(args.picture, optimize=True)


if __name__ == "__main__":
    program.run(main)
