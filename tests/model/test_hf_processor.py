"""The processor of a folder that `convert` wrote; that it prepares inputs as LLaVA does is held by
tests/analysis/test_converted.py."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoProcessor, LlavaNextProcessor

from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import convert
from llava.model.hf_processor import hf_tokenizer, write_processor

from .. import checkpoints

DEMO = Path(__file__).parents[2] / "playground" / "demo" / "llava-demo"


@pytest.mark.parametrize(("aspect_ratio", "padded"), [("pad", True), ("square", False)])
def test_the_types_of_published_checkpoints_too(tmp_path, aspect_ratio, padded) -> None:
    """Their model_type is "llava", and their config says how pictures are padded."""
    shutil.copytree(DEMO, tmp_path / "llava")
    changes = {"model_type": "llava", "image_aspect_ratio": aspect_ratio}
    checkpoints.edit_json(tmp_path / "llava" / "config.json", **changes)
    convert(tmp_path / "llava", tmp_path / "hf", "llava-hf")
    processor: Any = AutoProcessor.from_pretrained(tmp_path / "hf")
    assert processor.image_processor.do_pad is padded
    assert (processor.image_token_id, processor.tokenizer.pad_token_id) == (720, 721)
    assert processor.tokenizer.padding_side == "left"
    _, model, _, _ = load_pretrained_model(tmp_path / "hf", device="cpu", processing="llava-hf")
    assert model.config.image_aspect_ratio == aspect_ratio


def test_tiles(tmp_path) -> None:
    """LLaVA-1.6: an overview and four tiles."""
    tokenizer = hf_tokenizer(DEMO, 720)
    assert tokenizer is not None
    values = {
        "model_type": "llava_next",
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": [[672, 672]],
        "vision_config": {"patch_size": 14},
        "vision_feature_select_strategy": "default",
    }
    write_processor(tmp_path, tokenizer, DEMO / "vision_tower", values)
    assert not (tmp_path / "chat_template.jinja").exists()
    processor: Any = LlavaNextProcessor.from_pretrained(tmp_path)
    picture = Image.new("RGB", (600, 600))
    inputs = processor(picture, "USER: <image> \nWhat is it? ASSISTANT:", return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 5, 3, 336, 336)
    assert (inputs["input_ids"] == 720).sum() == 576 + 48 * 49


def test_other_ids_than_llavas_are_refused_by_name(tmp_path, caplog) -> None:
    """Of a tokenizer without a piece for a newline, and of one with other rows."""
    source = checkpoints.write_original(tmp_path / "llava")
    convert(source, tmp_path / "hf", "llava-hf")
    assert not (tmp_path / "hf" / "processor_config.json").exists()
    assert (tmp_path / "hf" / "tokenizer_config.json").is_file()
    assert "no processor is written" in caplog.text
    caplog.clear()
    assert hf_tokenizer(DEMO, 721) is None and "LLaVA's [1, " in caplog.text
    caplog.clear()
    assert hf_tokenizer(tmp_path, 720) is None and not caplog.text
