"""The methods by name. A file in `methods`, or anywhere else, adds its own with `register`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, TypeVar

from .base import Pruner
from .checks import shorten

METHODS: dict[str, type[Pruner]] = {}

#: Methods that comparisons name and that are not here, with the reason.
NOT_IMPLEMENTED: dict[str, str] = {
    "idpruner": "its importance comes from VisionSelector, a scorer that is trained and has "
    "weights of its own",
    "sparsevila": "it drops cached tokens while it generates, and its code is not public",
}

P = TypeVar("P", bound=Pruner)


def register(cls: type[P]) -> type[P]:
    """Add a method to `METHODS`; a decorator above `@dataclass`.

        @register
        @dataclass(frozen=True, kw_only=True)
        class Mine(Pruner):
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


def label(method: str) -> str:
    """What tables call a method; its own name where it says nothing else, or is not here."""
    return METHODS[method].label or method if method in METHODS else method


def build(method: str, *, preset: str | None = None, **settings: Any) -> Pruner:
    """Make the pruner `method` with its defaults, a preset's values and `settings`, in this order.

    Raises ValueError for a method that `find` does not know, and for a preset or setting that does
    not exist, with the nearest one that does.
    """
    cls = find(method)
    if preset is not None:
        if not cls.presets:
            raise ValueError(f"method {method} has no presets, got {preset!r}")
        if preset not in cls.presets:
            raise ValueError(_unknown("preset", preset, cls.presets))
        settings = {**cls.presets[preset], **settings}
    known = {field.name for field in fields(cls)}
    for name in settings:
        if name not in known:
            raise ValueError(_unknown(f"setting of method {method}", name, known))
    return cls(**settings)


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {shorten(name)}{hint} Known: {', '.join(names)}"
