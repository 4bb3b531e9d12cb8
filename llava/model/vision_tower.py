"""Which vision tower answers, where a checkpoint holds one and a CLIP folder is named as well.

The tensors inside a checkpoint are the ones that it was trained with, and they answer. A CLIP
folder then lends only what is not inside, the tower's config and the image processor. One that the
caller names replaces the tensors where they do not fit its config, as it is another model then.
What is replaced or left aside, and differs, is said.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from ..common.image_processor import PLAIN_FILE
from .tensor_names import VISION, rename
from .weights import read_vision_config, read_vision_tower, vision_config, weight_files

#: The tower of every published LLaVA-1.5 and 1.6 checkpoint, and its config.
CLIP_NAME = "openai/clip-vit-large-patch14-336"
CLIP_CONFIG = vision_config(
    {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    }
)

#: `reading.resolve`: the folder that a name means, by `beside` and `only`.
Find = Callable[..., Path]

logger = logging.getLogger(__name__)


def choose_tower(
    folder: Path,
    kind: str,
    config: dict[str, Any],
    state: dict[str, Tensor],
    given: str | Path | None,
    find: Find,
) -> tuple[dict[str, Tensor], Path, str, Path]:
    """Find the vision tower and put its config into `config` (original-format values).

    given: a CLIP folder or repository that the caller names, if any.

    Returns all tensors, where the tower's are from, the format that names them there, and the
    folder of the image processor.
    """
    inside, described = part(state, vision=True), config.get("mm_vision_config")
    if given is None and (kind == "llava-hf" or (inside and described)):
        return state, folder, kind, folder
    if given is None and inside:
        config["mm_vision_config"], lender = _lent_config(folder, config, inside, find)
        return state, folder, kind, lender
    if given is None and was_trained(config):
        raise ValueError(
            f"{folder} lacks its vision tower ({VISION}...): this checkpoint trained the tower "
            "along (unfreeze_mm_vision_tower or mm_tunable_parts in config.json), so the stock "
            "CLIP is another one. Get the missing weight files; to use another tower all the same, "
            "name it with --vision-tower DIR"
        )
    named = config.get("mm_vision_tower")
    if inside:
        lender = _find_tower(given, named, folder, find, only="*.json")
        lent = read_vision_config(lender)
        wrong = misfit(inside, lent)
        if wrong is None:
            if not weight_files(lender) or differ(inside, read_vision_tower(lender)[1]):
                logger.warning(
                    "%s %s its own vision tower, which answers; %s only lends its config and image "
                    "processor.",
                    folder,
                    "trained" if was_trained(config) else "holds",
                    given,
                )
            config["mm_vision_config"] = described or lent
            return state, folder, kind, lender
        logger.warning(
            "%s replaces the vision tower inside %s%s, because that does not fit its config: %s.",
            given,
            folder,
            ", trained along with it," if was_trained(config) else "",
            wrong,
        )
    lender = _find_tower(given, named, folder, find)
    config["mm_vision_config"], vision = read_vision_tower(lender)
    return {**part(state, vision=False), **vision}, lender, "clip", lender


def _lent_config(
    folder: Path, config: Mapping[str, Any], inside: Mapping[str, Tensor], find: Find
) -> tuple[dict[str, Any], Path]:
    """The config of the tower whose tensors are `inside`, and the folder of the image processor.

    It is that of the tower that config.json names; where that is out of reach, CLIP ViT-L/14 at
    336 px lends its own if the tensors fit. Of that one, nothing is asked for.
    """
    named = config.get("mm_vision_tower")
    if named == CLIP_NAME and not (folder / named).is_dir() and not Path(named).is_dir():
        return CLIP_CONFIG, folder
    try:
        if named is None:
            raise FileNotFoundError("config.json names no mm_vision_tower")
        lender = find(named, beside=folder, only="*.json")
        lent = read_vision_config(lender)
    except FileNotFoundError as error:
        if misfit(inside, CLIP_CONFIG) is None:
            logger.warning(
                "%s holds the tensors of its vision tower, but their config is out of reach (%s). "
                "They have the shapes of %s, whose config and image processor are used; if it is "
                "another tower, give the folder of its config.json with --vision-tower.",
                folder,
                error,
                CLIP_NAME,
            )
            return CLIP_CONFIG, folder
        raise FileNotFoundError(
            f"{folder} holds the tensors of its vision tower, but their config is out of reach: "
            f"{error}. Give a folder with the config.json and {PLAIN_FILE} of the CLIP model that "
            "the tower was trained from with --vision-tower DIR; the tensors inside stay the ones "
            "that answer"
        ) from None
    if wrong := misfit(inside, lent):
        raise ValueError(
            f"the vision tower inside {folder} does not fit {lender}/config.json: {wrong}. Give a "
            "folder with the config.json of the CLIP model that it was trained from with "
            "--vision-tower DIR"
        )
    return lent, lender


def part(tensors: Mapping[str, Any], vision: bool) -> dict[str, Any]:
    """Of tensors by original names, the vision tower's, or all the others."""
    return {k: v for k, v in tensors.items() if k.startswith(VISION) == vision}


def was_trained(config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint trained its vision tower along, by original-format config values.

    LLaVA says so in `unfreeze_mm_vision_tower`, LLaVA-NeXT in `mm_tunable_parts`, a list of names.
    """
    parts = config.get("mm_tunable_parts")
    names = parts.split(",") if isinstance(parts, str) else parts if isinstance(parts, list) else []
    tunable = any(str(name).strip() == "mm_vision_tower" for name in names)
    return tunable or bool(config.get("unfreeze_mm_vision_tower"))


def misfit(tower: Mapping[str, Tensor], config: Mapping[str, Any]) -> str | None:
    """Which of a tower's tensors (original names) does not fit a vision config; None if all do."""
    with torch.device("meta"):
        model = CLIPVisionModel(CLIPVisionConfig(**config))
    shapes = {
        rename(name if name.startswith("vision_model.") else f"vision_model.{name}",
               "clip", "original"): tensor.shape
        for name, tensor in model.state_dict().items()
    }  # fmt: skip
    for name, tensor in tower.items():
        if tensor.shape != shapes.get(name):
            expected = list(shapes[name]) if name in shapes else "no such tensor"
            return f"{name} has shape {list(tensor.shape)}, expected {expected}"
    return None


def differ(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether tensors of two places are others, as far as the coarser of their dtypes tells."""
    return first.keys() != second.keys() or any(
        not _equal(tensor, second[name]) for name, tensor in first.items()
    )


def _equal(first: Tensor, second: Tensor) -> bool:
    dtype = min(first.dtype, second.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(first.to(dtype), second.to(dtype))


def _find_tower(
    given: str | Path | None, named: str | None, folder: Path, find: Find, only: str | None = None
) -> Path:
    if given is None and named is None:
        raise ValueError(
            f"{folder}/config.json names no mm_vision_tower; give the folder of its CLIP "
            "checkpoint with --vision-tower DIR"
        )
    try:
        if given is not None:
            return find(given, only=only)
        return find(named, beside=folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the vision tower cannot be found: {error}. The checkpoint names {named!r}; give the "
            "folder of that CLIP checkpoint (of LLaVA-1.5 and Senna, whose config may name a path "
            "of another machine: openai/clip-vit-large-patch14-336) with --vision-tower DIR"
        ) from None
