"""Accuracy against visual tokens that enter a layer, FLOPs and prefill time: one line a method.

    python -m llava.analysis.tradeoff RUNS --data playground/data/eval --out tradeoff.png
    python -m llava.analysis.tradeoff table.json --out tradeoff.png

RUNS are folders of `sweep` or `tables`, or answers of finished runs;
table.json is what `llava.eval.compare.report --json` made of such runs. Accuracy is the mean of the
benchmarks' scores in percent of the best; rows that lack one of the benchmarks are left out, and
named on stderr. Tokens are the true ones, those that enter a layer, whatever a method's budget
counts; FLOPs are of the decoder's prefill by the published counting (`llava.pruning.cost`), in
percent of the unpruned model; time is the mean wall clock of a prefill, and compares within one
machine. The unpruned model and runs without an image are level lines through their points; random
tokens and the uniform grid, which a method has to beat, are dashed. The ending of --out is the
format: png, jpg, pdf, svg. The last line of stdout is what was drawn as JSON. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from llava.common import flags, json_files, program
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.benchmarks.base import Benchmark
from llava.eval.compare.comparison import accuracy, compare
from llava.eval.compare.report import budget_text, collect, natural_order, row_label, start_logging

from . import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLOPS_HEADING = "prefill FLOPs (published counting), % of unpruned"

Kind = Literal["method", "floor", "level"]

#: Lines beside the unpruned model and no picture; more cannot be told apart.
MOST = 8

#: What the time of a prefill holds, by a comparison's `vision_apart`.
TOWER = {True: ", without the vision tower", False: ", with the vision tower", None: ""}

_LEVELS = ("none", "no-image")
_FLOORS = ("random", "uniform-grid")
_NAMES = {"none": "unpruned", "no-image": "no image"}


@dataclass(frozen=True)
class Point:
    """A row: mean tokens entering a layer, prefill FLOPs by the published counting and accuracy in
    percent, its budget, and milliseconds of a prefill, None where its runs measured different
    things; `interval` is half of the accuracy's 95 % interval, None where it is not known."""

    tokens: float
    flops: float
    accuracy: float
    budget: str
    prefill_ms: float | None
    interval: float | None = None


@dataclass(frozen=True)
class Series:
    """The rows of a method with the same settings, by tokens entering."""

    label: str
    kind: Kind
    points: Sequence[Point]


def series(table: Mapping[str, Any]) -> tuple[list[Series], list[str]]:
    """What to draw of a comparison (`comparison.compare`), and the rows left out.

    Levels come first, then floors, then methods. A row is left out if it lacks a score, or if
    none of its questions had an image.
    """
    points: dict[str, list[Point]] = {}
    kinds: dict[str, Kind] = {}
    left_out: list[str] = []
    for row in sorted(table["rows"], key=natural_order):
        name = row_label(row)
        label = _NAMES.get(name, name)
        score, interval = accuracy(row)
        costs = row["tokens_entering"], row["prefill_flops_ratio"]
        if score is None or None in costs:
            left_out.append(f"{label} {budget_text(row['budget'])}".strip())
            continue
        kinds[label] = _kind(row["method"])
        budget, time = budget_text(row["budget"]), row["prefill_ms"]
        point = Point(costs[0], 100 * costs[1], score, budget, time, interval)
        points.setdefault(label, []).append(point)
    drawn = [
        Series(label, kinds[label], sorted(points_of, key=lambda point: point.tokens))
        for label, points_of in points.items()
    ]
    order = ("level", "floor", "method")
    return sorted(drawn, key=lambda line: order.index(line.kind)), left_out


def foremost(drawn: Sequence[Series], most: int = MOST) -> tuple[list[Series], list[str]]:
    """Levels, floors and the methods that keep most accuracy, at most `most` lines beside levels;
    and the labels of the others."""
    methods = [line for line in drawn if line.kind == "method"]
    room = max(most - sum(line.kind == "floor" for line in drawn), 0)
    methods.sort(key=lambda line: -fmean(point.accuracy for point in line.points))
    others = {line.label for line in methods[room:]}
    return [line for line in drawn if line.label not in others], sorted(others)


