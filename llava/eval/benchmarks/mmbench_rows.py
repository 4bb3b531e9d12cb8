"""The TSV files of MMBench: what their rows ask, and the questions a run gets of them.

A row has index, question, hint, A to D, answer, category, image, source, l2-category, comment and
split; some of these are missing in some releases, and `picture_cells` says what an image
may be. LLaVA asks the hint, the question and the options up to the first empty one, a line each,
and then for the letter alone.
Prompt: haotian-liu/LLaVA, llava/eval/model_vqa_mmbench.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from ..run.picture_cells import Cell, find_places, read_cell
from ..run.question_list import Table, TableQuestions, file_digest
from ..run.questions import Question
from ..run.watched import read_once, the_path
from .base import existing

LETTERS = ("A", "B", "C", "D")
INSTRUCTIONS = {
    "en": "Answer with the option's letter from the given choices directly.",
    "cn": "请直接回答选项字母。",
}
ROTATION = 1_000_000
_SOURCE = "the TSV files of MMBench, with images and answers, come from open-compass/MMBench."

# The cells that pandas, with which LLaVA reads the file, takes for empty, except for spellings of
# "nan" and "none", which LLaVA tests for itself.
_EMPTY = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN", "-NaN", "-nan")
) | {"<NA>", "N/A", "NA", "NULL", "n/a", "null"}


@dataclass(frozen=True)
class Row:
    """A row without its image. `text` is the question as LLaVA asks it, without instruction."""

    index: int
    picture: Cell
    text: str
    options: tuple[str, ...]
    answer: str | None
    category: str | None
    l2_category: str | None

    @property
    def base(self) -> int:
        """Index of the question of which this is a rotation, or which it is."""
        return self.index % ROTATION


def read_questions(
    path: Path, num_chunks: int = 1, chunk_idx: int = 0, *, instruction: str | None
) -> TableQuestions:
    """The questions of a TSV file, one a row, each followed by `instruction`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, an index twice, a wrong chunk; names the row.
    """
    table, rows = load_rows(path)
    cells = {str(row.index): row.picture for row in rows}
    places = [find_places(str(row.index), cells) for row in rows]
    questions = [
        _question(position, row, 1 if isinstance(place, str) else len(place), path, instruction)
        for position, (row, place) in enumerate(zip(rows, places))
    ]
    digest = file_digest(path, instruction)
    return TableQuestions(table, digest, questions, places, num_chunks, chunk_idx)


@read_once(the_path)
def load_rows(path: Path) -> tuple[Table, list[Row]]:
    """The table in a TSV file and its rows; raises as `open_table` and `read_rows`."""
    table = open_table(path)
    return table, read_rows(table)


def open_table(path: Path) -> Table:
    """The table in a TSV file of MMBench; raises what `Table` raises, and says where it is from."""
    return Table(existing(path, _SOURCE))


def read_rows(table: Table) -> list[Row]:
    """Every row of the table, in order, without the images."""
    if absent := {"index", "question", "A", "B", "image"} - set(table.columns):
        raise ValueError(
            f"{table.path}: no column {', '.join(sorted(absent))}, only {table.columns}. Expected "
            f"a TSV like mmbench_dev_20230712.tsv."
        )
    rows: dict[int, Row] = {}
    for offset, cells in table:
        row = _row(cells, offset, table.path)
        if row.index in rows:
            raise ValueError(f"{table.path}: two rows with index {row.index}.")
        rows[row.index] = row
    return list(rows.values())


def _question(
    position: int, row: Row, pictures: int, path: Path, instruction: str | None
) -> Question:
    where = f"of index {row.index} in {path.name}"
    several = [f"image {number} {where}" for number in range(1, pictures + 1)]
    first, *more = several if pictures > 1 else [f"the image {where}"]
    return Question(
        position,
        row.index,
        row.text if instruction is None else f"{row.text}\n{instruction}",
        first,
        logged=row.text,
        more=tuple(more),
        options=row.options,
    )


def _row(cells: dict[str, str], offset: int, path: Path) -> Row:
    index, question = cells["index"], cells["question"]
    if not re.fullmatch("[0-9]+", index) or not question.strip() or not cells["image"].strip():
        raise ValueError(
            f"{path}, row at byte {offset}: expected a whole number as index, a question and an "
            f"image, got index {index[:40]!r}, question {question[:80]!r} and "
            f"{len(cells['image'])} characters of image."
        )
    hint = cells.get("hint", "")
    options = tuple(takewhile(lambda option: not _is_empty(option), map(cells.get, LETTERS)))
    lines = [question] if _is_empty(hint) else [hint, question]
    lines += [f"{letter}. {option}" for letter, option in zip(LETTERS, options)]
    return Row(
        int(index),
        read_cell(cells["image"], offset),
        "\n".join(lines),
        options,
        answer=cells.get("answer") or None,
        category=cells.get("category") or None,
        l2_category=cells.get("l2-category") or None,
    )


def _is_empty(cell: str | None) -> bool:
    return cell is None or cell in _EMPTY or cell.lower() in ("nan", "none")
