"""What lies in a scene: signs, things and clutter, and the geometry of their plates.

Units are pixels of the full 336 x 336 picture, x to the right and y down. Angles are degrees
counter-clockwise as seen on the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from PIL import ImageFont

from llava.train.vocabulary import PLACES

IMAGE_SIZE = 336
PATCH_SIZE = 14
GRID = IMAGE_SIZE // PATCH_SIZE
MARGIN = 5  # free pixels between two items and between an item and the border


@dataclass(frozen=True)
class Item:
    """Anything that is asked about, on an upright or tilted plate around its centre (x, y)."""

    colour: str
    rgb: tuple[int, int, int]
    tilt: float
    x: float
    y: float
    width: int  # of the plate, unrotated
    height: int

    @property
    def place(self) -> str:
        """The cell of a 3 x 3 division of the full picture that holds the centre."""
        third = IMAGE_SIZE / 3
        return PLACES[min(2, int(self.y / third))][min(2, int(self.x / third))]

    @property
    def patches(self) -> float:
        """Area of the plate in patches."""
        return self.width * self.height / PATCH_SIZE**2

    def to_plate(self, x: float, y: float) -> tuple[float, float]:
        """A point of the picture in the plate's own axes, relative to the plate's centre."""
        sine, cosine = _sine_cosine(self.tilt)
        dx, dy = x - self.x, y - self.y
        return dx * cosine - dy * sine, dx * sine + dy * cosine


@dataclass(frozen=True)
class Sign(Item):
    """A coloured plate with one word or number."""

    text: str
    ink: tuple[int, int, int]
    letter_height: int

    @property
    def is_number(self) -> bool:
        return self.text.isdigit()

    def letter_edges(self) -> list[float]:
        """Left edge of each letter and right edge of the last, on the plate's horizontal axis."""
        font = font_for(self.letter_height)
        half = font.getlength(self.text) / 2
        return [font.getlength(self.text[:end]) - half for end in range(len(self.text) + 1)]


@dataclass(frozen=True)
class Thing(Item):
    """A shape with a colour, a pattern and a size."""

    shape: str
    pattern: str
    size: str


@dataclass(frozen=True)
class Mark:
    """A piece of clutter: `kind` of stroke, speck or smear, in its bounding box."""

    kind: str
    rgb: tuple[int, int, int]
    box: tuple[int, int, int, int]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


@cache
def font_for(letter_height: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font at the size at which a capital letter is `letter_height` pixels high."""
    _, top, _, bottom = _font(1000).getbbox("H", anchor="ls")
    return _font(round(letter_height * 1000 / (bottom - top)))


@lru_cache(maxsize=4096)
def _sine_cosine(degrees: float) -> tuple[float, float]:
    return math.sin(math.radians(degrees)), math.cos(math.radians(degrees))


def extent(width: float, height: float, tilt: float) -> tuple[float, float]:
    """Width and height of the upright box around a rotated plate."""
    sine, cosine = (abs(value) for value in _sine_cosine(tilt))
    return width * cosine + height * sine, width * sine + height * cosine


def half(item: Item) -> tuple[float, float]:
    width, height = extent(item.width, item.height, item.tilt)
    return width / 2, height / 2


def touch(box: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two upright boxes (x, y, half width, half height) come closer than the margin."""
    return all(abs(box[i] - other[i]) < box[i + 2] + other[i + 2] + MARGIN for i in (0, 1))


def overlap(item: Item, other: Item) -> bool:
    """Whether the upright boxes around two items come closer than the margin."""
    return touch((item.x, item.y, *half(item)), (other.x, other.y, *half(other)))
