"""The embedded checkpoint, loaded once, and a picture of it."""

from __future__ import annotations

import pytest

from llava.mm_utils import load_image
from llava.model.builder import load_pretrained_model
from llava.serve.startup import Loaded

from .paths import DEMO, PICTURE


@pytest.fixture(scope="session")
def demo() -> Loaded:
    """In float32, so that a token fed alone and one fed with others give the same argmax."""
    return Loaded(*load_pretrained_model(DEMO, dtype="float32", device="cpu"))


@pytest.fixture(scope="session")
def picture():
    return load_image(PICTURE)