def figure(drawn: Sequence[Series], title: str, vision_apart: bool | None) -> Figure:
    """Three panels: tokens, FLOPs and prefill time on the abscissa.

    `vision_apart` is the comparison's: whether times are without the vision tower.

    Raises:
        ImportError: matplotlib is not installed; says how to get it.
    """
    result = plotting.new_figure(17, 4.8)
    panels = result.subplots(1, 3, sharey=True)
    for axes, name, heading in zip(
        panels,
        ("tokens", "flops", "prefill_ms"),
        (
            "visual tokens entering a layer, mean",
            FLOPS_HEADING,
            f"prefill, ms a question{TOWER[vision_apart]}",
        ),
    ):
        for number, line in enumerate(drawn):
            _draw(axes, line, name, f"C{number % 10}")
        axes.set_xlabel(heading)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        _name(axes)
    panels[0].set_ylabel("accuracy, % of the best, with 95 % intervals")
    result.suptitle(title, x=0.02, ha="left")
    return result


def read_table(path: Path) -> dict[str, Any]:
    """A comparison that `llava.eval.compare.report --json` wrote.

    Raises:
        ValueError, OSError: no file, no JSON, or not such a comparison of this version.
    """
    try:
        table = json_files.check(json_files.read(path), path, {"benchmarks": dict, "rows": list})
        missing = {"made_with", "vision_apart"} - table.keys()
        missing |= {
            name
            for number, row in enumerate(table["rows"], 1)
            for name in _COLUMNS - json_files.check(row, f"{path}, row {number}", {}).keys()
        }
        if not missing:
            _check_table(table, path)
    except ValueError as error:
        raise ValueError(
            f"{error}. It is no table of llava.eval.compare.report --json; give folders of runs, "
            "or such a table"
        ) from None
    if missing:
        raise ValueError(
            f"{path} was written by an older version, it lacks {', '.join(sorted(missing))}: write "
            "it again with llava.eval.compare.report --json"
        )
    return table


def _check_table(table: Mapping[str, Any], path: Path) -> None:
    """Raise a ValueError unless everything that is drawn has its type."""
    json_files.check(table, path, {"made_with": dict}, optional={"vision_apart": bool})
    models = json_files.check(table["made_with"], f"{path}, made_with", {"model": list})["model"]
    if not all(isinstance(model, str) for model in models):
        raise ValueError(f"{path}: models must be texts, got {json_files.shorten(models)}")
    for name, entry in table["benchmarks"].items():
        json_files.check(entry, f"{path}, benchmark {name!r}", {"title": str})
    for number, row in enumerate(table["rows"], 1):
        where = f"{path}, row {number}"
        fields = {"method": str, "settings": dict, "benchmarks": dict}
        costs = dict.fromkeys(("tokens_entering", "prefill_flops_ratio", "prefill_ms"), float)
        json_files.check(row, where, fields, {"budget": (float, str), **costs})
        if row["benchmarks"].keys() != table["benchmarks"].keys():
            raise ValueError(f"{where}: its benchmarks are not those of the table")
        json_files.check_plain(row["settings"], f"{where}, settings")
        json_files.check_plain({name: row[name] for name in ("budget", *costs)}, where)
        for name, cell in row["benchmarks"].items():
            if cell is not None:
                place = f"{where}, {name!r}"
                number = {"percent": (float, type(None))}
                json_files.check(cell, place, number, {"standard_error": float})
                numbers = {name: cell.get(name) for name in ("percent", "standard_error")}
                json_files.check_plain(numbers, place)


_COLUMNS = frozenset(
    {
        "method",
        "settings",
        "budget",
        "benchmarks",
        "tokens_entering",
        "prefill_flops_ratio",
        "prefill_ms",
    }
)


