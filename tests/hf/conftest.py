"""Choosing first for few tokens, too: tiny models have no more."""

from __future__ import annotations

import pytest

from llava.pruning import prefill


@pytest.fixture
def first_for_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "LEAST", 0)
