"""`tie_word_embeddings`: the head is the embedding, and a checkpoint may leave one of them out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import main

from .. import checkpoints
from ..answers import answer, check, refused
from .test_checkpoint import config_of

HEAD = {"original": "lm_head.weight", "llava-hf": "language_model.lm_head.weight"}
TABLE = {
    "original": "model.embed_tokens.weight",
    "llava-hf": "language_model.model.embed_tokens.weight",
}


def write(folder: Path, format: str, lacks: str | None, flag: bool = True) -> Path:
    """A checkpoint of tied tables, without the head or the table, or with both, as they were."""
    if format == "original":
        checkpoints.write_original(folder, "safetensors", tie_word_embeddings=flag)
    else:
        # Published configs say false at the top; transformers obeys the one of text_config.
        checkpoints.write_hf(folder, "safetensors", tie_word_embeddings=False)
        text = {**config_of(folder)["text_config"], "tie_word_embeddings": flag}
        checkpoints.edit_json(folder / "config.json", text_config=text)

    def change(tensors):
        tensors[TABLE[format]] = tensors[HEAD[format]].clone()
        if lacks is not None:
            del tensors[lacks]

    checkpoints.edit_weights(folder / "model.safetensors", change)
    return folder


@pytest.mark.parametrize("format", ["original", "llava-hf"])
class TestTied:
    def test_either_may_be_left_out(self, tmp_path, format):
        expected = answer(write(tmp_path / "both", format, None, flag=False))
        for name in (HEAD[format], TABLE[format]):
            check(answer(write(tmp_path / name, format, name)), expected)

    def test_the_model_holds_one_table(self, tmp_path, format):
        model = load_pretrained_model(write(tmp_path, format, HEAD[format]), device="cpu")[1]
        assert model.lm_head.weight is model.model.embed_tokens.weight

    def test_without_the_flag_the_head_is_missed(self, tmp_path, format):
        folder = write(tmp_path, format, HEAD[format], flag=False)
        refused(folder, f"{folder} lacks 1 of", f"expected {HEAD[format]}")

    def test_two_that_differ_stay_two(self, tmp_path, format, caplog):
        """As in transformers, whose warning says the same."""
        folder = write(tmp_path, format, None)
        checkpoints.edit_weights(
            folder / "model.safetensors", lambda tensors: tensors[HEAD[format]].mul_(2)
        )
        model = load_pretrained_model(folder, device="cpu")[1]
        assert torch.equal(model.lm_head.weight, 2 * model.model.embed_tokens.weight)
        assert "tie_word_embeddings is true, but lm_head.weight differs" in caplog.text

    @pytest.mark.parametrize("to", ["original", "llava-hf"])
    def test_conversion(self, tmp_path, format, to):
        source, target = write(tmp_path / "source", format, HEAD[format]), tmp_path / "target"
        assert main(["convert", str(source), str(target), "--to", to]) == 0
        check(answer(target), answer(source))
        assert HEAD[to] not in load_file(target / "model.safetensors")
        assert config_of(target)["tie_word_embeddings"] is True
        if to == "llava-hf":
            model, info = LlavaForConditionalGeneration.from_pretrained(
                target, output_loading_info=True
            )
            assert not any(info.values())
            assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)


def test_our_own_model_saved_again(tmp_path):
    source = write(tmp_path / "source", "original", HEAD["original"])
    expected = answer(source)
    model = load_pretrained_model(source, device="cpu")[1]
    model.save_pretrained(tmp_path / "again")
    assert HEAD["original"] not in load_file(tmp_path / "again" / "model.safetensors")
    checkpoints.write_tokenizer(tmp_path / "again")
    processor = source / checkpoints.CLIP / "preprocessor_config.json"
    processor.rename(tmp_path / "again" / "preprocessor_config.json")
    check(answer(tmp_path / "again"), expected)