def main(
    argv: Sequence[str] | None = None, benchmarks: Mapping[str, Benchmark] = BENCHMARKS
) -> int:
    """Run the command line; 2 on wrong input or without matplotlib."""
    start_logging()
    parser = argparse.ArgumentParser(
        prog=program.name("llava.analysis.tradeoff"),
        description="Draw accuracy against visual tokens entering a layer, FLOPs and time.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        help="folders of runs, answers of finished runs, or a table of "
        "llava.eval.compare.report --json",
    )
    parser.add_argument("--data", type=Path, help="folder of the benchmarks' folders, for runs")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="png, jpg, pdf or svg"
    )
    parser.add_argument(
        "--most",
        type=flags.whole(1),
        default=MOST,
        metavar="N",
        help="lines beside the unpruned model: those that keep most (default: %(default)s)",
    )
    parser.add_argument("--dpi", type=plotting.dpi, default=plotting.DPI)
    args = parser.parse_args(argv)
    try:
        table = _comparison(args, benchmarks)
        drawn, left_out = series(table)
        for row in left_out:
            print(f"Left out: {row}, which lacks a benchmark or tokens.", file=sys.stderr)
        drawn, others = foremost(drawn, args.most)
        if others:
            print(f"Not drawn (--most): {', '.join(others)}.", file=sys.stderr)
        if not drawn:
            raise ValueError("no row has every benchmark: nothing to draw.")
        models = ", ".join(table["made_with"]["model"])
        # without what the brackets add ("val2014"): seven benchmarks must fit on one line
        titles = (entry["title"].split(" (")[0] for entry in table["benchmarks"].values())
        result = figure(drawn, f"{models}: {', '.join(titles)}", table["vision_apart"])
        plotting.save(result, args.out, args.dpi)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        json.dumps({"out": str(args.out), "series": [asdict(line) for line in drawn]}), flush=True
    )
    return 0


def _comparison(args: argparse.Namespace, benchmarks: Mapping[str, Benchmark]) -> dict[str, Any]:
    tables = [path for path in args.runs if path.suffix == ".json"]
    if tables:
        if len(args.runs) > 1:
            raise ValueError("give one table, or folders and answers of runs")
        return read_table(tables[0])
    if args.data is None:
        raise ValueError("runs are scored against --data, the folder of the benchmarks' folders")
    return compare(collect(args.runs, args.data, benchmarks))


def _draw(axes: Any, line: Series, name: str, colour: str) -> None:
    points = [point for point in line.points if getattr(point, name) is not None]
    if not points:
        return
    x, y = [getattr(point, name) for point in points], [point.accuracy for point in points]
    if line.kind == "level":
        axes.axhline(y[0], color=colour, linestyle=":", linewidth=1)
        axes.plot(x, y, color=colour, marker="*", linestyle="none", label=line.label)
        return
    style = "--" if line.kind == "floor" else "-"
    axes.plot(x, y, color=colour, marker="o", linestyle=style, label=line.label)
    bars = [point.interval or 0 for point in points]
    axes.errorbar(x, y, bars, color=colour, linestyle="none", linewidth=1, capsize=2, alpha=0.6)


def _name(axes: Any) -> None:
    """Write each line's label right of the panel, at the height of its last point, apart from
    the others, in its colour."""
    low, high = axes.get_ylim()
    apart = (high - low) / 20
    ends = sorted(
        (line.get_ydata()[-1], line.get_xdata()[-1], line)
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    )
    height = low - apart
    for y, x, line in ends:
        height = max(y, height + apart)
        axes.annotate(
            line.get_label(),
            (x, y),
            (1.02, height),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            fontsize="small",
            color=line.get_color(),
            arrowprops={"arrowstyle": "-", "color": line.get_color(), "alpha": 0.3},
            annotation_clip=False,
        )


def _kind(method: str) -> Kind:
    if method in _LEVELS:
        return "level"
    return "floor" if method in _FLOORS else "method"


if __name__ == "__main__":
    program.run(main)
