"""Deterministic synthetic scenes: coloured shapes and signs with words and numbers, among clutter.

A scene is a plain description (the graph) from which everything else follows: the picture
(`drawing`), the questions about it (`questions`) and the labels of every patch (`labels`). Only
`random.Random(seed)` and the measures of Pillow's own font enter, so a seed gives the same scene
every time (for one version of Pillow).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

from llava.train.items import (
    IMAGE_SIZE,
    MARGIN,
    PATCH_SIZE,
    Item,
    Mark,
    Sign,
    Thing,
    extent,
    font_for,
    half,
    touch,
)
from llava.train.vocabulary import (
    COLOURS,
    PARTNERS,
    PATTERNS,
    SHAPES,
    SIZES,
    UNSEEN_THINGS,
    UNSEEN_WORDS,
    WORDS,
)

# Disjoint by construction: a picture of a test set can never be a picture of a training set.
TEST_SEEDS = range(0, 1_000_000)
VALIDATION_SEEDS = range(1_000_000, 2_000_000)
TRAINING_SEEDS = range(2_000_000, 2**40)

_TRIES = 40
_LETTERS = sorted(set("".join(WORDS)))  # of words, known and made-up ones
_SMALLEST = 14  # letter height down to which a sign that finds no room is shrunk
_UNSEEN_SHARE = 0.25  # of the test scenes, with something that training never shows
_PARTNER = 0.3  # chance that a shape is the partner of the one before


@dataclass(frozen=True)
class Style:
    """What scenes are drawn from. The defaults define the benchmarks; a curriculum narrows them.

    `things`, `signs`, `letters` (letter height in pixels) and `clutter` (number of marks) are
    inclusive ranges; `tilt` is the largest rotation of a sign; `window` is the side of the square
    part of the picture that holds everything and is rendered, a multiple of the patch size.
    `repeated` and `same_colour` are the chances that a thing takes shape or colour of the one
    before; `made_up` is the share of words that are any letters.
    """

    things: tuple[int, int] = (2, 5)
    signs: tuple[int, int] = (0, 3)
    letters: tuple[int, int] = (14, 36)
    clutter: tuple[int, int] = (3, 10)
    tilt: float = 12.0
    window: int = IMAGE_SIZE
    repeated: float = 0.22
    same_colour: float = 0.25
    made_up: float = 0.0

    def __post_init__(self) -> None:
        if self.window % PATCH_SIZE or not PATCH_SIZE <= self.window <= IMAGE_SIZE:
            raise ValueError(
                f"window must be a multiple of {PATCH_SIZE} up to {IMAGE_SIZE}, got {self.window}"
            )
        for name in ("things", "signs", "letters", "clutter"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name} must be a range (low, high), got {(low, high)}")

    def towards(self, other: Style, share: float) -> Style:
        """The style `share` of the way (0 to 1) to another, with the other's window."""

        def between(name: str) -> float | tuple[int, ...]:
            low, high = getattr(self, name), getattr(other, name)
            if isinstance(low, tuple):
                return tuple(round(a + (b - a) * share) for a, b in zip(low, high, strict=True))
            return low + (high - low) * share

        names = [field.name for field in fields(self) if field.name != "window"]
        return Style(window=other.window, **{name: between(name) for name in names})


@dataclass(frozen=True)
class Scene:
    """The graph of one picture. `texture` holds `cells` x `cells` RGB bytes, drawn enlarged."""

    seed: int
    left: int  # upper left corner of the rendered window, a multiple of the patch size
    top: int
    window: int
    cells: int
    texture: bytes
    clutter: tuple[Mark, ...]
    signs: tuple[Sign, ...]
    things: tuple[Thing, ...]

    @property
    def items(self) -> tuple[Item, ...]:
        return (*self.things, *self.signs)

    @property
    def unseen(self) -> bool:
        """Whether something in it never occurs in training."""
        return any(sign.text in UNSEEN_WORDS for sign in self.signs) or any(
            (thing.colour, thing.shape) in UNSEEN_THINGS for thing in self.things
        )


def make_scene(seed: int, style: Style = Style()) -> Scene:
    """Draw a scene from its seed.

    Args:
        seed: any integer; see the ranges at the top of this module.
        style: ranges to draw from.

    Returns:
        The scene graph. Colours and texts of its signs are distinct, items do not overlap; where
        there is no room for a sign it is drawn smaller, and what finds no room is left out. Scenes
        of test seeds may hold what training scenes never do.
    """
    rng = random.Random(seed)
    offsets = (IMAGE_SIZE - style.window) // PATCH_SIZE
    left, top = (rng.randint(0, offsets) * PATCH_SIZE for _ in range(2))
    cells = rng.choice((4, 8, 16, 32))
    base, texture = _texture(rng, cells)
    clutter = tuple(
        _mark(rng, base, left, top, style.window) for _ in range(rng.randint(*style.clutter))
    )
    unseen = seed in TEST_SEEDS and rng.random() < _UNSEEN_SHARE
    room = _Room(rng, left, top, style.window)
    _add_signs(rng, style, room, unseen)
    _add_things(rng, style, room, unseen)
    return Scene(
        seed,
        left,
        top,
        style.window,
        cells,
        texture,
        clutter,
        signs=tuple(item for item in room.items if isinstance(item, Sign)),
        things=tuple(item for item in room.items if isinstance(item, Thing)),
    )


