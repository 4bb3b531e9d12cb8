"""Deterministic synthetic scenes: signs with words and numbers among clutter.

A scene is a plain description (the graph) from which everything else follows: the picture
(`drawing`), the questions about it (`questions`) and the labels of every patch (`labels`). Only
`random.Random(seed)` and the measures of Pillow's own font enter, so a seed gives the same scene
every time (for one version of Pillow).

Units are pixels of the full 336 x 336 picture, x to the right and y down, unless said otherwise.
Angles are degrees counter-clockwise as seen on the picture.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cache, lru_cache

from PIL import ImageFont

IMAGE_SIZE = 336
PATCH_SIZE = 14
GRID = IMAGE_SIZE // PATCH_SIZE

# Disjoint by construction: a picture of a test set can never be a picture of a training set.
TEST_SEEDS = range(0, 1_000_000)
VALIDATION_SEEDS = range(1_000_000, 2_000_000)
TRAINING_SEEDS = range(2_000_000, 2**40)

# fmt: off
WORDS = (
    "stop", "exit", "open", "shop", "park", "taxi", "milk", "cafe", "bank", "hotel", "book",
    "farm", "gate", "fire", "ice", "pizza", "bus", "zoo", "key", "door", "left", "slow", "food",
    "fish", "tea", "art", "jazz", "king", "lake", "moon", "news", "north", "club", "gym",
    "port", "quiz", "road", "sale", "west", "yoga",
)
# fmt: on

COLOURS = {
    "red": (205, 35, 40),
    "orange": (240, 130, 25),
    "yellow": (245, 215, 40),
    "green": (35, 145, 60),
    "blue": (40, 80, 205),
    "purple": (125, 45, 160),
    "pink": (245, 145, 190),
    "brown": (115, 70, 35),
    "white": (246, 246, 240),
    "black": (25, 25, 28),
}

PLACES = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)

_MARGIN = 4  # free pixels between two signs and between a sign and the border
_TRIES = 40
_SMALLEST = 14  # letter height down to which a sign that finds no room is shrunk


@dataclass(frozen=True)
class Style:
    """What scenes are drawn from. The defaults define the benchmark; a curriculum narrows them.

    `signs`, `letters` (letter height in pixels) and `clutter` (number of shapes) are inclusive
    ranges; `tilt` is the largest rotation of a sign; `window` is the side of the square part of the
    picture that holds the signs and is rendered, a multiple of the patch size.
    """

    signs: tuple[int, int] = (1, 4)
    letters: tuple[int, int] = (14, 40)
    clutter: tuple[int, int] = (3, 10)
    tilt: float = 8.0
    window: int = IMAGE_SIZE

    def __post_init__(self) -> None:
        if self.window % PATCH_SIZE or not PATCH_SIZE <= self.window <= IMAGE_SIZE:
            raise ValueError(
                f"window must be a multiple of {PATCH_SIZE} up to {IMAGE_SIZE}, got {self.window}"
            )
        for name in ("signs", "letters", "clutter"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name} must be a range (low, high), got {(low, high)}")

    def towards(self, other: Style, share: float) -> Style:
        """The style `share` of the way (0 to 1) to another, with the other's window."""

        def between(one: tuple[int, int], two: tuple[int, int]) -> tuple[int, int]:
            low, high = (round(a + (b - a) * share) for a, b in zip(one, two, strict=True))
            return low, high

        return Style(
            signs=between(self.signs, other.signs),
            letters=between(self.letters, other.letters),
            clutter=between(self.clutter, other.clutter),
            tilt=self.tilt + (other.tilt - self.tilt) * share,
            window=other.window,
        )


@dataclass(frozen=True)
class Sign:
    """A coloured plate with one word or number. `width` and `height` are the plate's, unrotated."""

    text: str
    colour: str
    rgb: tuple[int, int, int]
    ink: tuple[int, int, int]
    letter_height: int
    tilt: float
    x: float  # centre
    y: float
    width: int
    height: int

    @property
    def is_number(self) -> bool:
        return self.text.isdigit()

    @property
    def place(self) -> str:
        """The cell of a 3 x 3 division of the full picture that holds the centre."""
        third = IMAGE_SIZE / 3
        return PLACES[min(2, int(self.y / third))][min(2, int(self.x / third))]

    def to_plate(self, x: float, y: float) -> tuple[float, float]:
        """A point of the picture in the plate's own axes, relative to the plate's centre."""
        sine, cosine = _sine_cosine(self.tilt)
        dx, dy = x - self.x, y - self.y
        return dx * cosine - dy * sine, dx * sine + dy * cosine

    def letter_edges(self) -> list[float]:
        """Left edge of each letter and right edge of the last, on the plate's horizontal axis."""
        font = font_for(self.letter_height)
        half = font.getlength(self.text) / 2
        return [font.getlength(self.text[:end]) - half for end in range(len(self.text) + 1)]


