"""The command-line flags of pruning, shared by evaluation, benchmark and chat.

A flag that is not given leaves the method's own default alone: no number stands here.
"""

from __future__ import annotations

import argparse
import math
import typing
from dataclasses import fields
from typing import Any

from .base import Pruner
from .checks import LARGEST, declared_types, shorten
from .registry import METHODS, build, find

# A command may give these for several methods; one without them ignores them.
_COMMON = (
    "target_token_num",
    "target_fraction",
    "budget_per",
    "budget_mode",
    "x0",
    "k0",
    "gamma",
    "beta",
    "clip",
)
_FRACTIONS = ("target_flops", "target_kv")


def add_pruning_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --method, --preset, the budget, the curve and --set to `parser`."""
    group = parser.add_argument_group("pruning")
    group.add_argument(
        "--method", default="autoprune", type=_method, help=f"one of {', '.join(sorted(METHODS))}"
    )
    presets = {name for cls in METHODS.values() for name in cls.presets}
    group.add_argument(
        "--preset",
        choices=sorted(presets),
        help="settings of the method that go together",
    )
    group.add_argument(
        "--target-token-num", type=finite, metavar="T", help="visual tokens a layer, on average"
    )
    group.add_argument(
        "--target-fraction",
        type=finite,
        metavar="F",
        help="instead: T as a fraction of the visual tokens there are",
    )
    group.add_argument(
        "--budget-per",
        choices=("sample", "image"),
        help="whether T is for all images of a prompt together or for each of them",
    )
    group.add_argument(
        "--budget-mode",
        choices=("published", "strict"),
        help="count T on tokens leaving a layer, as published, or strictly on tokens entering it",
    )
    group.add_argument(
        "--target-flops", type=finite, metavar="F", help="instead: fraction of dense prefill FLOPs"
    )
    group.add_argument(
        "--target-kv", type=finite, metavar="F", help="instead: fraction of dense KV bytes"
    )
    group.add_argument("--x0", type=finite, help="depth, in layers, of the curve's inflection")
    group.add_argument("--k0", type=finite, help="slope of the curve before adaptation")
    group.add_argument(
        "--gamma", type=finite, help="how much the indicator (mutual information) flattens it"
    )
    group.add_argument(
        "--beta", type=finite, help="paper preset: how much it shifts the inflection"
    )
    group.add_argument(
        "--clip", metavar="DIR", help="cdpruner: the CLIP that the vision tower is from"
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="any field of the method's settings; several numbers as 2+8+16; may be repeated",
    )


def finite(text: str) -> float:
    """A number on a command line, as `checks` takes it; ArgumentTypeError for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST:
        raise argparse.ArgumentTypeError(
            f"expected a finite number, at most {LARGEST:,}, got {shorten(text)}"
        )
    return value


def pruner_from_args(args: argparse.Namespace) -> Pruner:
    """The pruner that the parsed flags describe; raises what `method_settings` and `build` do."""
    return build(args.method, preset=args.preset, **method_settings(args))


def method_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that the parsed flags give, by field; the rest are the method's defaults.

    Token budgets and curve flags that the method lacks are ignored: one command serves all methods.
    Raises ValueError for a fraction of FLOPs or KV bytes that the method cannot aim at, for unknown
    fields in --set and for values of the wrong type.
    """
    cls = METHODS[args.method]
    known = {field.name for field in fields(cls)}
    settings = {}
    for name in (*_COMMON, *_FRACTIONS):
        value = getattr(args, name)
        if value is None:
            continue
        if name in known:
            settings[name] = value
        elif name in _FRACTIONS:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"method {args.method} has no {flag}; give it --target-token-num")
    for item in args.set:
        name, separator, text = item.partition("=")
        if not separator:
            raise ValueError(f"--set takes FIELD=VALUE, got {shorten(item)}")
        settings[name] = read_setting(cls, name, text) if name in known else text
    return settings


def _method(name: str) -> str:
    try:
        return find(name).method
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def read_setting(cls: type[Pruner], name: str, text: str) -> Any:
    """Read `text` as the declared type of a field; `none` where the field may be None."""
    options = declared_types(cls)[name]
    if text.lower() == "none" and type(None) in options:
        return None
    kind = next(option for option in options if option is not type(None))
    if typing.get_origin(kind) is tuple:
        number = typing.get_args(kind)[0]
        try:
            return tuple(number(part) for part in text.split("+"))
        except ValueError:
            raise ValueError(
                f"{name} must be numbers ({number.__name__}) with + between them, got "
                f"{shorten(text)}"
            ) from None
    if kind is bool:
        if text.lower() in ("true", "yes", "1"):
            return True
        if text.lower() in ("false", "no", "0"):
            return False
        raise ValueError(f"{name} must be true or false, got {shorten(text)}")
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"{name} must be {kind.__name__}, got {shorten(text)}") from None
    return text
