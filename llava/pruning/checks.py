"""Checks of settings that methods share."""

from __future__ import annotations

import typing
from dataclasses import fields
from typing import Any


def demand_choices(settings: Any) -> None:
    """Hold every field that a dataclass declares as `Literal[...]` to the values declared.

    Raises ValueError, naming the field, the values it may have and the one it has.
    """
    declared = typing.get_type_hints(type(settings))
    for field in fields(settings):
        if typing.get_origin(declared[field.name]) is typing.Literal:
            allowed, value = typing.get_args(declared[field.name]), getattr(settings, field.name)
            if value not in allowed:
                names = ", ".join(map(str, allowed))
                raise ValueError(f"{field.name} must be one of {names}, got {value!r}")
