"""Drawing scenes with Pillow: background, clutter, signs. The same scene gives the same bytes."""

from __future__ import annotations

from PIL import Image, ImageDraw

from llava.train.scenes import IMAGE_SIZE, Blob, Scene, Sign, font_for


def render(scene: Scene) -> Image.Image:
    """The picture of a scene's window: RGB, `scene.window` pixels square."""
    side, left, top = scene.window, scene.left, scene.top
    noise = Image.frombytes("RGB", (scene.cells, scene.cells), scene.texture)
    ratio = scene.cells / IMAGE_SIZE
    region = (left * ratio, top * ratio, (left + side) * ratio, (top + side) * ratio)
    picture = noise.resize((side, side), Image.Resampling.BICUBIC, box=region)
    draw = ImageDraw.Draw(picture)
    for shape in scene.clutter:
        _draw_shape(draw, shape, left, top)
    for sign in scene.signs:
        plate = _draw_plate(sign)
        corner = (round(sign.x - left - plate.width / 2), round(sign.y - top - plate.height / 2))
        picture.paste(plate, corner, plate)
    return picture


def _draw_shape(draw: ImageDraw.ImageDraw, shape: Blob, left: int, top: int) -> None:
    x0, y0, x1, y1 = shape.box
    box = (x0 - left, y0 - top, x1 - left, y1 - top)
    if shape.kind == "ellipse":
        draw.ellipse(box, fill=shape.rgb)
    elif shape.kind == "ring":
        draw.ellipse(box, outline=shape.rgb, width=4)
    elif shape.kind == "box":
        draw.rectangle(box, fill=shape.rgb)
    elif shape.kind == "triangle":
        draw.polygon([(box[0], box[3]), (box[2], box[3]), (box[0], box[1])], fill=shape.rgb)
    else:
        draw.line(box, fill=shape.rgb, width=5)


def _draw_plate(sign: Sign) -> Image.Image:
    """The rotated plate with its text (upper case), RGBA, transparent outside the plate."""
    plate = Image.new("RGBA", (sign.width, sign.height), (*sign.rgb, 255))
    draw = ImageDraw.Draw(plate)
    baseline = (sign.height + sign.letter_height) / 2
    position = (sign.width / 2, baseline)
    font = font_for(sign.letter_height)
    draw.text(position, sign.text.upper(), fill=sign.ink, font=font, anchor="ms")
    return plate.rotate(sign.tilt, Image.Resampling.BICUBIC, expand=True)
