"""Wide and tall pictures: what of a scene's square its test picture shows.

LLaVA pads a picture to a square with bars. A picture cut out of the square, as long as it is, comes
back with bars where clutter was and everything else as large as before: what the model has learned
to see. Cut are the scenes that a cut changes no question or answer of: no item is lost, and the
place of each has one name, whether one looks at the square, at the cut or at the cut between bars.
"""

from __future__ import annotations

import math
from functools import lru_cache

from llava.train.items import IMAGE_SIZE, MARGIN, half
from llava.train.scenes import Scene

_SHORT = range(188, 259, 2)  # short sides in pixels, for 1.8 to 1.3 times as long ones


@lru_cache(maxsize=1024)
def frame(scene: Scene) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the picture of a scene without a window, in pixels: the
    narrowest fair cut, or the whole square."""
    for side in _SHORT:
        for axis in (0, 1):
            if (start := _fair_start(scene, axis, side)) is not None:
                ends = [(0, IMAGE_SIZE), (0, IMAGE_SIZE)]
                ends[axis] = start, start + side
                (left, right), (top, bottom) = ends
                return left, top, right, bottom
    return 0, 0, IMAGE_SIZE, IMAGE_SIZE


def aspect(scene: Scene) -> str:
    """Whether the picture of a scene is square, wide or tall."""
    left, top, right, bottom = frame(scene)
    width, height = right - left, bottom - top
    return "square" if width == height else "wide" if width > height else "tall"


def _fair_start(scene: Scene, axis: int, side: int) -> int | None:
    """Where a cut of `side` pixels along an axis (0: x) begins so that it is fair, in the middle
    if it can be; None if nowhere."""
    bar = (IMAGE_SIZE - side) // 2
    centres = [(item.x, item.y)[axis] for item in scene.items]
    reaches = [half(item)[axis] + MARGIN for item in scene.items]
    begins = min(c - r for c, r in zip(centres, reaches, strict=True))
    ends = max(c + r for c, r in zip(centres, reaches, strict=True))
    first, last = max(0, math.ceil(ends - side)), min(IMAGE_SIZE - side, math.floor(begins))
    for start in sorted(range(first, last + 1), key=lambda start: abs(start - bar)):
        if all(
            _third(c, IMAGE_SIZE) == _third(c - start, side) == _third(c - start + bar, IMAGE_SIZE)
            for c in centres
        ):
            return start
    return None


def _third(position: float, length: int) -> int:
    return min(2, int(position / (length / 3)))
