"""Pictures in the cells of a table: what a cell may hold, and which row has the picture itself.

A cell is base64, in one piece or in lines, with or without padding and `data:image/...;base64,` in
front; or the index of the row that has the picture, with which open-compass/MMBench saves space in
rotated rows; or a list of these, as JSON or Python writes it, of several pictures. All of this is
read by open-compass/VLMEvalKit (vlmeval/dataset/image_base.py), which follows one reference; here
references may lead on.
"""

from __future__ import annotations

import ast
import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass

from llava.common import json_files

_DATA_URL = re.compile(r"data:[^,]*,", re.IGNORECASE)
_NO_DIGIT = re.compile("[^0-9A-Za-z+/]")
_URL_SAFE = str.maketrans("-_", "+/")


@dataclass(frozen=True)
class Place:
    """Where a picture is: in the row at byte `offset` of the table, the `entry`-th of its cell."""

    offset: int
    entry: int


@dataclass(frozen=True)
class Cell:
    """A cell without its pictures: for each entry the index that it refers to, as digits, or None
    for a picture of its own."""

    offset: int
    references: tuple[str | None, ...]


def read_cell(text: str, offset: int) -> Cell:
    """What the picture cell of the row at `offset` holds."""
    return Cell(offset, tuple(_reference(entry) for entry in _entries(text)))


def find_places(index: str, cells: Mapping[str, Cell]) -> list[Place] | str:
    """Where the pictures of the row `index` are, or why nowhere; `cells` are by index."""
    if not cells[index].references:
        return f"the picture cell of index {index} is an empty list"
    places: list[Place] = []
    for entry, reference in enumerate(cells[index].references):
        if reference is None:
            places.append(Place(cells[index].offset, entry))
            continue
        holder = _holder(reference, cells)
        if isinstance(holder, str):
            named = json_files.shorten(reference)
            return f"index {index} takes the picture of index {named}, {holder}"
        places += [Place(holder.offset, number) for number in range(len(holder.references))]
    return places


def decode(text: str, entry: int) -> bytes:
    """The bytes of a picture in a cell; what is no digit of base64 is skipped, as LLaVA does.

    Raises:
        ValueError: cut off behind a digit.
    """
    data = _DATA_URL.sub("", _entries(text)[entry].lstrip(), count=1)
    data = _NO_DIGIT.sub("", data.translate(_URL_SAFE))
    return base64.b64decode(data + "=" * (-len(data) % 4))


def _entries(text: str) -> list[str]:
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return [text]
    try:
        entries = json_files.parse(text, "the cell")
    except ValueError:
        try:
            entries = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return [text]
    return [entry if isinstance(entry, str) else json_files.shorten(entry) for entry in entries]


def _reference(entry: str) -> str | None:
    digits = entry.strip()
    return (digits.lstrip("0") or "0") if re.fullmatch("[0-9]+", digits) else None


def _holder(index: str, cells: Mapping[str, Cell]) -> Cell | str:
    """The cell with pictures to which this index leads, over others perhaps, or why it does not."""
    seen: set[str] = set()
    while index not in seen:
        if (cell := cells.get(index)) is None:
            return "and there is no such row" if not seen else "which takes that of no row"
        if cell.references and not any(cell.references):
            return cell
        if len(cell.references) != 1:
            break
        seen.add(index)
        index = str(cell.references[0])
    return "which has none of its own"
