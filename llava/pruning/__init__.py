"""Visual-token pruning: methods, and what they share. Imports torch only.

    pruner = pruning.build("autoprune", target_token_num=64)
    model.generate(ids, images=..., pruner=pruner)

A method is one file with a frozen dataclass, and one line in `METHODS`.
"""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any

from .autoprune import PRESETS, AutoPrune
from .base import Dense, Observation, Pruner, PrunerRun
from .dart import DART
from .fastv import FastV
from .layout import Segment, Selection, TokenLayout, apply
from .no_image import NoImage
from .pdrop import PDrop
from .random import Random
from .sparsevlm import SparseVLM
from .trace import PruneTrace, SampleTrace
from .uniform_grid import UniformGrid

METHODS: dict[str, type[Pruner]] = {
    cls.method: cls
    for cls in (
        Dense,
        AutoPrune,
        NoImage,
        Random,
        UniformGrid,
        FastV,
        PDrop,
        DART,
        SparseVLM,
    )
}

__all__ = [
    "DART",
    "METHODS",
    "AutoPrune",
    "Dense",
    "FastV",
    "NoImage",
    "Observation",
    "PDrop",
    "PruneTrace",
    "Pruner",
    "PrunerRun",
    "Random",
    "SampleTrace",
    "Segment",
    "Selection",
    "SparseVLM",
    "TokenLayout",
    "UniformGrid",
    "apply",
    "build",
]


def build(method: str, *, preset: str | None = None, **settings: Any) -> Pruner:
    """Make the pruner `method` with its defaults, a preset's values and `settings`, in this order.

    Raises ValueError for a name that does not exist, with the nearest one that does.
    """
    cls = METHODS.get(method)
    if cls is None:
        raise ValueError(_unknown("method", method, METHODS))
    values: dict[str, Any] = {}
    if preset is not None:
        if cls is not AutoPrune:
            raise ValueError(f"method {method} has no presets, got {preset!r}")
        if preset not in PRESETS:
            raise ValueError(_unknown("preset", preset, PRESETS))
        values.update(PRESETS[preset])
    names = {field.name for field in fields(cls)}
    for name, value in settings.items():
        if name not in names:
            raise ValueError(_unknown(f"setting of method {method}", name, names))
        values[name] = value
    return cls(**values)


def _unknown(kind: str, name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(sorted(known))}"
