"""Depths of pruning methods in the decoder at hand: every program asks here, and no script does.

Default depths (x0, the layers at which methods prune) are published for 32 layers, and the paper
took the same numbers for 40: decoders of 32 and of 40 layers take them as they are, any other at
the same relative depth. A depth that the user gave (--x0, --set, @FIELD=VALUE) is meant for this
decoder and stays. `--depth-layers L` says that all depths, given or not, are meant for L layers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterable

from llava.pruning import Pruner
from llava.pruning.arguments import method_settings, pruner_from_args

PUBLISHED_LAYERS = 32
_TAKEN_AS_THEY_ARE = (32, 40)


def meant_for(layers: int) -> int:
    """For how many layers published depths are taken to be given, in a decoder of `layers`."""
    return layers if layers in _TAKEN_AS_THEY_ARE else PUBLISHED_LAYERS


def in_decoder(
    pruner: Pruner, given: Collection[str], layers: int | None, depth_layers: int | None = None
) -> tuple[Pruner, list[str]]:
    """The pruner in a decoder of `layers` layers, and a sentence for each depth that changed.

    given: fields that the user set; the others have the method's defaults.
    layers: None where there is no decoder to ask, and depths stay.
    depth_layers: --depth-layers, None where it is not given.

    Raises:
        ValueError: depths cannot be given for fewer layers than one.
    """
    if depth_layers is not None and depth_layers < 1:
        raise ValueError(f"--depth-layers must be at least 1, got {depth_layers}.")
    if layers is None:
        return pruner, []
    given_for = meant_for(layers) if depth_layers is None else depth_layers
    names = [name for name in pruner.depths if depth_layers is not None or name not in given]
    moved = pruner.scaled(given_for, layers, names)
    as_they_are = f" (--depth-layers {layers} takes it as it is)" if depth_layers is None else ""
    said = [
        f"{pruner.method}: {name} {_shown(old)} is for {given_for} layers; this decoder has "
        f"{layers}: {_shown(new)}{as_they_are}"
        for name in names
        if (old := getattr(pruner, name)) != (new := getattr(moved, name))
    ]
    return moved, said


def pruner_in_decoder(args: argparse.Namespace, layers: int | None) -> Pruner:
    """The method of a parsed command line, as `in_decoder` decides; says what changed.

    Raises:
        ValueError: settings that do not exist or do not fit; see `pruner_from_args`.
    """
    pruner, given = pruner_from_args(args), method_settings(args)
    moved, said = in_decoder(pruner, given.keys(), layers, args.depth_layers)
    tell(said)
    return moved


def tell(sentences: Iterable[str]) -> None:
    """Say each of them once, on stderr."""
    for sentence in dict.fromkeys(sentences):
        print(sentence, file=sys.stderr, flush=True)


def _shown(value: float | tuple[float, ...]) -> str:
    return ", ".join(map(_shown, value)) if isinstance(value, tuple) else f"{value:g}"
