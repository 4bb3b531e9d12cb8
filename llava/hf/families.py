"""The architectures that are known, one line each, and why others are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..pruning import METHODS
from ..pruning.base import Pruner

_THREE = (
    "its rotary positions have three dimensions (time, height, width), which tokens numbered anew "
    "do not have"
)
_COLUMNS = "its masks say by column who sees whom (windows, images seen as a whole)"


@dataclass(frozen=True)
class Family:
    """What is particular to an architecture.

    pictures:  how its placeholders are told apart by picture, see `prompts`
    uncompact: why positions cannot be compact; empty where they can
    views: whether each view of its tower is a square that becomes a square of tokens, see `tower`
    """

    pictures: str = "sizes"
    uncompact: str = ""
    views: bool = False


#: By `model_type`; each is held to stock transformers and to a masked run by tests/hf.
FAMILIES = {
    "llava": Family(views=True),
    "llava_next": Family(),
    "llava_onevision": Family(),
    "qwen2_vl": Family("sizes", _THREE),
    "qwen2_5_vl": Family("sizes", _THREE),
    "qwen3_vl": Family("sizes", _THREE),
    "internvl": Family("runs", views=True),
    "idefics3": Family("first marks", views=True),
    "smolvlm": Family("first marks", views=True),
    "gemma3": Family("runs", _COLUMNS, views=True),
    "paligemma": Family("sizes", _COLUMNS, views=True),
    "mistral3": Family("last marks"),
}

#: What some others would need.
_MISSING = {
    "qwen3_5": "layers of linear attention fold tokens into a state that none can be taken out of",
    "qwen3_5_moe": "layers of linear attention fold tokens into a state that none can be taken "
    "out of",
    "gemma4": "layers share keys and values, so they would have to hold the same tokens",
    "gemma3n": "layers share keys and values, so they would have to hold the same tokens",
    "glm4v": "attention rows by its rotation, which turns pairs in half of each head",
    "glm4v_moe": "attention rows by its rotation, which turns pairs in half of each head",
    "mllama": "pictures are not in the sequence: cross-attention reads them",
}


def family_of(model: Any) -> Family:
    """The line of a model.

    Raises ValueError for an architecture that has none, with what it would need.
    """
    kind = getattr(model.config, "model_type", None)
    if kind in FAMILIES:
        return FAMILIES[kind]
    missing = _MISSING.get(
        str(kind),
        "a line in llava.hf.families, which tests/hf then holds to a masked run: its decoder must "
        "give each layer mask, rotary tables and cache by keyword, its layers must hold their own "
        "keys and values, and placeholders of pictures must be in the ids",
    )
    raise ValueError(
        f"llava.hf does not know model_type {kind!r} ({type(model).__name__}); it would need: "
        f"{missing}. Known: {', '.join(FAMILIES)}"
    )


def by_tower(pruner: Pruner) -> bool:
    """Whether a method ranks by what patches receive in the tower."""
    return getattr(pruner, "tower_scores", "") == "received"


def demand_fitting(model: Any, pruner: Pruner) -> None:
    """Raise ValueError for a method that needs what hooks do not see of a model."""
    if by_tower(pruner) and not family_of(model).views:
        known = ", ".join(name for name, family in FAMILIES.items() if family.views)
        raise ValueError(
            f'tower_scores="received" of {model.config.model_type}: its tower does not see square '
            f"views, or not all of one, or its tokens are no squares of patches. Known: {known}"
        )
    if pruner.needs_patches and not by_tower(pruner):
        fitting = sorted(name for name, kind in METHODS.items() if not kind().needs_patches)
        ranking = sorted(name for name, kind in METHODS.items() if hasattr(kind, "tower_scores"))
        raise ValueError(
            f"method {pruner.method} needs the vision tower's CLS attention or the places of its "
            "patches, which hooks on a stock decoder do not see. Methods that choose in or before "
            f"the decoder: {', '.join(fitting)}. By what patches receive in the tower "
            f'(tower_scores="received"): {", ".join(ranking)}'
        )


def demand_positions(family: Family, model: Any, positions: str) -> None:
    """Raise ValueError for compact positions where an architecture has none."""
    if positions == "compact" and family.uncompact:
        raise ValueError(
            f'positions="compact" of {model.config.model_type}: {family.uncompact}. '
            'Use positions="original"'
        )
