"""Ctrl-C, SIGTERM and SIGHUP end a run at a place where nothing is half done."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from llava.common.signals import ending_signals, keep_exit_status, leave


class Interruption:
    """Within this context the signals raise KeyboardInterrupt, except inside `hold()`.

    Only the first does: what is left then is tidying up, which another must not cut. Outside the
    main thread, where Python allows no handlers, it does nothing.

    Attributes: `seen`, whether a signal came.
    """

    def __init__(self) -> None:
        self.seen = False
        self._old: dict[int, Any] = {}
        self._old_hook = sys.unraisablehook
        self._held = False
        self._raised = False
        self._pending: int | None = None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in ending_signals():
                self._old[number] = signal.signal(number, self._handle)
            sys.unraisablehook = self._unraisable
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._old:
            return
        keep_exit_status()
        sys.unraisablehook = self._old_hook
        for number, handler in self._old.items():
            signal.signal(number, handler)
        outer = getattr(self._old.get(self._pending), "__self__", None)
        if isinstance(outer, Interruption) and not self._raised:
            signal.raise_signal(self._pending)  # it came too late for this run, not for a sweep

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Let the body finish first; a signal that came meanwhile is raised at its end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._pending is not None:
            self._pending = None
            self._raised = True
            raise KeyboardInterrupt

    def ignore(self) -> None:
        """Disregard the signals from here on: what is left is tidying up."""
        self._held = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        if self._held or self._raised:
            self._pending = number
        else:
            self._raised = True
            raise KeyboardInterrupt

    def _unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Where Python could raise nothing, the end of the next `hold()` does."""
        if unraisable.exc_type is not None and issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._pending = signal.SIGINT
        else:
            self._old_hook(unraisable)


@contextmanager
def ends_at_once() -> Iterator[None]:
    """Within this context a signal ends the process, even one that waits in C code.

    There Python runs no handler until the wait is over. Nothing may be half done within it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [int(number) for number in ending_signals()]
    read, write = os.pipe()
    os.set_blocking(write, False)

    def end() -> None:
        while number := os.read(read, 1):
            if number[0] in numbers:
                leave()

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(write)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write)
        thread.join()
        os.close(read)
