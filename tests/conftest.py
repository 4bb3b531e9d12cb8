"""What all tests share."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """The libraries' millions of objects stay: looking through them again and again takes time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _hangups_end_programs() -> Iterator[None]:
    """As in a terminal. Under nohup they are ignored, which programs respect: tests of what they do
    at SIGHUP would wait for ever."""
    before = signal.getsignal(signal.SIGHUP)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, before)
