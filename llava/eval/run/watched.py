"""Whether a file that a run reads again and again is still what the run began with."""

from __future__ import annotations

import hashlib
from pathlib import Path

_BLOCK = 1 << 20  # bytes read at a time for a digest


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
