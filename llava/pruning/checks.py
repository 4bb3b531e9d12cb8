"""Checks that methods share: of settings, and of the decoder and prompts they are started on."""

from __future__ import annotations

import typing
from dataclasses import fields
from typing import Any

from .layout import TokenLayout


class PromptError(ValueError):
    """What one prompt cannot be answered for, whatever the method; other prompts may be fine."""


class BudgetError(ValueError):
    """A budget below the least that the tokens of one sample cost; others may have fewer tokens."""


def demand(settings: Any, field: str, condition: bool, expected: str) -> None:
    """Raise ValueError, naming the field, what was expected and what it is, unless `condition`."""
    if not condition:
        raise ValueError(f"{field} must be {expected}, got {getattr(settings, field)!r}")


def demand_choices(settings: Any) -> None:
    """Hold every field that a dataclass declares as `Literal[...]` to the values declared.

    Raises ValueError, naming the field, the values it may have and the one it has.
    """
    declared = typing.get_type_hints(type(settings))
    for field in fields(settings):
        if typing.get_origin(declared[field.name]) is typing.Literal:
            allowed = typing.get_args(declared[field.name])
            ok = getattr(settings, field.name) in allowed
            demand(settings, field.name, ok, f"one of {', '.join(map(str, allowed))}")


def demand_count(settings: Any, field: str, least: int) -> None:
    """Raise ValueError unless `field` is a whole number, `least` or more."""
    value = getattr(settings, field)
    ok = isinstance(value, int) and value >= least
    demand(settings, field, ok, f"a whole number, {least} or more")


def demand_depths(settings: Any, field: str) -> None:
    """Make `field` of a frozen dataclass a tuple of depths, or raise ValueError.

    Lists, as JSON has them, become tuples. Depths are whole numbers from 1, none below the one
    before.
    """
    value = getattr(settings, field)
    depths = tuple(value) if isinstance(value, (list, tuple)) else ()
    whole = all(isinstance(depth, int) and depth >= 1 for depth in depths)
    ok = bool(depths) and whole and list(depths) == sorted(depths)
    demand(settings, field, ok, "ascending whole numbers of layers from 1")
    object.__setattr__(settings, field, depths)


def demand_later_layers(method: str, field: str, depth: int, layers: int) -> None:
    """Raise ValueError unless a decoder of `layers` layers goes on after `depth` of them.

    field: the setting, or settings, that say how deep.
    """
    if depth >= layers:
        raise ValueError(
            f"method {method} cuts after {depth} layers, but this decoder has {layers}: give "
            f"smaller {field}, or have it scaled (--depth-layers 32)"
        )


def demand_text_behind(method: str, layout: TokenLayout) -> None:
    """Raise PromptError for a sample with visual tokens and no text after the last of them."""
    if any(visual and not tail for visual, tail in zip(layout.n_visual, layout.tail)):
        raise PromptError(
            f"method {method} needs text after the last image to rank its tokens by attention"
        )
