"""What all tests share."""

from __future__ import annotations

import gc

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """The libraries' millions of objects stay: looking through them again and again takes time."""
    gc.collect()
    gc.freeze()
