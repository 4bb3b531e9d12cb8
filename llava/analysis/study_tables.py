"""The table of a study: what the records and answers of its rows say, as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.base import Benchmark
from llava.eval.compare.markdown import table as write_table
from llava.eval.compare.results import find_benchmark
from llava.eval.run.linefile import read_lines
from llava.eval.run.record import commits, read_record
from llava.eval.run.totals import Totals

from .study_rows import Row
from .study_statistics import (
    DRAWS,
    KINDS,
    Comparison,
    Mark,
    Unit,
    estimate,
    read_marks,
    read_unasked,
)

_COSTS = ("prefill", "scoring", "merging", "computed", "dense_prefill")


def table(
    rows: Sequence[tuple[Row, float, Sequence[Path]]],
    unpruned: Sequence[Path],
    data: Path,
    benchmarks: Mapping[str, Benchmark],
    parity: int | None,
) -> dict[str, Any]:
    """The study as JSON. Each row has its group, label, tokens of `WORK` and the answers of its
    run, one file for each of the unpruned run's; differences are to the first row of the same
    tokens.

    Questions with several pictures that some row could not be asked are left out of all rows and
    counted as `left_out`. Rows that lack other answers are left out and named as `incomplete`.
    """
    complete, incomplete = [], []
    unasked: list[set[int]] = [set() for _ in unpruned]
    for row, tokens, files in rows:
        lacking = [
            read_unasked(file, whole, _benchmark(whole, data, benchmarks), data)
            for file, whole in zip(files, unpruned, strict=True)
        ]
        if None in lacking:
            incomplete.append(f"{row.group}: {row.label}, {tokens:g}")
            continue
        complete.append((row, tokens, files))
        unasked = [of_all | (of_row or set()) for of_all, of_row in zip(unasked, lacking)]
    whole, records = _read(unpruned, unasked, data, benchmarks, parity)
    marks, kept, costs = [whole], [], []
    for row, tokens, files in complete:
        of_row, of_files = _read(files, unasked, data, benchmarks, parity)
        records += of_files
        marks.append(of_row)
        kept.append((row, tokens))
        costs.append(_costs(of_files))
    comparison = Comparison.of(marks)
    relative = comparison.relative(0)
    kinds = {name: comparison.of_kind(name) for name in KINDS}
    shares = {name: comparison.of_benchmark(name) for name in comparison.benchmarks}
    first = {}
    entries = []
    for place, ((row, tokens), cost) in enumerate(zip(kept, costs), 1):
        base = first.setdefault(tokens, place)
        columns = {"relative": relative, **{k: v for k, v in kinds.items() if v is not None}}
        entry: dict[str, Any] = {"group": row.group, "label": row.label, "tokens": tokens, **cost}
        for name, draws in columns.items():
            entry[name] = estimate(draws[:, place])._asdict()
            gap = estimate(draws[:, place] - draws[:, base])
            entry[f"{name}_difference"] = None if place == base else gap._asdict()
        entry["benchmarks"] = {name: float(draws[0, place]) for name, draws in shares.items()}
        entries.append(entry)
    return {
        "rows": entries,
        "unpruned": {
            "benchmarks": {name: float(draws[0, 0]) for name, draws in shares.items()},
            **{name: float(v[0, 0]) for name, v in kinds.items() if v is not None},
        },
        "questions": {
            name: sum(whole[unit].answers for unit in whole if unit.benchmark == name)
            for name in comparison.benchmarks
        },
        "draws": DRAWS,
        "left_out": {
            _benchmark(file, data, benchmarks).name: len(indices)
            for file, indices in zip(unpruned, unasked)
            if indices
        },
        "incomplete": incomplete,
        "git_commits": commits(records),
    }


def _benchmark(file: Path, data: Path, benchmarks: Mapping[str, Benchmark]) -> Benchmark:
    return find_benchmark(file, read_record(file)["settings"], data, benchmarks)


def _read(
    files: Sequence[Path],
    left_out: Sequence[set[int]],
    data: Path,
    benchmarks: Mapping[str, Benchmark],
    parity: int | None,
) -> tuple[dict[Unit, Mark], list[dict[str, Any]]]:
    """Marks and records of a row, without the questions that are left out of each file."""
    marks: dict[Unit, Mark] = {}
    records = []
    for file, indices in zip(files, left_out):
        marks |= read_marks(file, _benchmark(file, data, benchmarks), data, parity, indices)
        record = read_record(file)
        if indices:
            answers = [answer["metadata"] for _, _, answer in read_lines(file)]
            counted = [metadata for metadata in answers if metadata["index"] not in indices]
            totals = Totals()
            for metadata in counted:
                totals.add(metadata)
            record |= {"counts": {"answered": len(counted)}, **totals.to_dict()}
        records.append(record)
    return marks, records


def _costs(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Tokens entering a layer, and shares of the unpruned FLOPs, over all answers of a row."""
    sums = {name: sum(record["flops"][name] for record in records) for name in _COSTS}
    counts = [record["counts"]["answered"] for record in records]
    entering = [record["tokens"]["entering"] or 0.0 for record in records]
    published = sums["prefill"] + sums["scoring"] + sums["merging"]
    return {
        "entering": sum(n * e for n, e in zip(counts, entering)) / sum(counts),
        "flops": published / sums["dense_prefill"],
        "computed_flops": sums["computed"] / sums["dense_prefill"],
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The rows in their order, group by group."""
    kinds = [name for name in KINDS if name in result["unpruned"]]
    several = len({entry["tokens"] for entry in result["rows"]}) > 1
    headings = [*(["T"] if several else []), "", "row", "relative %", "difference"]
    for name in kinds:
        headings += [f"{name} %", "difference"]
    headings += ["FLOPs", "computed", "tokens entering"]
    lines = []
    for entry in result["rows"]:
        cells = [f"{entry['tokens']:g}"] if several else []
        cells += [entry["group"], entry["label"], _interval(entry["relative"])]
        cells.append(_difference(entry["relative_difference"]))
        for name in kinds:
            cells += [f"{entry[name]['value']:.1f}", _difference(entry[f"{name}_difference"])]
        cells += [f"{entry['flops']:.1%}", f"{entry['computed_flops']:.1%}"]
        lines.append([*cells, f"{entry['entering']:.1f}"])
    return write_table(headings, lines)


def matrix(result: Mapping[str, Any]) -> str:
    """Rows against budgets, short: those that keep most at the smallest budget first."""
    budgets = list(dict.fromkeys(entry["tokens"] for entry in result["rows"]))
    rows: dict[tuple[str, str], dict[float, Mapping[str, Any]]] = {}
    for entry in result["rows"]:
        rows.setdefault((entry["group"], entry["label"]), {})[entry["tokens"]] = entry

    def kept(row: Mapping[float, Mapping[str, Any]]) -> list[float]:
        return [row[t]["relative"]["value"] if t in row else -1.0 for t in budgets]

    kinds = [name for name in KINDS if name in result["unpruned"]]
    headings = ["row", *(f"relative %, T = {t:g}" for t in budgets), *(f"{k} %" for k in kinds)]
    lines = []
    for (_, label), row in sorted(rows.items(), key=lambda item: kept(item[1]), reverse=True):
        cells = [_interval(row[t]["relative"]) if t in row else "–" for t in budgets]
        for kind in kinds:
            shares = [f"{row[t][kind]['value']:.0f}" if t in row else "–" for t in budgets]
            cells.append(" / ".join(shares))
        lines.append([label, *cells])
    return write_table(headings, lines)


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['value']:.1f} [{value['low']:.1f}, {value['high']:.1f}]"


def _difference(value: Mapping[str, float] | None) -> str:
    if value is None:
        return ""
    return f"{value['value']:+.1f} [{value['low']:+.1f}, {value['high']:+.1f}]"


def notes(result: Mapping[str, Any]) -> Iterator[str]:
    """How it was counted, a line each."""
    questions = ", ".join(f"{name} {n}" for name, n in result["questions"].items())
    which = {"all": "", "even": " (even pictures)", "odd": " (odd pictures)"}[result["pictures"]]
    yield (
        f"- Questions with a picture{which}: {questions}. Relative: mean over benchmarks of the "
        "share right / that of the unpruned model. Reading and counting: shares right, of kinds of "
        "questions in all benchmarks."
    )
    unpruned = {k: v for k, v in result["unpruned"].items() if k != "benchmarks"}
    unpruned = result["unpruned"]["benchmarks"] | unpruned
    yield f"- Unpruned: {', '.join(f'{name} {v:.1f}' for name, v in unpruned.items())}."
    yield (
        f"- Brackets: 95 % of {result['draws']} bootstrap draws of the questions of each benchmark,"
        " the same for all rows. Difference: to the first row, of pairs."
    )
    yield (
        f"- Rows have equal FLOPs ({result['counting']} counting, scoring and merging included), "
        "in percent of the unpruned prefill; computed: what really ran."
    )
    for name, number in result["left_out"].items():
        yield (
            f"- Left out of all rows: {number} questions of {name} with several pictures, which "
            "cost some row more than its budget before its first cut."
        )
    if result["incomplete"]:
        yield f"- Not complete, left out: {'; '.join(result['incomplete'])}."
    yield f"- Made with git_commit {' and '.join(result['git_commits'])}."
