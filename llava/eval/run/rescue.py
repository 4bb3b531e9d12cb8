"""What is left of a file that something else has changed while a run wrote to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import BinaryIO

_BLOCK = 1 << 20  # bytes copied at a time


def account_for(change: str, path: Path, fd: int, size: int, lines: int) -> str:
    """Save what only the open file still holds; a message with what happened and how to go on.

    Where nothing has the path's name any more, the lines are put back there. Where something else
    has it, that stays as it is, and they go beside it.

    change: "gone", "replaced", "cut" (shorter), "grown" or "rewritten".
    fd: the open file; size, lines: what was written to it.
    """
    if change in ("gone", "replaced"):
        fate = "deleted or moved away" if change == "gone" else "replaced by another file"
        return f"{path} was {fate} while this run wrote to it. {_save(path, fd, size, lines)}"
    if change == "cut":
        left = sum(block.count(b"\n") for block in _blocks(fd, size))
        return (
            f"{path} was cut from {size} to {os.fstat(fd).st_size} bytes while this run wrote to "
            f"it: {left} of {lines} lines are left. The same command makes the others again."
        )
    if change == "grown":
        return (
            f"Something else wrote to {path} while this run did. The {lines} lines of this run are "
            f"there, but what follows byte {size} is not of it: remove that, and the same command "
            f"continues."
        )
    return (
        f"{path} was rewritten while this run wrote to it and does not hold what was written. Put "
        f"it back as it was, or remove the lines that are wrong; the same command makes those that "
        f"are missing."
    )


def _save(path: Path, fd: int, size: int, lines: int) -> str:
    """Copy the open file to the path if nothing is there, else beside it; say what was done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _new_file(path) as file:
            target = Path(file.name)
            for block in _blocks(fd, size):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"Its {lines} lines could not be saved: {error}."
    if target == path:
        return f"Its {lines} lines have been put back; the same command continues from there."
    return (
        f"That was left alone, and the {lines} lines of this run are in {target}: move them to "
        f"{path.name} to continue from there, or leave them and the same command continues from "
        f"what is in {path.name} now."
    )


def _new_file(path: Path) -> BinaryIO:
    """The first of `path`, `path`.saved, `path`.saved2, ... that does not exist, to write."""
    for number in count():
        ending = "" if number == 0 else f".saved{number if number > 1 else ''}"
        try:
            return path.with_name(path.name + ending).open("xb")
        except FileExistsError:
            continue
    raise AssertionError("count() does not end")


def _blocks(fd: int, size: int) -> Iterator[bytes]:
    """The first `size` bytes of the open file, or as many as there are."""
    os.lseek(fd, 0, os.SEEK_SET)
    while block := os.read(fd, min(_BLOCK, size)):
        size -= len(block)
        yield block