def _texture(rng: random.Random, cells: int) -> tuple[list[int], bytes]:
    """A muted base colour, and `cells` * `cells` * 3 bytes of noise around it."""
    grey, contrast = rng.randint(80, 190), rng.randint(4, 26)
    base = [grey + rng.randint(-28, 28) for _ in range(3)]
    noise = rng.randbytes(cells * cells)
    return base, bytes(
        _clip(channel + (value - 128) * contrast // 128) for value in noise for channel in base
    )


def _mark(rng: random.Random, base: list[int], left: int, top: int, side: int) -> Mark:
    """Clutter of any colour if it is thin or tiny, else one that hardly differs from the ground:
    nothing that could be taken for one of the things."""
    kind = rng.choice(("stroke", "speck", "smear"))
    x, y = left + rng.randint(-8, side - 8), top + rng.randint(-8, side - 8)
    if kind == "smear":
        width, height = rng.randint(20, 80), rng.randint(20, 80)
        shift = rng.choice((-1, 1)) * rng.randint(10, 22)
        red, green, blue = (_clip(channel + shift) for channel in base)
    else:
        low, high = (10, 64) if kind == "stroke" else (4, 8)
        width, height = rng.randint(low, high), rng.randint(low, high)
        red, green, blue = (rng.randint(20, 245) for _ in range(3))
    return Mark(kind, (red, green, blue), (x, y, x + width, y + height))


class _Room:
    """The items placed so far, and the search for a free place for the next."""

    def __init__(self, rng: random.Random, left: int, top: int, window: int) -> None:
        self.items: list[Item] = []
        self._rng, self._left, self._top, self._window = rng, left, top, window

    def place(self, width: float, height: float, tilt: float) -> tuple[float, float] | None:
        """A centre at which a plate of this size is free, or None when none was found."""
        half_x, half_y = (side / 2 for side in extent(width, height, tilt))
        free = self._window - 2 * MARGIN
        if 2 * max(half_x, half_y) > free:
            return None
        for _ in range(_TRIES):
            x = self._left + MARGIN + half_x + self._rng.random() * (free - 2 * half_x)
            y = self._top + MARGIN + half_y + self._rng.random() * (free - 2 * half_y)
            if not any(
                touch((x, y, half_x, half_y), (item.x, item.y, *half(item))) for item in self.items
            ):
                return x, y
        return None


def _add_signs(rng: random.Random, style: Style, room: _Room, unseen: bool) -> None:
    texts: set[str] = set()
    for colour in rng.sample(list(COLOURS), rng.randint(*style.signs)):
        words = UNSEEN_WORDS if unseen and rng.random() < 0.4 else WORDS
        text = rng.choice(words) if rng.random() < 0.6 else str(rng.randint(10, 99))
        # a style without made-up words draws nothing for them: its scenes stay what they were
        if style.made_up and not text.isdigit() and rng.random() < style.made_up:
            text = _made_up(rng)
        while text in texts:
            text = rng.choice(WORDS)
        height = rng.randint(*style.letters)
        while height >= min(_SMALLEST, style.letters[0]):
            tilt = round(rng.uniform(-style.tilt, style.tilt), 1)
            pad = height * rng.uniform(0.35, 0.8)
            size = round(font_for(height).getlength(text) + 2 * pad), round(height + 1.6 * pad)
            centre = room.place(*size, tilt)
            if centre is not None:
                rgb = _tint(rng, colour)
                bright = 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2] > 135
                shade = rng.randint(0, 30)
                ink = (shade,) * 3 if bright else (255 - shade,) * 3
                room.items.append(Sign(colour, rgb, tilt, *centre, *size, text, ink, height))
                texts.add(text)
                break
            height = int(height * 0.8)


def _made_up(rng: random.Random) -> str:
    text = "".join(rng.choices(_LETTERS, k=rng.randint(3, 5)))
    return _made_up(rng) if text in UNSEEN_WORDS else text


def _add_things(rng: random.Random, style: Style, room: _Room, unseen: bool) -> None:
    shape = colour = ""
    for _ in range(rng.randint(*style.things)):
        shape = _next_shape(rng, shape, style.repeated)
        if not colour or rng.random() >= style.same_colour:
            colour = rng.choice(list(COLOURS))
        if unseen and rng.random() < 0.4:
            colour, shape = rng.choice(UNSEEN_THINGS)
        while not unseen and (colour, shape) in UNSEEN_THINGS:
            colour = rng.choice(list(COLOURS))
        size = rng.choice(list(SIZES))
        side = rng.randint(*SIZES[size])
        pattern = rng.choice(PATTERNS)
        if (centre := room.place(side, side, 0.0)) is not None:
            room.items.append(
                Thing(colour, _tint(rng, colour), 0.0, *centre, side, side, shape, pattern, size)
            )


def _next_shape(rng: random.Random, before: str, repeated: float) -> str:
    chance = rng.random()
    if before and chance < repeated:
        return before
    if before and chance < repeated + _PARTNER:
        return PARTNERS[before]
    return rng.choices(list(SHAPES), weights=SHAPES.values())[0]


def _tint(rng: random.Random, colour: str) -> tuple[int, int, int]:
    red, green, blue = (_clip(channel + rng.randint(-10, 10)) for channel in COLOURS[colour])
    return red, green, blue


def _clip(value: int) -> int:
    return max(0, min(255, value))
