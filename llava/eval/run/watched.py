"""Whether files that are read again and again are still what they were: if so, once is enough."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

_BLOCK = 1 << 20  # bytes read at a time for a digest
# A file system may not tell two changes within so many nanoseconds from one.
_YOUNG = 2 * 10**9

Params = ParamSpec("Params")
Content = TypeVar("Content")


class ChangedError(RuntimeError):
    """A file is no longer what it was when it was first read."""


def file_status(path: Path) -> tuple[int, ...]:
    """What changes with a file, or when another one takes its place.

    Raises:
        OSError: no such file.
    """
    there = path.stat()
    return there.st_ino, there.st_size, there.st_mtime_ns, there.st_ctime_ns


def file_sha256(path: Path) -> hashlib._Hash:
    """The digest of a file, to be read or to be continued."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest


class WatchedFile:
    """A file that had this status when it was read first, and this digest.

    Without a digest it is taken at the first look: until then the status tells a change.
    """

    def __init__(self, path: Path, status: tuple[int, ...], sha256: str | None = None) -> None:
        self._path = path
        self._status = status
        self._sha256 = sha256

    def require_same(self) -> None:
        """Raise ChangedError unless the file holds what it held; reads it only where it must."""
        try:
            status = file_status(self._path)
            if status == self._status and self._sha256 is not None:
                return
            sha256 = file_sha256(self._path).hexdigest()
        except OSError as error:
            raise ChangedError(f"{self._path} cannot be read any more: {error}") from error
        # Touching a file, or copying it over itself, changes nothing that matters.
        if sha256 != self._sha256 and (self._sha256 is not None or status != self._status):
            raise ChangedError(f"{self._path} is not what it was when it was read first")
        self._status, self._sha256 = status, sha256


class Loading:
    """How long this process has spent in functions that `read_once` decorates; `seconds` of it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def __enter__(self) -> None:
        if not self._depth:
            self._since = time.perf_counter()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self.seconds += time.perf_counter() - self._since


#: That of this process.
LOADING = Loading()


def read_once(
    files: Callable[..., Iterable[Path]],
) -> Callable[[Callable[Params, Content]], Callable[Params, Content]]:
    """Decorator of a function that loads files: called again, it loads them only if they changed.

    files: which ones these are, for the function's arguments; they need not exist. Each argument
        can be hashed. Callers share what is loaded, so nobody changes it.
    """

    def decorate(load: Callable[Params, Content]) -> Callable[Params, Content]:
        kept: dict[object, tuple[dict[Path, tuple[int, ...]], Content]] = {}

        @wraps(load)
        def loaded(*args: Params.args, **kwargs: Params.kwargs) -> Content:
            with LOADING:
                key = args, tuple(kwargs.items())
                statuses = dict(_statuses(files(*args, **kwargs)))
                if key in kept and kept[key][0] == statuses:
                    return kept[key][1]
                trusted = time.time_ns() - _YOUNG
                content = load(*args, **kwargs)
                if all(modified < trusted for _, _, modified, _ in statuses.values()):
                    kept[key] = statuses, content
                return content

        return loaded

    return decorate


def the_path(path: Path) -> Iterable[Path]:
    """`files` of a function whose argument is a file."""
    return (path,)


def _statuses(files: Iterable[Path]) -> Iterator[tuple[Path, tuple[int, ...]]]:
    for path in files:
        try:
            yield path, file_status(path)
        except OSError:  # missing, which is what loading it says
            continue
