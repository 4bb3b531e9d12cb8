"""Depths of pruning methods, given in layers of one decoder, in those of another.

The published x0 and pruning layers are meant for 32 layers. `--depth-layers 32` says so, and they
are moved to the same relative depth of the decoder at hand.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llava.pruning import Pruner

#: Depths are published for 32 layers, and the paper took the same numbers for 40.
PUBLISHED_LAYERS = 32
_TAKEN_AS_THEY_ARE = (32, 40)


def meant_for(depth_layers: int | None, x0: float | None, layers: int) -> int:
    """For how many layers depths are given to a program that takes them as published ones.

    What --depth-layers says; without it, and without an --x0 of the user's own, the 32 layers that
    the defaults are published for, unless the decoder has 32 or 40.
    """
    if depth_layers is not None:
        return depth_layers
    return layers if layers in _TAKEN_AS_THEY_ARE or x0 is not None else PUBLISHED_LAYERS


def scale_depths(pruner: Pruner, given_for: int, layers: int) -> tuple[Pruner, list[str]]:
    """The pruner for a decoder of `layers` layers, and a sentence for each depth that changed.

    Raises:
        ValueError: depths cannot be given for fewer layers than one.
    """
    if given_for < 1:
        raise ValueError(f"--depth-layers must be at least 1, got {given_for}.")
    scaled = pruner.scaled(given_for, layers)
    said = []
    for name in pruner.depths:
        old, new = getattr(pruner, name), getattr(scaled, name)
        if old != new:
            said.append(
                f"{pruner.method}: {name} {_shown(old)} is for {given_for} layers; this decoder "
                f"has {layers}: {_shown(new)}"
            )
    return scaled, said


def in_decoder(pruners: Sequence[Pruner], given_for: int, layers: int) -> list[Pruner]:
    """`scale_depths` of each; says every change once on stderr."""
    scaled, sentences = [], dict[str, None]()
    for pruner in pruners:
        moved, said = scale_depths(pruner, given_for, layers)
        scaled.append(moved)
        sentences.update(dict.fromkeys(said))
    for sentence in sentences:
        print(sentence, file=sys.stderr, flush=True)
    return scaled


def _shown(value: float | tuple[float, ...]) -> str:
    return ", ".join(map(_shown, value)) if isinstance(value, tuple) else f"{value:g}"
