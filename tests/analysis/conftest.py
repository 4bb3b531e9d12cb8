"""The embedded checkpoint, loaded once, and a picture that is not square."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.mm_utils import load_image
from llava.model.builder import load_pretrained_model

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "playground" / "demo" / "llava-demo"
MINI = ROOT / "playground" / "data" / "mini"
SCENE = MINI / "textvqa" / "train_images" / "scene000000.jpg"
QUESTION = "What word is on the yellow sign?"


@pytest.fixture(scope="session")
def demo() -> tuple[Any, Any, Any]:
    """Tokenizer, model and image processor of the embedded checkpoint: 12 layers, 576 patches."""
    tokenizer, model, image_processor, _ = load_pretrained_model(
        DEMO, dtype="float32", device="cpu"
    )
    return tokenizer, model, image_processor


@pytest.fixture(scope="session")
def wide() -> Image.Image:
    """The upper half of a scene: 336 x 168, padded to a square above and below."""
    return load_image(SCENE).crop((0, 0, 336, 168))
