"""Tiny random LoRA adapters, as PEFT and LLaVA write them, and what merging them has to give.

Names of files and tensors are those of PEFT 0.21 and LLaVA's finetune_lora.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from llava.model.checkpoint import main
from llava.model.tensor_names import original_names, rename
from llava.model.weights import read_tensors

from . import checkpoints

RANK, ALPHA = 4, 8
Q = "model.layers.1.self_attn.q_proj"
UP = "model.layers.2.mlp.up_proj"
TOWER = f"{checkpoints.VISION}encoder.layers.0.mlp.fc1"
LINEAR = "model.mm_projector.2"

#: Modules as PEFT names them, by the module tree that was trained.
TREES = {
    "LLaVA": {Q: Q, UP: UP, TOWER: TOWER, LINEAR: LINEAR},
    "llava-hf, transformers 5": {
        Q: "model.language_model.layers.1.self_attn.q_proj",
        UP: "model.language_model.layers.2.mlp.up_proj",
        TOWER: "model.vision_tower.encoder.layers.0.mlp.fc1",
        LINEAR: "model.multi_modal_projector.linear_2",
    },
    "llava-hf, transformers 4": {
        Q: "language_model.model.layers.1.self_attn.q_proj",
        UP: "language_model.model.layers.2.mlp.up_proj",
        TOWER: "vision_tower.vision_model.encoder.layers.0.mlp.fc1",
        LINEAR: "multi_modal_projector.linear_2",
    },
}


def matrices(*names: str, rank: int = RANK) -> dict[str, tuple[Tensor, Tensor]]:
    """Random A (rank, in) and B (out, rank) for layers of the tiny model, by original names."""
    generator = torch.Generator().manual_seed(7)
    made = {}
    for name in names:
        out, width = checkpoints.weights()[f"{name}.weight"].shape
        made[name] = tuple(
            0.1 * torch.randn(shape, generator=generator) for shape in ((rank, width), (out, rank))
        )
    return made


def product(pair: tuple[Tensor, Tensor], scale: float = ALPHA / RANK) -> Tensor:
    return scale * (pair[1] @ pair[0])


def plus(weight: Tensor, change: Tensor) -> Tensor:
    """Their sum in float32, rounded once."""
    return (weight.float() + change).to(weight.dtype)


def write_adapter(
    folder: Path,
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    tree: str = "LLaVA",
    whole: Mapping[str, Tensor] | None = None,
    files: str = "safetensors",
    **settings: Any,
) -> Path:
    """An adapter as PEFT writes it. pairs: by original names. whole: under the tree's names."""
    tensors = dict(whole or {})
    for name, (a, b) in pairs.items():
        module = TREES[tree].get(name, name)
        tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = a, b
    tensors = {f"base_model.model.{k}": v.contiguous() for k, v in tensors.items()}
    config = {
        "alpha_pattern": {},
        "base_model_name_or_path": "lmsys/vicuna-7b-v1.5",
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "layer_replication": None,
        "loftq_config": {},
        "lora_alpha": ALPHA,
        "lora_bias": False,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": RANK,
        "rank_pattern": {},
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_dora": False,
        "use_rslora": False,
        **settings,
    }
    checkpoints.write_json(folder / "adapter_config.json", config)
    if files == "safetensors":
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    else:
        torch.save(tensors, folder / "adapter_model.bin")
    return folder


def write_trainables(folder: Path, tensors: Mapping[str, Tensor], **config: Any) -> Path:
    """What LLaVA writes besides: the tensors that were trained whole, and the model's config."""
    named = {f"base_model.model.{k}": v.clone() for k, v in tensors.items()}
    torch.save(named, folder / "non_lora_trainables.bin")
    checkpoints.write_json(folder / "config.json", checkpoints.original_config(**config))
    return folder


def merged(lora: Path, base: Path, target: Path, *flags: object) -> dict[str, Tensor]:
    """All tensors of what the command writes, under original names."""
    assert main(["merge", *map(str, (lora, base, target, *flags))]) == 0
    tensors = read_tensors(target)
    if (target / "vision_tower" / "model.safetensors").is_file():
        tower = read_tensors(target / "vision_tower").items()
        tensors |= {rename(name, "clip", "original"): tensor for name, tensor in tower}
    return original_names(tensors, target)


def same(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name
