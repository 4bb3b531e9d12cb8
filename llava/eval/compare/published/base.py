"""What a published table is: columns, rows, the numbers as printed, and what is wrong with them.

A number stands here only if a source that is named has it; a cell without one is left out. Numbers
are as printed, known errors included; a mark leads to the note that says what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

#: Columns that follow from others: mean of score / unpruned score, and the prefill's FLOPs.
DERIVED = ("ratio", "flops")
#: The key of a note to a whole row.
ROW = "row"

#: How the official codes of AutoPrune and FasterVLM put the views of LLaVA-1.6 together and which
#: canvas they choose, see `llava.anyres`; FasterVLM's table gave its rows to the paper's.
OFFICIAL_TILES = {"merge_type": "spatial", "processing": "fill"}

Counted = Literal["leaving", "entering", "kept"]


@dataclass(frozen=True)
class Column:
    """A score: `benchmark` of `llava.eval.benchmarks`, `metric` of its score or its headline.

    `convention` says how the published number counts. Where the table has its budgets in the
    columns, `tokens` is this one's.
    """

    key: str
    heading: str
    benchmark: str
    convention: str
    metric: str | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class PublishedRow:
    """A method at a budget.

    `method` and `settings` are the run that measures the row here: a method of `llava.pruning`
    with these settings and its defaults. `tokens` is the budget as printed, None where the columns
    have it. `counted` says on what: tokens leaving a layer, tokens entering it (which it really
    processes), or tokens kept after the first layers, which run on all; None for a run that has no
    budget. `values` are the published numbers by column, `marks` the notes to them.
    """

    label: str
    method: str
    tokens: int | None
    counted: Counted | None
    values: Mapping[str, float] = field(default_factory=dict)
    marks: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None

    def budget(self, column: Column | None = None) -> int | None:
        """Tokens that the run is asked for, None for a run without a budget."""
        if self.counted is None:
            return None
        return self.tokens if column is None or column.tokens is None else column.tokens

    def run(self, budget: int | None) -> str:
        """The run as `llava.eval.compare.runs` reads it."""
        settings = ",".join(f"{name}={value}" for name, value in self.settings.items())
        tokens = "" if budget is None else f":{budget}"
        return self.method + tokens + (settings and f"@{settings}")


@dataclass(frozen=True)
class PublishedTable:
    """A published table. `source` is that of every number whose row names none of its own.

    `tiled` are the settings of `RunSettings` with which a checkpoint that tiles pictures is run,
    those of the published rows, unless the command line has others.

    Raises:
        ValueError: a row has a number or a note of no column, or two rows are the same run.
    """

    name: str
    title: str
    model: str
    source: str
    columns: Sequence[Column]
    rows: Sequence[PublishedRow]
    derived: Sequence[str] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    tiled: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        keys = {column.key for column in self.columns} | set(self.derived)
        marks = {mark for row in self.rows for text in row.marks.values() for mark in text}
        if marks != self.notes.keys():
            raise ValueError(f"table {self.name}: marks {marks} but notes {set(self.notes)}")
        runs = set()
        for row in self.rows:
            if unknown := row.values.keys() - keys | row.marks.keys() - keys - {ROW}:
                raise ValueError(f"table {self.name}, {row.label}: no columns {sorted(unknown)}")
            run = row.run(row.budget())
            if run in runs:
                raise ValueError(f"table {self.name}: two rows are the run {run}")
            runs.add(run)

    @property
    def benchmarks(self) -> list[str]:
        """The benchmarks of the columns, each once."""
        return list(dict.fromkeys(column.benchmark for column in self.columns))

    @property
    def methods(self) -> list[str]:
        """The methods of the rows, each once."""
        return list(dict.fromkeys(row.method for row in self.rows))

    @property
    def budgets(self) -> list[int]:
        """The budgets of rows or columns, in their order, each once."""
        budgets = (row.budget(c) for row in self.rows if row.counted for c in self.columns)
        return list(dict.fromkeys(budget for budget in budgets if budget is not None))

    @property
    def in_columns(self) -> bool:
        """Whether the columns have the budgets, not the rows."""
        return any(column.tokens is not None for column in self.columns)
