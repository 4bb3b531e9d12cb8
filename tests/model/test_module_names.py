"""Weights under the names of any module tree load in either format's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

from llava.model.tensor_names import original_name, rename

from .. import checkpoints, checkpoints_next, tiny
from ..answers import answer, check, refused
from .test_next_checkpoints import answer as next_answer


def nested(name: str) -> str:
    """The tower's level that transformers 4 has in its module tree."""
    tower = "model.vision_tower."
    return name.replace(tower, f"{tower}vision_model.", 1) if name.startswith(tower) else name


def short(name: str) -> str:
    """llava-hf's names as transformers 5 writes them, with a level less in the tower."""
    return rename(name, "original", "llava-hf").replace(
        "vision_tower.vision_model.", "vision_tower."
    )


TREES: dict[str, Callable[[str], str]] = {
    "original": lambda name: name,
    "llava-hf": lambda name: rename(name, "original", "llava-hf"),
    "llava-hf of transformers 5": short,
    "transformers 4": lambda name: nested(
        rename(name, "original", "stock").replace(".vision_model.", ".")
    ),
    "transformers 5": lambda name: rename(name, "original", "stock").replace(".vision_model.", "."),
    "our modules": lambda name: rename(name, "original", "module"),
}


@pytest.mark.parametrize("tree", TREES.values(), ids=list(TREES))
class TestNames:
    def test_each_says_where_it_is_from(self, tree):
        names = {**checkpoints.weights(), "model.image_newline": 0}
        assert {original_name(tree(name)): name for name in names} == {n: n for n in names}

    @pytest.mark.parametrize("format", ["original", "llava-hf"])
    def test_in_a_folder(self, tmp_path, expected, tree, format):
        write = checkpoints.write_original if format == "original" else checkpoints.write_hf
        folder = write(tmp_path, files="safetensors")
        state = padded(checkpoints.weights(), 0 if format == "original" else 64)
        save(folder, {tree(name): tensor for name, tensor in state.items()})
        check(answer(folder), expected)


def padded(state: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    return {k: torch.cat([v, v[:rows]]) if k in tables else v for k, v in state.items()}


def save(folder: Path, state: dict[str, Tensor]) -> None:
    """`state` as the folder's only weights."""
    for file in folder.glob("*model*.safetensors*"):
        file.unlink()
    checkpoints.write_weights(folder, state, "bin")


@pytest.mark.parametrize("format", ["original", "llava-hf"])
def test_the_raw_state_of_transformers_own_llava(tmp_path, hf, expected, format):
    model = LlavaForConditionalGeneration.from_pretrained(hf, dtype="float32")
    write = checkpoints.write_original if format == "original" else checkpoints.write_hf
    folder = write(tmp_path, files="safetensors")
    if format == "original":
        checkpoints.edit_json(folder / "config.json", vocab_size=tiny.VOCAB + 64)
    save(folder, model.state_dict())
    check(answer(folder), expected)


def test_the_raw_state_of_transformers_own_llava_next(tmp_path):
    folder = checkpoints_next.write_hf(tmp_path)
    expected = next_answer(folder)
    model = LlavaNextForConditionalGeneration.from_pretrained(folder, dtype="float32")
    save(folder, model.state_dict())
    check(next_answer(folder), expected)


def test_the_raw_state_of_our_own_model(tmp_path, expected, reference):
    folder = checkpoints.write_original(tmp_path, "safetensors")
    save(folder, reference.state_dict())
    check(answer(folder), expected)


def test_one_tensor_under_two_names_is_refused(tmp_path):
    folder = checkpoints.write_hf(tmp_path, "safetensors")
    name = "model.language_model.norm.weight"
    checkpoints.edit_weights(
        folder / "model.safetensors", lambda tensors: tensors.update({name: torch.ones(64)})
    )
    refused(folder, f"{folder} holds one tensor under two names", name,
            "language_model.model.norm.weight", "remove one of them")  # fmt: skip
