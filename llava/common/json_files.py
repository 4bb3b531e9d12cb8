"""JSON from outside: one way to read it, and one way to say what is wrong with it.

Files come from other programs, other people and editors. Whatever is wrong with one becomes a
ValueError that names the place (a file, with its line where it has lines) and what was expected.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: What a field may be: a type, or several.
Types = type | tuple[type, ...]

#: The largest number that is taken for one: sums and products of a few are still numbers.
LARGEST = 1e30

_WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
    type(None): "null",
}
_SHOWN = 80  # characters of a wrong value that a message shows


def parse(content: str | bytes, where: str | Path) -> Any:
    """The value that JSON text holds; bytes are UTF-8, with or without a byte order mark.

    Raises:
        ValueError: not UTF-8, not JSON, or nested deeper than Python reads; begins with `where`.
    """
    try:
        return json.loads(content.decode("utf-8-sig") if isinstance(content, bytes) else content)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error}): {shorten(content)}") from None
    except RecursionError:
        raise ValueError(f"{where} is nested too deep to be read: {shorten(content)}") from None


def read(path: Path, expected: Types = dict) -> Any:
    """The value in a JSON file, of the type that is expected.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or of another type; names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}")
    value = parse(path.read_bytes(), path)
    if not is_one_of(value, expected):
        raise ValueError(f"{path} must hold {_words(expected)}, got {shorten(value)}")
    return value


def check(
    entry: Any,
    where: str | Path,
    fields: Mapping[str, Types],
    optional: Mapping[str, Types] | None = None,
) -> dict[str, Any]:
    """`entry`, once it is an object with all `fields`, each of its type.

    fields: types by name. As in JSON, true is no number; an integer is a number (float).
    optional: likewise, of fields that may be missing or null.

    Raises:
        ValueError: it is not; begins with `where`, and names each field that is wrong.
    """
    if not isinstance(entry, dict):
        raise ValueError(
            f"{where}: expected an object with {_listed(fields)}, got {shorten(entry)}"
        )
    wrong = [
        f"{name} must be {_words(types)}, got {shorten(entry[name])}"
        if name in entry
        else f"{name} is missing (found {_listed(entry)})"
        for name, types in fields.items()
        if name not in entry or not is_one_of(entry[name], types)
    ]
    wrong += [
        f"{name} must be {_words(types)}, got {shorten(entry[name])}"
        for name, types in (optional or {}).items()
        if entry.get(name) is not None and not is_one_of(entry[name], types)
    ]
    if wrong:
        raise ValueError(f"{where}: {'; '.join(wrong)}")
    return entry


def is_one_of(value: Any, types: Types) -> bool:
    """Whether a JSON value is of one of the types: true is no number, an integer is a float."""
    types = types if isinstance(types, tuple) else (types,)
    if isinstance(value, bool):
        return bool in types
    return isinstance(value, types) or (isinstance(value, int) and float in types)


def is_number(value: Any, largest: float = LARGEST) -> bool:
    """Whether a JSON value is a finite number, no larger than `largest`; true is none."""
    return is_one_of(value, float) and abs(value) <= largest  # which no NaN is


def check_plain(group: Mapping[str, Any], where: str | Path) -> None:
    """Hold all values of a group to null, texts, numbers, true and false, and lists of such.

    Raises:
        ValueError: one is something else; begins with `where`.
    """
    for name, value in group.items():
        for each in value if isinstance(value, list) else [value]:
            if not (each is None or isinstance(each, (bool, str)) or is_number(each)):
                raise ValueError(
                    f"{where}: {name} must be a text or a finite number, got {shorten(each)}"
                )


def shorten(value: Any) -> str:
    """The start of a value, for a message."""
    if isinstance(value, bytes):
        text = value[: 4 * _SHOWN].decode("utf-8", "replace").strip()
    else:
        try:
            text = value.strip() if isinstance(value, str) else repr(value)
        except (RecursionError, ValueError):  # nested too deep; an integer of thousands of digits
            text = f"a {type(value).__name__}"
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _words(types: Types) -> str:
    types = types if isinstance(types, tuple) else (types,)
    return " or ".join(_WORDS[each] for each in types)


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(shorten(name) for name in names) or "nothing"