@dataclass(frozen=True)
class Blob:
    """A piece of clutter: `kind` of ellipse, ring, box, triangle or stroke, in its bounding box."""

    kind: str
    rgb: tuple[int, int, int]
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """The graph of one picture. `texture` holds `cells` x `cells` RGB bytes, drawn enlarged."""

    seed: int
    left: int  # upper left corner of the rendered window, a multiple of the patch size
    top: int
    window: int
    cells: int
    texture: bytes
    clutter: tuple[Blob, ...]
    signs: tuple[Sign, ...]


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


def make_scene(seed: int, style: Style = Style()) -> Scene:
    """Draw a scene from its seed.

    Args:
        seed: any integer; see the ranges at the top of this module.
        style: ranges to draw from.

    Returns:
        The scene graph. Colours and texts of its signs are distinct, and signs do not overlap;
        where there is no room for a sign it is drawn smaller, and left out if that does not help.
    """
    rng = random.Random(seed)
    offsets = (IMAGE_SIZE - style.window) // PATCH_SIZE
    left, top = (rng.randint(0, offsets) * PATCH_SIZE for _ in range(2))
    cells = rng.choice((4, 8, 16, 32))
    texture = _texture(rng, cells)
    clutter = tuple(
        _shape(rng, left, top, style.window) for _ in range(rng.randint(*style.clutter))
    )

    signs: list[Sign] = []
    count = rng.randint(*style.signs)
    for colour in rng.sample(list(COLOURS), count):
        taken = {sign.text for sign in signs}
        text = rng.choice(WORDS) if rng.random() < 0.6 else str(rng.randint(10, 99))
        while text in taken:
            text = rng.choice(WORDS)
        height = rng.randint(*style.letters)
        while height >= min(_SMALLEST, style.letters[0]):
            sign = _place(rng, text, colour, height, style, left, top, signs)
            if sign is not None:
                signs.append(sign)
                break
            height = int(height * 0.8)
    return Scene(seed, left, top, style.window, cells, texture, clutter, tuple(signs))


def _texture(rng: random.Random, cells: int) -> bytes:
    """A muted base colour with noise, `cells` * `cells` * 3 bytes."""
    grey, contrast = rng.randint(80, 190), rng.randint(4, 26)
    base = [grey + rng.randint(-28, 28) for _ in range(3)]
    noise = rng.randbytes(cells * cells)
    return bytes(
        max(0, min(255, channel + (value - 128) * contrast // 128))
        for value in noise
        for channel in base
    )


def _shape(rng: random.Random, left: int, top: int, side: int) -> Blob:
    kind = rng.choice(("ellipse", "ring", "box", "triangle", "stroke"))
    rgb = (rng.randint(20, 245), rng.randint(20, 245), rng.randint(20, 245))
    width, height = rng.randint(10, 64), rng.randint(10, 64)
    x, y = left + rng.randint(-8, side - 8), top + rng.randint(-8, side - 8)
    return Blob(kind, rgb, (x, y, x + width, y + height))


def _place(
    rng: random.Random,
    text: str,
    colour: str,
    letter_height: int,
    style: Style,
    left: int,
    top: int,
    others: list[Sign],
) -> Sign | None:
    """A sign at a free place of the window, or None when none was found."""
    tilt = round(rng.uniform(-style.tilt, style.tilt), 1)
    pad = letter_height * rng.uniform(0.35, 0.8)
    width = round(font_for(letter_height).getlength(text) + 2 * pad)
    height = round(letter_height + 1.6 * pad)
    rgb = tuple(max(0, min(255, c + rng.randint(-10, 10))) for c in COLOURS[colour])
    bright = 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2] > 135
    shade = rng.randint(0, 30)
    ink = (shade,) * 3 if bright else (255 - shade,) * 3
    half_x, half_y = (side / 2 + _MARGIN for side in _extent(width, height, tilt))
    if 2 * max(half_x, half_y) > style.window:
        return None
    for _ in range(_TRIES):
        x = rng.uniform(left + half_x, left + style.window - half_x)
        y = rng.uniform(top + half_y, top + style.window - half_y)
        sign = Sign(text, colour, rgb, ink, letter_height, tilt, x, y, width, height)
        if not any(overlap(sign, other) for other in others):
            return sign
    return None


def _extent(width: float, height: float, tilt: float) -> tuple[float, float]:
    """Width and height of the upright box around a rotated plate."""
    sine, cosine = (abs(value) for value in _sine_cosine(tilt))
    return width * cosine + height * sine, width * sine + height * cosine


def overlap(one: Sign, other: Sign) -> bool:
    """Whether the upright boxes around two signs come closer than the margin."""
    (width_1, height_1), (width_2, height_2) = (
        _extent(sign.width, sign.height, sign.tilt) for sign in (one, other)
    )
    return (
        abs(one.x - other.x) < (width_1 + width_2) / 2 + _MARGIN
        and abs(one.y - other.y) < (height_1 + height_2) / 2 + _MARGIN
    )
