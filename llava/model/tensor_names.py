"""What a checkpoint's tensors are called in each format.

`NAMES` is the only place that knows the names.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

#: One row per group of tensors: prefix in the original format, in llava-hf files, in the module
#: tree of transformers' own LLaVA, and in a CLIP checkpoint. The first row that fits is used.
NAMES: tuple[tuple[str, str, str, str | None], ...] = (
    (
        "model.vision_tower.vision_tower.vision_model.",
        "vision_tower.vision_model.",
        "model.vision_tower.",
        "vision_model.",
    ),
    # transformers 5 saves llava-hf's tower with a level less.
    (
        "model.vision_tower.vision_tower.vision_model.",
        "vision_tower.",
        "model.vision_tower.",
        None,
    ),
    (
        "model.mm_projector.0.",
        "multi_modal_projector.linear_1.",
        "model.multi_modal_projector.linear_1.",
        None,
    ),
    (
        "model.mm_projector.2.",
        "multi_modal_projector.linear_2.",
        "model.multi_modal_projector.linear_2.",
        None,
    ),
    ("model.image_newline", "image_newline", "model.image_newline", None),
    ("lm_head.", "language_model.lm_head.", "lm_head.", None),
    (
        "model.embed_tokens.",
        "language_model.model.embed_tokens.",
        "model.language_model.embed_tokens.",
        None,
    ),
    ("model.layers.", "language_model.model.layers.", "model.language_model.layers.", None),
    ("model.norm.", "language_model.model.norm.", "model.language_model.norm.", None),
)
FORMATS = ("original", "llava-hf", "stock", "clip")

#: What the vision tower's tensors begin with in the original format.
VISION = NAMES[0][0]
_TOWER = VISION.removesuffix("vision_model.")


@lru_cache(maxsize=1)
def _nested_tower() -> bool:
    """Whether transformers keeps CLIP's vision modules one level deeper (early 5.x did)."""
    with torch.device("meta"):
        tiny = CLIPVisionConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1)
        return hasattr(CLIPVisionModel(tiny), "vision_model")


def rename(name: str, source: str, target: str) -> str:
    """Translate a tensor name between "original", "llava-hf", "stock", "clip" and "module".

    "module" is the module tree of this package: the original names, less a level in the vision
    tower that transformers dropped. Names that no row knows are returned as they are.
    """
    if source == "module":
        if name.startswith(_TOWER) and not name.startswith(VISION):
            name = name.replace(_TOWER, VISION, 1)
        source = "original"
    elif source == "stock":
        name = name.replace("model.vision_tower.vision_model.", "model.vision_tower.", 1)
    final, target = target, "original" if target == "module" else target
    columns = FORMATS.index(source), FORMATS.index(target)
    for row in NAMES:
        old, new = row[columns[0]], row[columns[1]]
        if old is not None and new is not None and name.startswith(old):
            name = new + name[len(old) :]
            break
    if final == "stock" and _nested_tower() and name.startswith("model.vision_tower."):
        name = name.replace("model.vision_tower.", "model.vision_tower.vision_model.", 1)
    if final == "module" and name.startswith(VISION) and not _nested_tower():
        name = name.replace(VISION, _TOWER, 1)
    return name


def original_names(tensors: Mapping[str, Tensor], where: str | Path) -> dict[str, Tensor]:
    """`tensors` under the original format's names, whichever of the module trees they come from.

    LLaVA's, llava-hf's and transformers' own names have no prefix in common that means two things,
    so each name says by itself where it is from. A name that no format has stays as it is.

    Raises ValueError, naming `where`, when two names mean the same tensor.
    """
    sources: dict[str, str] = {}
    for name in tensors:
        other = sources.setdefault(original_name(name), name)
        if other != name:
            raise ValueError(
                f"{where} holds one tensor under two names, {other} and {name}: remove one of them"
            )
    return {new: tensors[name] for new, name in sources.items()}


def original_name(name: str) -> str:
    """The original format's name of a tensor of any module tree; unknown names stay."""
    known = tuple(row[0] for row in NAMES)
    translations = (rename(name, source, "original") for source in ("module", "llava-hf", "stock"))
    return next((new for new in translations if new.startswith(known)), name)
