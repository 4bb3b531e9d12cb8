"""A filled paper table as Markdown, as lines of notes and as CSV; see `paper_table`."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .markdown import table as write_table
from .published import ROW
from .report import UNPARSED, budget_text, provenance, score_text, with_deviation

_DERIVED_HEADINGS = {"ratio": "ratio %", "flops": "FLOPs %"}
_COSTS = (("tokens entering", "tokens_entering"), ("tokens leaving", "tokens_leaving"))


def markdown(table: Mapping[str, Any]) -> str:
    """Published and measured columns side by side; an empty cell has no number."""
    pairs = _pairs(table)
    in_rows = table["budgets_in"] == "rows"
    alone = [key for key in _DERIVED_HEADINGS if key not in pairs] if in_rows else []
    headings = [
        "method",
        *(["tokens", "counted"] if in_rows else []),
        *(f"{heading} {side}" for heading in pairs.values() for side in ("published", "measured")),
        *(f"{_DERIVED_HEADINGS[key]} measured" for key in alone),
        *(f"{heading} measured" for heading, _ in _COSTS if in_rows),
    ]
    rows = []
    for row in table["rows"]:
        cells = [_marked(row["label"], row["marks"].get(ROW, ""))]
        if in_rows:
            cells += [budget_text(row["tokens"]), row["counted"] or ""]
        for key in pairs:
            published = row["published"][key]
            text = "" if published is None else str(published)
            cells += [_marked(text, row["marks"].get(key, "")), _measured(row, key)]
        cells += [_measured(row, key) for key in alone]
        cells += [with_deviation(row[key], None) for _, key in _COSTS if in_rows]
        rows.append(cells)
    return write_table(headings, rows)


def notes(table: Mapping[str, Any]) -> Iterator[str]:
    """Where the published numbers come from, how both halves count, and what is wrong with them."""
    yield f"- Published: {table['source']}; model {table['model']}."
    for row in table["rows"]:
        if row["source"]:
            yield f"- Published numbers of {row['label']}: {row['source']}."
    for mark, text in table["notes"].items():
        yield f"- [{mark}] {text}"
    seen = set()
    for column in table["columns"]:
        if column["benchmark"] not in seen:
            seen.add(column["benchmark"])
            yield _column_note(column, in_columns=table["budgets_in"] == "columns")
    if "ratio" in table["derived"]:
        yield (
            "- Ratio: mean over the columns of score / unpruned score, in percent. Published: of "
            "its own unpruned row. Measured: of the unpruned run measured here; empty unless every "
            "score of both rows is there."
        )
    if table["budgets_in"] == "columns":
        counted = " or ".join(dict.fromkeys(row["counted"] for row in table["rows"]))
        yield f"- The budgets in the columns are counted on tokens {counted} a layer."
    else:
        yield (
            "- `counted` says what the budget of the row is counted on: tokens leaving a layer, "
            "tokens entering it (which it processes), or tokens kept after first layers that run "
            "on all. Measured tokens are means over layers and over all questions of the row."
        )
        yield (
            "- FLOPs: by the published counting, of the decoder's prefill, text and visual tokens, "
            "in percent of the unpruned model. Papers count multiply-accumulates, measured are 2 "
            "for each, which cancels; every token that enters a layer counts as run through all of "
            "it. Vision tower, scoring and merging are left out; what was really computed stands "
            "in the table of llava.eval.compare.report."
        )
    if any(_partial(row, table) for row in table["rows"]):
        yield "- Rows with empty cells have tokens and FLOPs of fewer questions than the others."
    if any(cell and cell["sd"] is not None for row in table["rows"] for cell in _cells(row)):
        yield "- ± is the standard deviation over seeds (n - 1), the number before it their mean."
    if any(cell and cell.get("unparsed") for row in table["rows"] for cell in _cells(row)):
        yield UNPARSED
    if not table["same_model"]:
        models = ", ".join(table["made_with"]["model"])
        yield (
            f"- Measured with {models}, published for {table['model']}: compare the rows of one "
            f"side with each other, not the two sides."
        )
    if table["made_with"]:
        yield from provenance(table)


def write_csv(path: Path, table: Mapping[str, Any]) -> None:
    """One line a row: numbers unrounded, marks in columns of their own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = [*(column["key"] for column in table["columns"]), *_DERIVED_HEADINGS]
    ends = ("published", "marks", "measured", "sd", "runs", "unparsed")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "method",
                "run",
                "settings",
                "tokens",
                "counted",
                "marks",
                *(f"{key}_{end}" for key in keys for end in ends),
                *(key for _, key in _COSTS),
                "git_commit",
            ]
        )
        for row in table["rows"]:
            settings = " ".join(f"{name}={value}" for name, value in row["settings"].items())
            line = [row["label"], row["method"], settings, row["tokens"], row["counted"]]
            line.append(row["marks"].get(ROW))
            for key in keys:
                cell = row["measured"][key] or {}
                line += [row["published"].get(key), row["marks"].get(key)]
                line += [cell.get(name) for name in ("value", "sd", "runs", "unparsed")]
            line += [row[key] for _, key in _COSTS]
            writer.writerow([*line, " and ".join(row["git_commits"])])


def _pairs(table: Mapping[str, Any]) -> dict[str, str]:
    """Keys and headings of the columns that have both halves."""
    return {column["key"]: column["heading"] for column in table["columns"]} | {
        key: _DERIVED_HEADINGS[key] for key in table["derived"]
    }


def _cells(row: Mapping[str, Any]) -> list[Mapping[str, Any] | None]:
    return list(row["measured"].values())


def _partial(row: Mapping[str, Any], table: Mapping[str, Any]) -> bool:
    scores = [row["measured"][column["key"]] for column in table["columns"]]
    return table["budgets_in"] == "rows" and any(scores) and not all(scores)


def _measured(row: Mapping[str, Any], key: str) -> str:
    cell = row["measured"][key]
    return "" if cell is None else score_text(cell["value"], cell["sd"], cell.get("unparsed"))


def _marked(text: str, marks: str) -> str:
    return " ".join([text, *(f"[{mark}]" for mark in marks)])


def _column_note(column: Mapping[str, Any], *, in_columns: bool) -> str:
    heading = column["heading"]
    if in_columns:
        heading = heading.removesuffix(f" {column['tokens']}")
    text = f"- {heading}: {column['published']}."
    measured = column["measured"]
    if measured is None:
        return f"{text} Not measured."
    limit = "" if measured["limit"] is None else f" (--limit {measured['limit']})"
    extent = f"{measured['answered']} of {measured['questions']} questions{limit}"
    best = "" if measured["best"] in (None, 100) else f" of {measured['best']:g}"
    prompts = "" if measured["prompts"] is None else f", prompts {measured['prompts']}"
    metric = f"{measured['metric']}{best}{prompts}"
    return f"{text} Measured: {measured['title']}, {metric}, {extent}."
