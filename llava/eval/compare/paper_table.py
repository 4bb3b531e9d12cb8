"""A published table with what was measured beside it, from run records alone.

A run measures a row if its method, its budget and every setting that is not the method's default
are the row's; a setting of the curve that all runs of a method share (x0 scaled to another decoder)
does not count. What was run and is no row of the table becomes a row without published numbers.
Cells that were not run are None, never filled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from .comparison import compare
from .published import DERIVED, Column, PublishedRow, PublishedTable
from .report import natural_order, row_label
from .results import Result

_COSTS = ("tokens_entering", "tokens_leaving")


def fill(table: PublishedTable, results: Sequence[Result]) -> dict[str, Any]:
    """The table as JSON, published and measured numbers apart.

    `columns` say what they count, published and measured; `rows` have, by the key of a column,
    `published` numbers, the `marks` of the notes to them, and `measured` ones: mean `value` over
    `runs` seeds with its standard deviation `sd`. `ratio` and `flops` are in percent of the
    unpruned run. Runs on benchmarks that are not the table's are left out.

    Raises:
        ValueError: two runs measure the same row.
    """
    of_table = [result for result in results if result.benchmark.name in table.benchmarks]
    compared = compare(of_table)
    measured = _Measured(table, of_table, compared["rows"])
    rows = [measured.paper_row(row) for row in table.rows]
    if not table.in_columns:
        rows += [measured.other_row(row) for row in sorted(measured.unused(), key=natural_order)]
    models = compared["made_with"].get("model", [])
    return {
        "table": table.name,
        "title": table.title,
        "source": table.source,
        "model": table.model,
        "same_model": all(_plain(table.model) in _plain(model) for model in models),
        "columns": [_describe(column, of_table) for column in table.columns],
        "derived": list(table.derived),
        "budgets_in": "columns" if table.in_columns else "rows",
        "rows": rows,
        "notes": dict(table.notes),
        "settings_of_all": compared["settings_of_all"],
        "made_with": compared["made_with"],
    }


class _Measured:
    """The rows of a comparison, found by what the rows of the table ask for."""

    def __init__(
        self, table: PublishedTable, results: Sequence[Result], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        self._table = table
        self._by_file = {str(result.answers_file): result for result in results}
        self._rows = rows
        self._used: set[int] = set()
        self._dense = self._scores(self._find("none", {}, None))

    def paper_row(self, row: PublishedRow) -> dict[str, Any]:
        cells, runs = {}, []
        for column in self._table.columns:
            run = self._find(row.method, row.settings, row.budget(column))
            cells[column.key] = self._score(run, column)
            runs.append(run)
        whole = None if self._table.in_columns else runs[0]
        return {
            "label": row.label,
            "method": row.method,
            "settings": dict(row.settings),
            "published_row": True,
            "tokens": row.tokens,
            "counted": row.counted,
            "source": row.source,
            "published": {key: row.values.get(key) for key in self._keys},
            "marks": dict(row.marks),
            "git_commits": _unique(run["git_commits"] for run in runs if run),
            **self._measured(cells, whole),
        }

    def other_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "label": row_label(row),
            "method": row["method"],
            "settings": row["settings"],
            "published_row": False,
            "tokens": row["budget"],
            "counted": None,
            "source": None,
            "published": dict.fromkeys(self._keys),
            "marks": {},
            "git_commits": row["git_commits"],
            **self._measured(self._scores(row), row),
        }

    def unused(self) -> list[Mapping[str, Any]]:
        return [row for row in self._rows if id(row) not in self._used]

    @property
    def _keys(self) -> list[str]:
        return [*(column.key for column in self._table.columns), *self._table.derived]

    def _find(
        self, method: str, settings: Mapping[str, Any], budget: float | None
    ) -> Mapping[str, Any] | None:
        matching = [
            row
            for row in self._rows
            if (row["method"], row["settings"], row["budget"]) == (method, settings, budget)
        ]
        if len(matching) > 1:
            files = [
                file
                for row in matching
                for cell in row["benchmarks"].values()
                if cell
                for file in cell["answers_files"]
            ]
            raise ValueError(
                f"{', '.join(files)} measure the same row of table {self._table.name} "
                f"({row_label(matching[0])}): leave some out"
            )
        self._used |= {id(row) for row in matching}
        return matching[0] if matching else None

    def _scores(self, run: Mapping[str, Any] | None) -> dict[str, dict[str, Any] | None]:
        return {column.key: self._score(run, column) for column in self._table.columns}

    def _score(self, run: Mapping[str, Any] | None, column: Column) -> dict[str, Any] | None:
        cell = run and run["benchmarks"].get(column.benchmark)
        if not cell:
            return None
        results = [self._by_file[file] for file in cell["answers_files"]]
        values = [result.score[_metric(column, result)] for result in results]
        if None in values:
            return None
        return {
            "value": fmean(values),
            "sd": stdev(values) if len(values) > 1 else None,
            "runs": len(values),
            "unparsed": cell["unparsed"],
            "answers_files": cell["answers_files"],
        }

    def _measured(self, cells: Mapping[str, Any], run: Mapping[str, Any] | None) -> dict[str, Any]:
        """The measured half of a row: scores, ratio and costs; `run` has all of its budget."""
        costs = {name: run[name] if run else None for name in _COSTS}
        flops = run["prefill_flops_ratio"] if run else None
        return {
            "measured": {
                **cells,
                DERIVED[0]: None if run is None else self._ratio(cells),
                DERIVED[1]: None if flops is None else {"value": 100 * flops, "sd": None},
            },
            **costs,
        }

    def _ratio(self, cells: Mapping[str, Any]) -> dict[str, Any] | None:
        if not all(cells.values()) or not all(c and c["value"] for c in self._dense.values()):
            return None
        ratios = [cells[key]["value"] / dense["value"] for key, dense in self._dense.items()]
        return {"value": 100 * fmean(ratios), "sd": None}


def _unique(lists: Iterable[list[str]]) -> list[str]:
    return list(dict.fromkeys(each for listed in lists for each in listed))


def _metric(column: Column, result: Result) -> str:
    return column.metric or result.benchmark.metric


def _describe(column: Column, results: Sequence[Result]) -> dict[str, Any]:
    """What a column counts; what was asked, if any run has it."""
    entry: dict[str, Any] = {
        "key": column.key,
        "heading": column.heading,
        "benchmark": column.benchmark,
        "published": column.convention,
        "tokens": column.tokens,
        "measured": None,
    }
    result = next((r for r in results if r.benchmark.name == column.benchmark), None)
    if result is not None:
        samples, metric = result.score["samples"], _metric(column, result)
        entry["measured"] = {
            "title": result.benchmark.title,
            "metric": metric,
            "best": result.best if metric == result.benchmark.metric else None,
            "prompts": result.score.get("prompts"),
            "answered": samples,
            "questions": samples + result.score["missing"],
            "limit": result.settings.get("limit"),
        }
    return entry


def _plain(name: str) -> str:
    """A checkpoint's name without what its formats change: llava-v1.5-7b, llava-1.5-7b-hf."""
    return re.sub(r"-v(?=\d)", "-", name.lower())
