"""Which model the command line gets."""

from __future__ import annotations

import pytest

from .stub import StubModel


@pytest.fixture
def use(monkeypatch):
    """Make the command line load this model."""

    def install(model: StubModel) -> StubModel:
        monkeypatch.setattr("llava.model.builder.load_pretrained_model", model.load)
        return model

    return install


@pytest.fixture
def no_model(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the model must not be loaded")

    return lambda: monkeypatch.setattr("llava.model.builder.load_pretrained_model", refuse)
