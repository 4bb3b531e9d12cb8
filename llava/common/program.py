"""How every program of this package is named, and how it ends: with the status of its `main`, if
its output arrived.

Python writes the standard output for the last time after the program, when nothing can be said
about it any more, and what a full disk or a closed pipe then breaks ends in "Exception ignored".
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

EXIT_UNWRITTEN = 1
EXIT_UNREAD = 128 + 13  # of a program that SIGPIPE ends

_names: dict[str, str] = {}  # of modules that the console script runs


def name(module: str) -> str:
    """What the program of a module is called on the command line, for its `prog`."""
    return _names.get(module, f"python -m {module}")


@contextmanager
def named(module: str, command: str) -> Iterator[None]:
    """Meanwhile the program of a module is called `command`."""
    _names[module] = command
    try:
        yield
    finally:
        del _names[module]


class _OutputError(Exception):
    """The standard output cannot be written. No OSError: that is about a file of the program."""


class _Output(io.TextIOWrapper):
    """The standard output, which raises `_OutputError`."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise _OutputError from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise _OutputError from error


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a program's `main` and end the process with its status.

    Where the standard output cannot be written it is 1, with a message; 141, without one, where its
    reader has gone (`| head`). Characters that it has no bytes for are written as escapes.
    """
    plain = sys.stdout
    if plain is None:  # closed by whoever started the program
        sys.exit(main())
    sys.stdout = output = _Output(
        io.BufferedWriter(io.FileIO(plain.fileno(), "wb", closefd=False)),
        encoding=plain.encoding,
        errors="backslashreplace",
        line_buffering=plain.line_buffering or plain.write_through,
    )
    try:
        try:
            status = main()
        finally:
            output.flush()
    except _OutputError as lost:
        # What is left in the buffer is written once more at the very end, to where it can be.
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
        if isinstance(lost.__cause__, BrokenPipeError):
            sys.exit(EXIT_UNREAD)
        reason = getattr(lost.__cause__, "strerror", None) or lost.__cause__
        print(f"error: cannot write the standard output: {reason}", file=sys.stderr)
        sys.exit(EXIT_UNWRITTEN)
    sys.exit(status)
