"""Drawing scenes with Pillow: ground, clutter, things, signs. A scene always looks the same."""

from __future__ import annotations

import math
from functools import lru_cache

from PIL import Image, ImageDraw

from llava.train.items import IMAGE_SIZE, Mark, Sign, Thing, font_for
from llava.train.scenes import Scene

_FINE = 4  # shapes are drawn this many times larger and reduced, for smooth edges


def render(scene: Scene) -> Image.Image:
    """The picture of a scene's window: RGB, `scene.window` pixels square."""
    side, left, top = scene.window, scene.left, scene.top
    noise = Image.frombytes("RGB", (scene.cells, scene.cells), scene.texture)
    ratio = scene.cells / IMAGE_SIZE
    region = (left * ratio, top * ratio, (left + side) * ratio, (top + side) * ratio)
    picture = noise.resize((side, side), Image.Resampling.BICUBIC, box=region)
    draw = ImageDraw.Draw(picture)
    for mark in scene.clutter:
        _draw_mark(draw, mark, left, top)
    for item in scene.items:
        plate = _draw_plate(item) if isinstance(item, Sign) else _draw_thing(item)
        corner = (round(item.x - left - plate.width / 2), round(item.y - top - plate.height / 2))
        picture.paste(plate, corner, plate)
    return picture


def _draw_mark(draw: ImageDraw.ImageDraw, mark: Mark, left: int, top: int) -> None:
    x0, y0, x1, y1 = mark.box
    box = (x0 - left, y0 - top, x1 - left, y1 - top)
    if mark.kind == "stroke":
        draw.line(box, fill=mark.rgb, width=2)
    else:
        draw.ellipse(box, fill=mark.rgb)


def _draw_plate(sign: Sign) -> Image.Image:
    """The rotated plate with its text (upper case), RGBA, transparent outside the plate."""
    plate = Image.new("RGBA", (sign.width, sign.height), (*sign.rgb, 255))
    draw = ImageDraw.Draw(plate)
    baseline = (sign.height + sign.letter_height) / 2
    position = (sign.width / 2, baseline)
    font = font_for(sign.letter_height)
    draw.text(position, sign.text.upper(), fill=sign.ink, font=font, anchor="ms")
    return plate.rotate(sign.tilt, Image.Resampling.BICUBIC, expand=True)


def _draw_thing(thing: Thing) -> Image.Image:
    """The shape in its colour and pattern, RGBA, transparent outside the shape."""
    side = thing.width
    face = Image.new("RGBA", (side, side), (*thing.rgb, 255))
    if thing.pattern != "plain":
        bright = sum(thing.rgb) > 300
        tone = tuple(c * 2 // 5 if bright else c + (255 - c) * 3 // 5 for c in thing.rgb)
        draw = ImageDraw.Draw(face)
        step = 8 if thing.size == "small" else 12
        if thing.pattern == "striped":
            for y in range(step // 2, side, step):
                draw.rectangle((0, y, side, y + step // 2 - 1), fill=tone)
        else:
            for y in range(step // 2, side, step):
                for x in range(step // 2, side, step):
                    draw.ellipse((x - step // 4, y - step // 4, x + step // 4, y + step // 4), tone)
    face.putalpha(_mask(thing.shape, side))
    return face


@lru_cache(maxsize=1024)
def _mask(shape: str, side: int) -> Image.Image:
    """What a shape covers of its square, 0 to 255."""
    fine = side * _FINE
    mask = Image.new("L", (fine, fine), 0)
    draw = ImageDraw.Draw(mask)
    if shape == "circle":
        draw.ellipse((0, 0, fine - 1, fine - 1), fill=255)
    elif shape == "ring":
        draw.ellipse((0, 0, fine - 1, fine - 1), outline=255, width=round(0.24 * fine))
    elif shape == "moon":
        draw.ellipse((0, 0, fine - 1, fine - 1), fill=255)
        draw.ellipse((round(0.36 * fine), round(-0.1 * fine), 1.3 * fine, 0.84 * fine), fill=0)
    elif shape == "heart":
        draw.ellipse((0, 0.06 * fine, 0.53 * fine, 0.6 * fine), fill=255)
        draw.ellipse((0.47 * fine, 0.06 * fine, fine - 1, 0.6 * fine), fill=255)
        draw.polygon(_scaled(((0.05, 0.45), (0.5, 0.3), (0.95, 0.45), (0.5, 0.98)), fine), 255)
    else:
        draw.polygon(_scaled(_POLYGONS[shape], fine), fill=255)
    return mask.resize((side, side), Image.Resampling.LANCZOS)


def _scaled(points: tuple[tuple[float, float], ...], side: int) -> list[tuple[float, float]]:
    return [(x * (side - 1), y * (side - 1)) for x, y in points]


def _star() -> tuple[tuple[float, float], ...]:
    corners = []
    for corner in range(10):
        radius = 0.53 if corner % 2 == 0 else 0.21
        angle = math.pi * corner / 5
        corners.append((0.5 + radius * math.sin(angle), 0.53 - radius * math.cos(angle)))
    return tuple(corners)


# Corners in the unit square, y down.
_POLYGONS = {
    "square": ((0.04, 0.04), (0.96, 0.04), (0.96, 0.96), (0.04, 0.96)),
    "triangle": ((0.5, 0.02), (1.0, 0.96), (0.0, 0.96)),
    "diamond": ((0.5, 0.0), (0.86, 0.5), (0.5, 1.0), (0.14, 0.5)),
    "star": _star(),
    "cross": (
        (0.33, 0.0),
        (0.67, 0.0),
        (0.67, 0.33),
        (1.0, 0.33),
        (1.0, 0.67),
        (0.67, 0.67),
        (0.67, 1.0),
        (0.33, 1.0),
        (0.33, 0.67),
        (0.0, 0.67),
        (0.0, 0.33),
        (0.33, 0.33),
    ),
    "arrow": (
        (0.0, 0.34),
        (0.5, 0.34),
        (0.5, 0.04),
        (1.0, 0.5),
        (0.5, 0.96),
        (0.5, 0.66),
        (0.0, 0.66),
    ),
}
