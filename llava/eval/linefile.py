"""JSON-lines files that survive any way a program can end.

A line is written whole, in one call; what a kill or a full disk leaves behind is at most half a
last line, which the next program to open the file cuts off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakSet

try:
    import fcntl
except ImportError:  # Windows has no advisory locks: two runs on one file then go unnoticed
    fcntl = None  # type: ignore[assignment]

_BLOCK = 65536  # bytes read at a time when looking for the last newline


class WriteError(RuntimeError):
    """Something could not be written; what was written before it is whole and on disk."""


class LineFile:
    """A JSON-lines file to append to, locked against other processes; made where it is missing.

    Raises:
        OSError: the file cannot be opened or read.
        ValueError: another process is writing to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        _OPEN.add(self)
        try:
            self._lock()
            self._size = self._end_of_last_line()
            os.ftruncate(self._fd, self._size)
        except BaseException:
            self.close()
            raise

    def append(self, entry: dict[str, Any]) -> int:
        """Write a line, and return its byte offset.

        Raises:
            WriteError: nothing of the line was written; the file still ends in a whole line.
        """
        line = (json.dumps(entry) + "\n").encode()
        offset = self._size
        try:
            os.lseek(self._fd, offset, os.SEEK_SET)
            rest = memoryview(line)
            while rest:  # a disk that fills up may take a part before it reports the error
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            os.ftruncate(self._fd, offset)
            raise WriteError(f"{self.path}: {error.strerror or error}") from error
        self._size += len(line)
        return offset

    def sync(self) -> None:
        """Make what was appended survive a power cut.

        Raises:
            WriteError: the disk did not take it.
        """
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise WriteError(f"{self.path}: {error.strerror or error}") from error

    def close(self) -> None:
        """Release the file and its lock."""
        _OPEN.discard(self)
        os.close(self._fd)

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"Another process is writing to {self.path}. Wait for it to end, or give each "
                f"process a file of its own."
            ) from None
        except OSError:
            pass  # some network file systems have no locks; writing works all the same

    def _end_of_last_line(self) -> int:
        end = os.fstat(self._fd).st_size
        while end:
            start = max(end - _BLOCK, 0)
            os.lseek(self._fd, start, os.SEEK_SET)
            newline = os.read(self._fd, end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return 0


_OPEN: WeakSet[LineFile] = WeakSet()


def _leave_files_to_the_parent() -> None:
    # A lock lasts as long as any copy of the descriptor. Image workers outlive a killed parent by
    # seconds, in which the same command would be told that another process is writing.
    for file in list(_OPEN):
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_files_to_the_parent)


def read_lines(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield (line number from 1, byte offset, object) for every line of a JSON-lines file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is not a JSON object or not ended; names file and line.
    """
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            if not isinstance(entry, dict) or not line.endswith(b"\n"):
                raise ValueError(
                    f"{path}, line {number}: expected a JSON object that ends in a newline, got "
                    f"{line[:80]!r}. Remove the line; where it is the last one, running the "
                    f"command that writes the file again does that."
                )
            yield number, offset, entry
            offset += len(line)
