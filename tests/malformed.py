"""Values, files and bytes that no reader expects, put into the places of a good file."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BOM = b"\xef\xbb\xbf"
#: Deeper than Python reads, and as deep as it just reads.
DEEP, NEARLY_DEEP = ("[" * depth + "]" * depth for depth in (100_000, 950))
#: JSON text by name: every type, and what only some programs write.
VALUES = {
    "null": "null",
    "true": "true",
    "negative": "-1",
    "fraction": "1.5",
    "20 digits": "9" * 20,
    "400 digits": "9" * 400,
    "5000 digits": "9" * 5000,
    "largest": "1e308",
    "beyond": "1e400",
    "NaN": "NaN",
    "-Infinity": "-Infinity",
    "empty": '""',
    "text": '"x"',
    "surrogate": r'"\ud800"',
    "list": "[]",
    "list of lists": "[[[]], {}]",
    "object": "{}",
    "other object": '{"a": {"b": []}}',
    "nearly deep": NEARLY_DEEP,
    "deep": DEEP,
}
#: Of these, what no reader of JSON takes, and what can stand for no field that a reader looks at.
UNREADABLE = ("deep", "5000 digits")
NEVER = ("list of lists", "other object", "nearly deep")
#: Contents of a whole file.
CONTENTS = {
    "empty": b"",
    "no UTF-8": b'{"a": "\xff"}\n',
    "half": b'{"a": ',
    "deep": DEEP.encode() + b"\n",
    "null": b"null\n",
    "text": b'"x"\n',
    "number": b"7\n",
    "list": b"[[]]\n",
    "object": b'{"x": {}}\n',
}
_PLACE = "the place of a value"

Content = Any  # what a .json file holds, or the list of a .jsonl file's lines
Place = tuple[str | int, ...]


def write(path: Path, content: Content) -> None:
    """A file in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_text(path, content))


def _text(path: Path, content: Content) -> str:
    if path.suffix == ".jsonl" or path.name.startswith("coco_pope"):
        return "".join(json.dumps(line) + "\n" for line in content)
    return content if isinstance(content, str) else json.dumps(content)


def places(content: Content, place: Place = ()) -> Iterator[Place]:
    """Every field and the first entry of every list, at any depth."""
    if isinstance(content, dict):
        entries: Any = content.items()
    else:
        entries = list(enumerate(content))[:1] if isinstance(content, list) else ()
    for key, value in entries:
        yield (*place, key)
        yield from places(value, (*place, key))


def damaged(path: Path, content: Content, place: Place) -> Iterator[tuple[str, str]]:
    """(what is wrong, text of the file) with each of the values at a place, and without it."""
    changed = copy.deepcopy(content)
    *parents, last = place
    parent = changed
    for key in parents:
        parent = parent[key]
    parent[last] = _PLACE
    text = _text(path, changed)
    for name, value in VALUES.items():
        yield name, text.replace(json.dumps(_PLACE), value)
    del parent[last]
    yield "missing", _text(path, changed)


@dataclass(frozen=True)
class Program:
    """A program and good files for it, by their names in a folder; `written` by code.

    `damage`: the file that is damaged, `needed`: the fields it cannot be without, dotted.
    """

    run: Callable[[Path], int | None]
    damage: str
    needed: set[str]
    files: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Path], Any] = lambda folder: None

    def write(self, folder: Path) -> Any:
        """All files; the content of the one to damage."""
        self.prepare(folder)
        for name, content in self.files.items():
            write(folder / name, content)
        path = folder / self.damage
        if path.suffix == ".jsonl" or path.name.startswith("coco_pope"):
            return [json.loads(line) for line in path.read_text().splitlines()]
        return json.loads(path.read_text())
