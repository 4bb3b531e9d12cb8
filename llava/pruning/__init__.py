"""Visual-token pruning: methods, and what they share. Imports torch only.

    pruner = pruning.build("autoprune", target_token_num=64)
    model.generate(ids, images=..., pruner=pruner)

A method is one file with a frozen dataclass, and one line in `METHODS`. One that is defined
elsewhere joins them with `register`.
"""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any

from .base import Dense, Observation, Pruner, PrunerRun
from .checks import shorten
from .layout import Segment, Selection, TokenLayout, apply
from .methods.autoprune.method import PRESETS, AutoPrune
from .methods.dart import DART
from .methods.divprune import DivPrune
from .methods.fastervlm import FasterVLM
from .methods.fastv import FastV
from .methods.hired import HiRED
from .methods.no_image import NoImage
from .methods.pdrop import PDrop
from .methods.prumerge import PruMerge
from .methods.random import Random
from .methods.sparsevlm import SparseVLM
from .methods.tome import ToMe
from .methods.topv import TopV
from .methods.uniform_grid import UniformGrid
from .methods.visionzip import VisionZip
from .methods.vispruner import VisPruner
from .methods.vscan import VScan
from .methods.zipvl import ZipVL
from .trace import PruneTrace, SampleTrace

METHODS: dict[str, type[Pruner]] = {
    cls.method: cls
    for cls in (
        Dense,
        NoImage,
        Random,
        UniformGrid,
        AutoPrune,
        ToMe,
        FastV,
        SparseVLM,
        PDrop,
        FasterVLM,
        VisionZip,
        PruMerge,
        HiRED,
        DivPrune,
        VisPruner,
        DART,
        VScan,
        ZipVL,
        TopV,
    )
}

#: Methods that comparisons name and that are not here, with the reason.
NOT_IMPLEMENTED: dict[str, str] = {
    "cdpruner": "it scores patches against the question with CLIP's text tower, and LLaVA "
    "checkpoints have CLIP's vision tower only",
}

__all__ = [
    "DART",
    "METHODS",
    "NOT_IMPLEMENTED",
    "AutoPrune",
    "Dense",
    "DivPrune",
    "FastV",
    "FasterVLM",
    "HiRED",
    "NoImage",
    "Observation",
    "PDrop",
    "PruMerge",
    "PruneTrace",
    "Pruner",
    "PrunerRun",
    "Random",
    "SampleTrace",
    "Segment",
    "Selection",
    "SparseVLM",
    "ToMe",
    "TokenLayout",
    "TopV",
    "UniformGrid",
    "VScan",
    "VisPruner",
    "VisionZip",
    "ZipVL",
    "apply",
    "build",
    "find",
    "register",
]


def register(cls: type[Pruner]) -> type[Pruner]:
    """Add a method from outside the package to `METHODS`; a decorator above `@dataclass`.

        @pruning.register
        @dataclass(frozen=True, kw_only=True)
        class Mine(pruning.Pruner):
            method: ClassVar[str] = "mine"

    `build`, `generate` and `--method` of every command line in the same process then know it.
    `del METHODS["mine"]` takes it out again.

    Raises ValueError for a class that is no frozen dataclass of `Pruner` with a name, or whose name
    another method has.
    """
    if not issubclass(cls, Pruner):
        raise ValueError(f"a method is a subclass of Pruner, got {cls.__name__}")
    # A plain subclass of a dataclass passes for one, without the fields it declares.
    if "__dataclass_fields__" not in vars(cls):
        raise ValueError(f"{cls.__name__} must be @dataclass(frozen=True, kw_only=True)")
    if not cls.method:
        raise ValueError(f"{cls.__name__} needs a name: method: ClassVar[str] = ...")
    if METHODS.get(cls.method, cls) is not cls:
        raise ValueError(f"method {cls.method!r} is there already: {METHODS[cls.method]}")
    METHODS[cls.method] = cls
    return cls


def find(method: str) -> type[Pruner]:
    """The class of the method of that name.

    Raises ValueError for a name that does not exist, with the nearest one that does, or whose
    method is not implemented, with the reason.
    """
    if method in METHODS:
        return METHODS[method]
    if method in NOT_IMPLEMENTED:
        raise ValueError(f"method {method} is not implemented: {NOT_IMPLEMENTED[method]}")
    raise ValueError(_unknown("method", method, METHODS))


def build(method: str, *, preset: str | None = None, **settings: Any) -> Pruner:
    """Make the pruner `method` with its defaults, a preset's values and `settings`, in this order.

    Raises ValueError for a method that `find` does not know, and for a preset or setting that does
    not exist, with the nearest one that does.
    """
    cls = find(method)
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
    return f"unknown {kind} {shorten(name)}{hint} Known: {', '.join(sorted(known))}"
