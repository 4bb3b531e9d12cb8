"""Configs and arguments that cannot be right: the error names the key, and what was found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.utils import is_flash_attn_2_available

from llava.model.builder import load_pretrained_model

from .. import checkpoints, tiny
from ..answers import refused


@pytest.fixture
def folder(tmp_path) -> Path:
    """An original checkpoint in the layout of the published one, for the test to damage."""
    return checkpoints.write_original(tmp_path / "llava")


class TestConfig:
    def test_missing(self, folder):
        (folder / "config.json").unlink()
        refused(folder, f"no config.json in {folder}", error=FileNotFoundError)

    @pytest.mark.parametrize("content", ["", "not json", '{"model_type": "llava"'])
    def test_not_json(self, folder, content):
        (folder / "config.json").write_text(content)
        refused(folder, f"{folder / 'config.json'} is not JSON")

    @pytest.mark.parametrize(
        ("kind", "architecture"),
        [
            ("llama", "LlamaForCausalLM"),
            ("qwen2_vl", "Qwen2VLForConditionalGeneration"),
            ("llava_mpt", "LlavaMptForCausalLM"),
            ("llava", "LlavaForConditionalGeneration"),
            (None, None),
        ],
    )
    def test_another_model(self, tmp_path, kind, architecture):
        config = {"model_type": kind, "architectures": architecture and [architecture]}
        checkpoints.write_json(tmp_path / "config.json", config)
        refused(tmp_path, f"{tmp_path} is not a LLaVA-1.5 or 1.6 checkpoint", repr(kind),
                str(architecture), "expected model_type llava, llava_llama or")  # fmt: skip

    @pytest.mark.parametrize(
        ("changes", "found"),
        [
            ({"text_config": {"model_type": "qwen2"}}, ("text_config.model_type", "qwen2")),
            ({"text_config": {"model_type": "mistral"}}, ("sliding window of 4096", "null")),
            ({"vision_config": {"model_type": "siglip"}}, ("vision_config.model_type", "siglip")),
            ({"vision_config": {}}, ("vision_config.model_type", "None")),
            ({"projector_hidden_act": "relu"}, ("projector_hidden_act", "'relu'", "'gelu'")),
            ({"vision_feature_layer": [-2, -5]}, ("vision_feature_layer", "[-2, -5]")),
            ({"vision_feature_layer": -9}, ("mm_vision_select_layer", "-9", "3 layers")),
            (
                {"vision_feature_select_strategy": "full"},
                ("vision_feature_select_strategy", "'full'", "'default'"),
            ),
        ],
    )
    def test_settings_of_llava_hf(self, tmp_path, changes, found):
        refused(checkpoints.write_hf(tmp_path, **changes), *found)

    @pytest.mark.parametrize("kind", ["resampler", "mlpx_gelu", "mlp0x_gelu", ""])
    def test_unknown_projector(self, tmp_path, kind):
        folder = checkpoints.write_original(tmp_path, mm_projector_type=kind)
        refused(folder, f"unknown mm_projector_type {kind!r}", "mlp2x_gelu")

    def test_another_projector_than_the_tensors_are_of(self, tmp_path):
        folder = checkpoints.write_original(tmp_path, mm_projector_type="mlp3x_gelu")
        refused(folder, "lacks 2 of 36 tensors", "model.mm_projector.4.bias [64]")

    @pytest.mark.parametrize("layer", [4, -4, 0, 99])
    def test_vision_layer_out_of_range(self, tmp_path, layer):
        folder = checkpoints.write_original(tmp_path, mm_vision_select_layer=layer)
        refused(folder, f"mm_vision_select_layer {layer}", "3 layers")

    def test_vision_feature(self, tmp_path):
        folder = checkpoints.write_original(tmp_path, mm_vision_select_feature="cls_patch")
        refused(folder, "mm_vision_select_feature must be 'patch', got 'cls_patch'")

    def test_dtype_of_the_config(self, tmp_path):
        folder = checkpoints.write_original(tmp_path, torch_dtype="float8_e4m3fn")
        refused(folder, "torch_dtype must be float32, float16, bfloat16, got 'float8_e4m3fn'")
        load_pretrained_model(folder, device="cpu", dtype="float32")


class TestTower:
    @pytest.mark.parametrize("named", ["/nowhere/clip", "clip", "../clip"])
    def test_named_folder_is_missing(self, tmp_path, named):
        folder = checkpoints.write_original(tmp_path, tower=False, mm_vision_tower=named)
        refused(folder, f"no folder {named}", f"The checkpoint names {named!r}",
                "--vision-tower DIR", error=FileNotFoundError)  # fmt: skip

    def test_given_folder_is_missing(self, folder):
        refused(folder, "no folder /nowhere", "--vision-tower DIR", error=FileNotFoundError,
                vision_tower="/nowhere")  # fmt: skip

    def test_none_is_named(self, tmp_path):
        for value in (None, ...):
            folder = checkpoints.write_original(tmp_path, tower=False, mm_vision_tower=value)
            refused(folder, "names no mm_vision_tower", "--vision-tower DIR")

    def test_not_clip(self, folder):
        checkpoints.edit_json(folder / checkpoints.CLIP / "config.json", model_type="siglip")
        refused(folder, str(folder / checkpoints.CLIP), "'siglip'", "expected clip")

    @pytest.mark.parametrize("missing", ["config.json", "pytorch_model.bin"])
    def test_incomplete(self, folder, missing):
        (folder / checkpoints.CLIP / missing).unlink()
        refused(folder, str(folder / checkpoints.CLIP), missing, error=FileNotFoundError)

    def test_of_another_width(self, tmp_path):
        checkpoints.write_original(tmp_path)
        file = tmp_path / checkpoints.CLIP / "config.json"
        config = {**checkpoints.published_config("clip-vit-large-patch14-336")["vision_config"],
                  **tiny.vision_config(), "intermediate_size": 128}  # fmt: skip
        checkpoints.edit_json(file, vision_config=config)
        refused(tmp_path, f"{file.parent}: vision_model.encoder.layers.0.mlp.fc1.weight has shape "
                "[64, 32], expected [128, 32] by config.json")  # fmt: skip


class TestArguments:
    @pytest.mark.parametrize("dtype", ["half", "fp16", "int8", "", torch.int8, torch.float64])
    def test_dtype(self, original, dtype):
        refused(original, "dtype must be auto, float32, float16, bfloat16", repr(dtype),
                dtype=dtype)  # fmt: skip

    @pytest.mark.parametrize("name", ["flash", "flex_attention", "paged|sdpa", ""])
    def test_attention(self, original, name):
        refused(original, "attn_implementation must be one of sdpa, eager, flash_attention_2",
                repr(name), attn_implementation=name)  # fmt: skip

    def test_device_and_device_map(self, original):
        refused(original, "device or device_map, not both", device_map="auto")

    @pytest.mark.parametrize("bits", ["load_4bit", "load_8bit"])
    def test_quantisation_without_bitsandbytes(self, original, monkeypatch, bits):
        monkeypatch.setattr("llava.model.builder.is_bitsandbytes_available", lambda: False)
        refused(original, "pip install bitsandbytes", error=ImportError, **{bits: True})

    @pytest.mark.skipif(is_flash_attn_2_available(), reason="flash-attn is installed")
    @pytest.mark.parametrize(
        "options", [{"attn_implementation": "flash_attention_2"}, {"use_flash_attn": True}]
    )
    def test_flash_attention_without_its_package(self, original, options):
        refused(original, "FlashAttention2", "installed", error=ImportError, **options)
