"""The six camera views of a frame, drawn with Pillow. A frame always looks the same.

All views are 336 x 189 pixels, the shape of nuScenes' pictures, so that padding them to a square is
all the preparation that they need. What a view shows beside the scenery is in `Frame`; the scenery
(light of the day, houses, trees, colours, places) is random and means nothing. Side views tell left
from right by the slope of the kerb, and ahead from behind by its colour.
"""

from __future__ import annotations

import random

from PIL import Image, ImageDraw

from llava.eval.benchmarks.senna.plan import CAMERAS
from llava.train.drive.frames import Frame

SIZE = (336, 189)
_WIDTH, _HEIGHT = SIZE
_HORIZON = 84  # pixels from the top

_BODIES = ((60, 90, 160), (190, 190, 195), (40, 120, 80), (150, 110, 60), (90, 60, 110))
_DARK = (25, 25, 30)
_LIT = {"red": (255, 30, 30), "green": (40, 240, 80)}

Draw = ImageDraw.ImageDraw


def render(frame: Frame) -> dict[str, Image.Image]:
    """The picture of each camera: RGB, SIZE."""
    shade = random.Random(f"shade {frame.seed}").uniform(0.75, 1.05)
    return {camera: _view(frame, camera, shade) for camera in CAMERAS}


def _view(frame: Frame, camera: str, shade: float) -> Image.Image:
    rng = random.Random(f"{camera} {frame.seed}")
    picture = Image.new("RGB", SIZE, _shaded((150, 190, 225), shade))
    draw = ImageDraw.Draw(picture)
    _scenery(draw, rng, shade)
    draw.rectangle((0, _HORIZON, _WIDTH, _HEIGHT), fill=_shaded((105, 125, 85), shade))
    if camera in ("CAM_FRONT", "CAM_BACK"):
        _road_ahead(draw, shade)
    else:
        _road_beside(draw, shade, rising="RIGHT" in camera, ahead="FRONT" in camera)
    if camera == "CAM_FRONT":
        _front(draw, frame, rng)
    elif camera in frame.vehicles:
        _vehicle(draw, rng, rng.randint(90, 240), rng.randint(125, 165), rng.randint(80, 115))
    return picture


def _scenery(draw: Draw, rng: random.Random, shade: float) -> None:
    for _ in range(rng.randint(2, 5)):
        left, width, height = rng.randint(-20, 320), rng.randint(25, 70), rng.randint(12, 50)
        grey = rng.randint(110, 180)
        colour = _shaded((grey, grey - rng.randint(0, 20), grey - rng.randint(0, 30)), shade)
        draw.rectangle((left, _HORIZON - height, left + width, _HORIZON), fill=colour)
    for _ in range(rng.randint(0, 4)):
        x, radius = rng.randint(0, _WIDTH), rng.randint(7, 16)
        y = _HORIZON - radius
        colour = _shaded((50, rng.randint(90, 120), 55), shade)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _road_ahead(draw: Draw, shade: float) -> None:
    middle = _WIDTH // 2
    corners = ((middle - 14, _HORIZON), (middle + 14, _HORIZON), (_WIDTH, _HEIGHT), (0, _HEIGHT))
    draw.polygon(corners, fill=_shaded((95, 95, 100), shade))
    for side in (-1, 1):
        line = (middle + 4 * side, _HORIZON, middle + 58 * side, _HEIGHT)
        draw.line(line, fill=_shaded((225, 225, 225), shade), width=3)


def _road_beside(draw: Draw, shade: float, *, rising: bool, ahead: bool) -> None:
    """The road fills the lower corner on the car's side; the kerb is its edge."""
    low, high = (0, _HEIGHT - 8), (_WIDTH, _HORIZON + 14)
    if rising != ahead:
        low, high = (0, _HORIZON + 14), (_WIDTH, _HEIGHT - 8)
    corner = [(_WIDTH, _HEIGHT), (0, _HEIGHT)]
    draw.polygon([low, high, *corner], fill=_shaded((95, 95, 100), shade))
    kerb = (205, 195, 90) if ahead else (225, 225, 225)
    draw.line((*low, *high), fill=_shaded(kerb, shade), width=4)


def _front(draw: Draw, frame: Frame, rng: random.Random) -> None:
    if frame.light is not None:
        _traffic_light(draw, frame.light, rng.randint(236, 300), rng.randint(14, 26))
    if frame.arrow is not None:
        _sign(draw, frame.arrow, rng.randint(20, 72), rng.randint(14, 28))
    if frame.lead is not None:
        x, y = _WIDTH // 2 + rng.randint(-14, 14), rng.randint(112, 124)
        _vehicle(draw, rng, x, y, rng.randint(54, 66), lamps=frame.lead == "braking")
    if frame.cones:
        y = rng.randint(158, 168)
        for x in (118, 168, 218):
            _cone(draw, x + rng.randint(-6, 6), y)


def _vehicle(
    draw: Draw, rng: random.Random, x: int, y: int, width: int, lamps: bool | None = None
) -> None:
    """Seen from behind or the side, (x, y) the middle of its lower edge; `lamps` lit or dark."""
    height = width * 5 // 8
    left, top, right = x - width // 2, y - height, x + width // 2
    draw.rectangle((left, top + height // 3, right, y), fill=rng.choice(_BODIES))
    window = (left + width // 6, top, right - width // 6, top + height // 2)
    draw.rectangle(window, fill=(55, 65, 80))
    for wheel in (left + width // 8, right - width // 8 - 8):
        draw.rectangle((wheel, y, wheel + 8, y + 6), fill=_DARK)
    if lamps is None:
        return
    colour = _LIT["red"] if lamps else (95, 35, 35)
    for lamp in (left + 1, right - 14):
        draw.rectangle((lamp, y - height // 2, lamp + 13, y - height // 2 + 11), fill=colour)


def _traffic_light(draw: Draw, lit: str, x: int, y: int) -> None:
    draw.rectangle((x + 10, y + 60, x + 15, _HORIZON + 30), fill=_DARK)
    draw.rectangle((x, y, x + 26, y + 64), fill=_DARK)
    for place, colour in enumerate(("red", "yellow", "green")):
        top = y + 3 + 20 * place
        fill = _LIT[colour] if colour == lit else (60, 60, 60)
        draw.ellipse((x + 4, top, x + 22, top + 18), fill=fill)


def _sign(draw: Draw, arrow: str, x: int, y: int) -> None:
    draw.rectangle((x + 24, y + 50, x + 28, _HORIZON + 20), fill=_DARK)
    draw.rectangle((x, y, x + 52, y + 52), fill=(30, 70, 200))
    tip, tail = (x + 6, x + 46) if arrow == "left" else (x + 46, x + 6)
    head = x + 26
    draw.polygon(((tip, y + 26), (head, y + 6), (head, y + 46)), fill=(255, 255, 255))
    draw.rectangle((min(head, tail), y + 19, max(head, tail), y + 33), fill=(255, 255, 255))


def _cone(draw: Draw, x: int, y: int) -> None:
    draw.polygon(((x, y - 32), (x - 13, y), (x + 13, y)), fill=(255, 120, 10))
    draw.line((x - 7, y - 13, x + 7, y - 13), fill=(250, 250, 250), width=4)


def _shaded(colour: tuple[int, int, int], shade: float) -> tuple[int, int, int]:
    return tuple(min(255, int(value * shade)) for value in colour)
