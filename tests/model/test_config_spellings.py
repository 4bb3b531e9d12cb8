"""One meaning, several spellings: what other tools and releases write into config.json loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MistralConfig

from llava.model.builder import load_pretrained_model

from .. import checkpoints, tiny
from ..answers import answer, check, refused
from .test_checkpoint import config_of

LINEAR = {"factor": 2.0}


def write(folder: Path, format: str, **changes: Any) -> Path:
    """A checkpoint with changed values of its decoder's config; Ellipsis takes one out."""
    if format == "original":
        return checkpoints.write_original(folder, "safetensors", **changes)
    checkpoints.write_hf(folder, "safetensors")
    text = {**config_of(folder)["text_config"], **changes}
    text = {k: v for k, v in text.items() if v is not ...}
    checkpoints.edit_json(folder / "config.json", text_config=text)
    return folder


@pytest.mark.parametrize("format", ["original", "llava-hf"])
class TestDecoder:
    @pytest.mark.parametrize(
        "changes",
        [
            {"sliding_window": 4096},
            {"sliding_window": 131072},
            {"sliding_window": None},
            {"num_key_value_heads": ...},
            {"num_key_value_heads": None},
            {"rope_scaling": None, "rope_theta": 10000},
            {"rope_scaling": {"type": "default"}},
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
            {"torch_dtype": ..., "dtype": "float16"},
            {"torch_dtype": "torch.float16"},
            {"torch_dtype": ...},
            {"use_cache": None, "attention_bias": None, "mlp_bias": None},
            {"tie_word_embeddings": None},
            {"pad_token_id": -1},
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        ],
        ids=str,
    )
    def test_means_the_same(self, tmp_path, expected, format, changes):
        check(answer(write(tmp_path, format, **changes)), expected)

    def test_scaled_positions(self, tmp_path, format):
        spellings = (
            {"rope_scaling": {"type": "linear", **LINEAR}},
            {"rope_scaling": {"rope_type": "linear", **LINEAR}},
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, **LINEAR}},
        )
        answers = [answer(write(tmp_path / str(i), format, **s)) for i, s in enumerate(spellings)]
        for other in answers[1:]:
            check(other, answers[0])
        plain = answer(write(tmp_path / "plain", format))
        assert not torch.equal(plain.logits, answers[0].logits)

    def test_a_window_below_the_context(self, tmp_path, format):
        folder = write(tmp_path, format, sliding_window=4095)
        message = refused(folder, f"{folder}/config.json: attention over a sliding window of 4095")
        assert "max_position_embeddings allows 4096" in message
        assert "set max_position_embeddings to 4095" in message
        # What the message advises.
        write(tmp_path / "as-told", format, sliding_window=4095, max_position_embeddings=4095)
        load_pretrained_model(tmp_path / "as-told", device="cpu")


def test_fewer_key_heads_that_config_json_leaves_out(tmp_path):
    """Nothing says how many there are but the weights, which the message counts."""
    folder = write(tmp_path, "original", num_key_value_heads=...)

    def halve(tensors):
        for name in tensors:
            if "k_proj" in name or "v_proj" in name:
                tensors[name] = tensors[name][:32].clone()

    checkpoints.edit_weights(folder / "model.safetensors", halve)
    refused(folder, f"{folder}/config.json leaves num_key_value_heads out", "which then is "
            'num_attention_heads, 4', 'put "num_key_value_heads": 2 there')  # fmt: skip
    checkpoints.edit_json(folder / "config.json", num_key_value_heads=2)
    load_pretrained_model(folder, device="cpu")


def test_mistral_has_other_defaults(tmp_path):
    """What its class writes only where it differs: a window and a long context among them."""
    folder = write(tmp_path, "original", model_type="llava_mistral", max_position_embeddings=...)
    default = MistralConfig()
    refused(folder, f"sliding window of {default.sliding_window} tokens",
            f"max_position_embeddings allows {default.max_position_embeddings}")  # fmt: skip
    checkpoints.edit_json(folder / "config.json", sliding_window=None)
    load_pretrained_model(folder, device="cpu")


FIELD = {"original": "mm_vision_select_layer", "llava-hf": "vision_feature_layer"}


class TestFeatureLayer:
    def write(self, folder: Path, format: str, layer: Any) -> Path:
        write(folder, format)
        checkpoints.edit_json(folder / "config.json", **{FIELD[format]: layer})
        return folder

    @pytest.mark.parametrize("format", FIELD)
    @pytest.mark.parametrize("layer", [-2, [-2], None, ...])
    def test_one(self, tmp_path, expected, format, layer):
        check(answer(self.write(tmp_path, format, layer)), expected)

    @pytest.mark.parametrize("format", FIELD)
    def test_a_list_of_another_one(self, tmp_path, format):
        listed = answer(self.write(tmp_path / "list", format, [-1]))
        check(listed, answer(self.write(tmp_path / "one", format, -1)))

    @pytest.mark.parametrize("format", FIELD)
    @pytest.mark.parametrize("layers", [[-2, -5], [], ["-2"], [[-2]], [True]])
    def test_several(self, tmp_path, format, layers):
        folder = self.write(tmp_path, format, layers)
        refused(folder, f"{folder}/config.json: {FIELD[format]} must be one layer",
                "several at once is not supported")  # fmt: skip


class TestLlavaHf:
    def edit(self, folder: Path, part: str, **changes: Any) -> Path:
        checkpoints.write_hf(folder, "safetensors")
        values = {**config_of(folder)[part], **changes}
        values = {k: v for k, v in values.items() if v is not ...}
        checkpoints.edit_json(folder / "config.json", **{part: values})
        return folder

    def test_parts_without_model_type(self, tmp_path, expected):
        for part in ("vision_config", "text_config"):
            check(answer(self.edit(tmp_path / part, part, model_type=...)), expected)

    def test_what_only_training_reads_may_be_anything(self, tmp_path, expected):
        """In the tower's config as older releases wrote it."""
        folder = self.edit(tmp_path, "vision_config", initializer_factor=1, id2label=None, dtype=3)
        check(answer(folder), expected)

    def test_the_vocabulary_at_the_top(self, tmp_path, expected):
        check(answer(self.edit(tmp_path, "text_config", vocab_size=...)), expected)

    @pytest.mark.parametrize("index", [..., None])
    def test_the_image_token_under_its_newer_name(self, tmp_path, index):
        folder = checkpoints.write_hf(tmp_path, "safetensors")
        changes = {"image_token_id": tiny.VOCAB, "image_token_index": index}
        checkpoints.edit_json(folder / "config.json", **changes)
        model = load_pretrained_model(folder, device="cpu")[1]
        assert tiny.VOCAB in model.generation_config.suppress_tokens


def test_our_own_config_with_a_tower_of_older_fields(tmp_path, reference, expected):
    """`mm_vision_config`, where a checkpoint holds its tower and all that is known of it."""
    reference.save_pretrained(tmp_path)
    checkpoints.write_tokenizer(tmp_path)
    checkpoints.write_clip(tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").rename(tmp_path / "preprocessor_config.json")
    file = tmp_path / "config.json"
    vision = json.loads(file.read_text())["mm_vision_config"]
    checkpoints.edit_json(file, mm_vision_config={**vision, "id2label": 7, "initializer_factor": 1})
    check(answer(tmp_path), expected)
    checkpoints.edit_json(file, mm_vision_config={**vision, "num_attention_heads": "4"})
    refused(tmp_path, f"{file}: mm_vision_config: num_attention_heads must be an integer, got 4")
