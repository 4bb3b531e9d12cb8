"""Ctrl-C, SIGTERM and SIGHUP: one handler for all three, for as long as it fits.

Nothing here takes time to import, so a program can do this before it imports the rest.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 130
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Handler = Callable[[int, FrameType | None], Any]


def leave(number: int, frame: FrameType | None) -> None:
    """Handler: end the process at once, with 130.

    For times when nothing is half done, and for a second signal. An exception would meet libraries
    in the middle of their imports, and the interpreter's own ending aborts where a thread is still
    inside torch.
    """
    with suppress(OSError):
        os.write(2, b"Interrupted.\n")
    os._exit(EXIT_INTERRUPTED)


def install(handler: Handler) -> dict[int, Any]:
    """Have `handler` called for each of the three; what was called before, by signal.

    SIGHUP stays ignored where it is, as under nohup. Outside the main thread, where Python allows
    no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    kept = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    return {number: signal.signal(number, handler) for number in _ENDING if number not in kept}


@contextmanager
def handling(handler: Handler) -> Iterator[None]:
    """Inside, `handler` is called for each of the three; afterwards, what was before."""
    before = install(handler)
    try:
        yield
    finally:
        for number, other in before.items():
            signal.signal(number, other)
