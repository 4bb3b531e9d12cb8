"""Depths of pruning methods, given in layers of one decoder, in those of another.

The published x0 and pruning layers are meant for 32 layers. `--depth-layers 32` says so, and they
are moved to the same relative depth of the decoder at hand.
"""

from __future__ import annotations

from llava.pruning import Pruner


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


def _shown(value: float | tuple[float, ...]) -> str:
    return ", ".join(map(_shown, value)) if isinstance(value, tuple) else f"{value:g}"
