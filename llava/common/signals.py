"""Ctrl-C, SIGTERM and SIGHUP end a program of this package from its first import on.

All three leave one line and status 130, no traceback. `interruption` is how an answering
run takes them.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

EXIT_INTERRUPTED = 130
_LINE = "Interrupted."
_CONSOLE_SCRIPTS = ("autoprune", "autoprune.exe")
_SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def ending_signals() -> list[signal.Signals]:
    """The signals that ask a program to end; SIGHUP is not one under nohup, nor on Windows."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    there = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [s for s in there if s.name != "SIGHUP" or signal.getsignal(s) is not signal.SIG_IGN]


def is_starting() -> bool:
    """Whether a program of this package is at its start, which is what imports the package."""
    program = sys.argv[0] if sys.argv else ""
    if program != "-m":  # what Python has there until it has found the module
        if Path(program).name in _CONSOLE_SCRIPTS:
            return True
        return program.endswith(".py") and Path(program).resolve().parent == _SCRIPTS
    flags = zip(sys.orig_argv, sys.orig_argv[1:])
    named = [module for flag, module in flags if flag[:1] == "-" and flag[-1:] == "m"]
    return bool(named) and named[0].partition(".")[0] == "llava"


def begin_program() -> None:
    """Take the signals of this process, which is a program of this package from here on."""
    ending = _Ending()
    for number in ending_signals():
        signal.signal(number, ending)
    sys.excepthook = _excepthook
    sys.unraisablehook = _unraisablehook
    # Registered first, so called last: behind it Python would take its own handlers back, and a
    # signal would change the status of a program that has ended.
    atexit.register(_ignore)


class _Ending:
    """Within `main` the first signal raises KeyboardInterrupt, so that nothing is left half done.

    Before it, in imports, and after it nothing can be half done: there the process ends at once. So
    it does at a second signal.
    """

    def __init__(self) -> None:
        self._raised = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._raised or not _in_main(frame):
            leave()
        self._raised = True
        raise KeyboardInterrupt


def _in_main(frame: FrameType | None) -> bool:
    """Whether a `main` is running: the program's own, or that of the module it dispatched to."""
    while frame is not None:
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if frame.f_code.co_name == "main" and package in ("__main__", "llava"):
            return True
        frame = frame.f_back
    return False


def leave() -> NoReturn:
    """End this process with status 130, wherever it is."""
    # The signal may have come in the middle of a print, which cannot be entered twice.
    with suppress(Exception):
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, f"{_LINE}\n".encode())
    os._exit(EXIT_INTERRUPTED)


def keep_exit_status() -> None:
    """Let the program's exit status stand after an interrupt that was dealt with.

    CPython ends by SIGINT instead if the interrupt has once come out of an exec of text, as
    dataclasses and named tuples need in imports. The next exec clears that.
    """
    exec("")


def _ignore() -> None:
    for number in ending_signals():
        signal.signal(number, signal.SIG_IGN)


def _excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    keep_exit_status()
    print(_LINE, file=sys.stderr, flush=True)
    sys.exit(EXIT_INTERRUPTED)


def _unraisablehook(unraisable: sys.UnraisableHookArgs) -> None:
    """A KeyboardInterrupt from where Python can raise nothing ends the process all the same."""
    if unraisable.exc_type is not None and issubclass(unraisable.exc_type, KeyboardInterrupt):
        leave()
    sys.__unraisablehook__(unraisable)
