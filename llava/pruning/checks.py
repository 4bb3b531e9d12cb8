"""Checks that methods share: of settings, and of the decoder and prompts they are started on."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import fields
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

from .layout import TokenLayout

#: The largest size of a number and of a whole number among settings: products of a few of the
#: former are still numbers, and the latter fit a tensor.
LARGEST, LARGEST_WHOLE = 10**9, 2**63 - 1
_SHOWN = 80  # characters of a wrong value that a message shows


def shorten(value: Any) -> str:
    """The start of a value as Python writes it, for a message."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


class PromptError(ValueError):
    """What one prompt cannot be answered for, whatever the method; other prompts may be fine."""


class BudgetError(ValueError):
    """A budget below the least that the tokens of one sample cost; others may have fewer tokens."""


def demand(settings: Any, field: str, condition: bool, expected: str) -> None:
    """Raise ValueError, naming the field, what was expected and what it is, unless `condition`."""
    if not condition:
        raise ValueError(f"{field} must be {expected}, got {shorten(getattr(settings, field))}")


def demand_declared(settings: Any) -> None:
    """Hold every field of a dataclass to its declared type.

    Numbers are finite and no larger than `LARGEST` and `LARGEST_WHOLE`, a whole number is a number,
    and a list, as JSON has it, is a tuple. A field that is declared as something else than numbers,
    truth values, texts, `Literal`, tuples of these and None is not looked at.

    Raises ValueError, naming the field, what it may be and what it is.
    """
    cls: type = type(settings)
    declared = declared_types(cls)
    for field in fields(settings):
        options = declared[field.name]
        if all(map(_is_known, options)):
            value = getattr(settings, field.name)
            ok = any(_fits(value, option) for option in options)
            demand(settings, field.name, ok, " or ".join(_words(options)))


@lru_cache
def declared_types(cls: type) -> dict[str, tuple[Any, ...]]:
    """By field of a dataclass, the types of which it declares its value to be one."""
    hints = typing.get_type_hints(cls)
    return {
        name: typing.get_args(hint)
        if typing.get_origin(hint) in (typing.Union, types.UnionType)
        else (hint,)
        for name, hint in hints.items()
    }


def _is_known(option: Any) -> bool:
    if typing.get_origin(option) is tuple:
        return _is_known(typing.get_args(option)[0])
    return option in _WORDS or typing.get_origin(option) is typing.Literal


def _fits(value: Any, option: Any) -> bool:
    origin, arguments = typing.get_origin(option), typing.get_args(option)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(_fits(v, arguments[0]) for v in value)
    if option in (int, float) and isinstance(value, bool):
        return False
    if option is int:
        return isinstance(value, Integral) and _size(value) <= LARGEST_WHOLE
    if option is float:
        return isinstance(value, Real) and _size(value) <= LARGEST  # which no NaN is
    return isinstance(value, option)


def _size(value: Any) -> Any:
    return abs(value)


def _words(options: tuple[Any, ...]) -> Iterator[str]:
    for option in options:
        arguments = typing.get_args(option)
        if typing.get_origin(option) is typing.Literal:
            yield f"one of {', '.join(map(str, arguments))}"
        elif arguments:
            yield f"a list of which each is {_WORDS[arguments[0]]}"
        else:
            yield _WORDS[option]


_WORDS = {
    bool: "true or false",
    int: "a whole number of 64 bits",
    float: f"a finite number, at most {LARGEST:,}",
    str: "a text",
    type(None): "none",
}


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
