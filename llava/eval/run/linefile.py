"""JSON-lines files that survive any way a program can end.

A line is written whole; what a kill or a full disk leaves behind is at most half a last line, which
the next program to open the file cuts off. A last line that is whole but for its newline, as
editors and other programs leave it, gets one. What something else does to the file meanwhile is
noticed, and what was written is called safe only after it has been looked at.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet

from llava.common import json_files

from .rescue import account_for

try:
    import fcntl
except ImportError:  # Windows has no advisory locks: two runs on one file then go unnoticed
    fcntl = None  # type: ignore[assignment]

_BLOCK = 1 << 20  # bytes read at a time for a digest
_BOM = b"\xef\xbb\xbf"


class WriteError(RuntimeError):
    """Something could not be written; what was written before it is whole and on disk."""


class LostError(RuntimeError):
    """Something else has changed the file meanwhile; says what is left and how to go on."""


class _Content(NamedTuple):
    """What the file holds, as far as this process knows."""

    size: int = 0
    lines: int = 0  # blank ones not counted
    digest: Any = hashlib.blake2b()

    def plus(self, line: bytes) -> _Content:
        digest = self.digest.copy()
        digest.update(line)
        return _Content(self.size + len(line), self.lines + bool(line.strip()), digest)


class LineFile:
    """A JSON-lines file to append to, locked against other processes; made where it is missing.

    Raises:
        OSError: the file cannot be opened or read.
        ValueError: another process is writing to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = _open(path, os.O_CREAT)
        _OPEN.add(self)
        try:
            _lock(self._fd, path)
            self._content = self._make_whole()
        except BaseException:
            self.close()
            raise
        self._identity = _identity(os.fstat(self._fd))

    def append(self, entry: dict[str, Any]) -> int:
        """Write a line, and return its byte offset.

        Raises:
            WriteError: nothing of the line was written; the file still ends in a whole line.
            LostError: as `look`.
        """
        self.look()
        line = (json.dumps(entry) + "\n").encode()
        before, after = self._content, self._content.plus(line)
        try:
            _write(self._fd, line)
            self._content = after
        except BaseException as error:  # also what a signal's handler raises
            os.ftruncate(self._fd, before.size)
            self._content = before
            if isinstance(error, OSError):
                raise WriteError(f"{self.path}: {error.strerror or error}") from error
            raise
        return before.size

    def sync(self) -> None:
        """Make what was appended survive a power cut.

        Raises:
            WriteError: the disk did not take it.
            LostError: as `look`.
        """
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise WriteError(f"{self.path}: {error.strerror or error}") from error
        self.look()

    def look(self) -> None:
        """Raise LostError unless the file is in its place and as long as what was written."""
        if self._change() is not None:
            raise LostError(f"something else has changed {self.path}")

    def verify(self) -> None:
        """Raise LostError unless every byte that was written is in its place.

        What only this process still holds is saved before that; see `rescue.account_for`.
        """
        change = self._change()
        if change in (None, "grown") and self._digest() != self._content.digest.digest():
            change = "rewritten"
        if change is not None:
            content = self._content
            raise LostError(account_for(change, self.path, self._fd, content.size, content.lines))

    def reorder(self, offsets: Iterable[int]) -> None:
        """Keep the lines at these offsets, in this order. Until all is written, nothing changes.

        Raises:
            WriteError: no space for the ordered copy.
            LostError: as `look`.
        """
        ordered = self.path.with_name(self.path.name + ".sorting")
        content = _Content()
        try:
            new = _open(ordered, os.O_CREAT | os.O_TRUNC)
            try:
                _lock(new, ordered)
                with self._reader() as source:
                    for offset in offsets:
                        source.seek(offset)
                        line = source.readline()
                        _write(new, line)
                        content = content.plus(line)
                os.fsync(new)
                shutil.copymode(self.path, ordered)
                self.look()
                os.replace(ordered, self.path)
            except BaseException:
                os.close(new)
                ordered.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise WriteError(f"{ordered}: {error.strerror or error}") from error
        self._fd, old = new, self._fd
        os.close(old)
        self._content, self._identity = content, _identity(os.fstat(new))

    def at(self, path: Path) -> bool:
        """Whether the path names this file; also after `close`."""
        try:
            return _identity(os.stat(path)) == self._identity
        except OSError:
            return False

    def close(self) -> None:
        """Release the file and its lock."""
        _OPEN.discard(self)
        os.close(self._fd)

    def _change(self) -> str | None:
        if not self.path.exists():
            return "gone"
        if not self.at(self.path):
            return "replaced"
        size = os.fstat(self._fd).st_size
        if size == self._content.size:
            return None
        return "cut" if size < self._content.size else "grown"

    def _digest(self) -> bytes:
        """Of as many bytes as were written."""
        digest, rest = hashlib.blake2b(), self._content.size
        with self._reader() as file:
            while block := file.read(min(_BLOCK, rest)):
                digest.update(block)
                rest -= len(block)
        return digest.digest()

    def _make_whole(self) -> _Content:
        """Cut off half a last line, or end one that only lacks its newline; what is there then."""
        content = _Content(digest=hashlib.blake2b())
        with self._reader() as file:
            for line in file:
                if line.endswith(b"\n"):
                    content.digest.update(line)
                    size, lines = content.size + len(line), content.lines + bool(line.strip())
                    content = content._replace(size=size, lines=lines)
                    continue
                if _object(line) is None:
                    os.ftruncate(self._fd, content.size)
                else:
                    _write(self._fd, b"\n")
                    content = content.plus(line + b"\n")
                break
        return content

    def _reader(self) -> Any:
        """The open file from its start, be its name what it is by now."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        return os.fdopen(os.dup(self._fd), "rb")


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

    Blank lines are skipped, and the last line needs no newline.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is not a JSON object; names file and line.
    """
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            skip = len(_BOM) if number == 1 and line.startswith(_BOM) else 0
            if line[skip:].strip():
                entry = _object(line[skip:])
                if entry is None:
                    raise ValueError(
                        f"{path}, line {number}: expected a JSON object, got "
                        f"{json_files.shorten(line)}. {_advice(line)}"
                    )
                yield number, offset + skip, entry
            offset += len(line)


def _object(line: bytes) -> dict[str, Any] | None:
    """The JSON object that a line is, None if it is not one."""
    try:
        entry = json_files.parse(line, "")
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _advice(line: bytes) -> str:
    """How to repair a line that is no object."""
    text = line.lstrip()
    if text.startswith(b"["):
        return "An array does not do: write each of its objects on a line of its own."
    if b"}{" in line.replace(b" ", b""):
        return "Several objects on one line do not do: begin a line with each of them."
    if text.startswith(b"{") and not line.endswith(b"\n"):
        return (
            "The last line is cut off: where a run wrote the file, the same command answers it "
            "again; else fetch the file again."
        )
    return "Correct the line."


def _open(path: Path, flags: int) -> int:
    # To append only: where something else cuts the file, no line may land behind a hole of zeros.
    flags |= os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, 0o666)


def _lock(fd: int, path: Path) -> None:
    # The file itself is locked. A lock of `filelock` is a file of its own, which would stay beside
    # every answers file; where there are no locks, it would also outlive the process.
    if fcntl is None:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"Another process is writing to {path}. Wait for it to end, or give each process a "
            f"file of its own."
        ) from None
    except OSError:
        pass  # some network file systems have no locks; writing works all the same


def _write(fd: int, line: bytes) -> None:
    rest = memoryview(line)
    while rest:  # a disk that fills up may take a part before it reports the error
        rest = rest[os.write(fd, rest) :]


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
