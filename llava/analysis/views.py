"""What a model saw of a picture, and where on it each visual token is.

A `View` is a picture cut into rows of equal patches. LLaVA-1.5 has one, the square. LLaVA-1.6 has
two: the overview, which is the whole picture squeezed into a square, and the canvas of all tiles
at their places, without the border where its merge type takes that off. Newlines, CLS tokens and
Senna's mixed tokens are nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from llava import anyres
from llava.common.images import resized_square, to_rgb
from llava.mm_utils import letterbox_mask


@dataclass(frozen=True)
class View:
    """A picture in `columns` x `rows` patches.

    picture: RGB; tokens: row by row, of each patch the id of the token that shows it;
    padding: ids of those that show only padding; title: what it is, where there are several
    """

    picture: Image.Image
    columns: int
    rows: int
    tokens: Sequence[int]
    padding: tuple[int, ...] = ()
    title: str = ""

    def patches(self, tokens: Iterable[int]) -> list[int]:
        """Where some tokens are, counted row by row from 0; those of other views are left out."""
        place = {token: patch for patch, token in enumerate(self.tokens)}
        return [place[token] for token in tokens if token in place]


def views(image: Image.Image, image_processor: Any, model: Any) -> tuple[View, ...]:
    """What one of this package's models sees of a picture; nothing where its tokens mix patches."""
    config, grid = model.config, model.get_vision_tower().grid
    if getattr(config, "mm_token_adapter", None) is not None:
        return ()
    aspect_ratio = getattr(config, "image_aspect_ratio", None)
    if aspect_ratio == "anyres":
        pairs = config.image_grid_pinpoints
        merge, reading = config.mm_patch_merge_type, config.anyres_reading
        return tiled(image, image_processor.crop_size["height"], grid, pairs, merge, reading)
    padding: tuple[int, ...] = ()
    if aspect_ratio == "pad":
        padding = tuple(letterbox_mask(image.size, grid).nonzero()[:, 0].tolist())
    square = seen(image, image_processor, config)
    return (View(square, grid, grid, range(grid * grid), padding),)


def tiled(
    image: Image.Image, tile: int, side: int, pinpoints: Any, merge_type: str, reading: str
) -> tuple[View, View]:
    """The overview and the canvas of a tiled picture, see `llava.anyres`.

    tile: pixels along a tile; side: patches along it. A token's id is its place in the sequence.
    """
    picture = to_rgb(image)
    pairs = anyres.read_pinpoints(pinpoints, tile, "config.json")
    canvas = anyres.select_best_resolution(picture.size, pairs, reading)
    across, down = canvas[0] // tile, canvas[1] // tile
    order = anyres.token_order(picture.size, (across, down), side, merge_type, reading).tolist()
    place = {number: token for token, number in enumerate(order)}
    rows, columns = range(down * side), range(across * side)
    if "unpad" in merge_type:
        kept_rows, kept_columns = anyres.unpadded(picture.size, len(rows), len(columns), reading)
        rows, columns = rows[kept_rows], columns[kept_columns]

    def number(row: int, column: int) -> int:
        view = 1 + row // side * across + column // side
        return (view * side + row % side) * side + column % side

    tokens = [place[number(row, column)] for row in rows for column in columns]
    border = anyres.border(picture.size, (across, down), side, reading).nonzero()[:, 0].tolist()
    padding = tuple(place[patch] for patch in border if patch in place)
    edges = (columns.start, rows.start, columns.stop, rows.stop)
    box = tuple(round(edge * tile / side) for edge in edges)
    fitted = anyres.resize_and_pad_image(picture, canvas).crop(box)
    overview = picture.resize((tile, tile), Image.Resampling.BICUBIC)
    ids = [place[patch] for patch in range(side * side)]
    return (
        View(overview, side, side, ids, (), "overview"),
        View(fitted, len(columns), len(rows), tokens, padding, f"{across} x {down} tiles"),
    )


def seen(image: Image.Image, image_processor: Any, model_cfg: Any) -> Image.Image:
    """The square that the vision tower sees of a picture, RGB, before normalisation.

    Padded or cropped at the centre as `llava.mm_utils.process_images` does.

    Raises:
        ValueError: what `demand_square` raises.
    """
    demand_square(model_cfg)
    aspect_ratio = getattr(model_cfg, "image_aspect_ratio", None)
    side = image_processor.crop_size["height"]
    picture = to_rgb(image)
    if aspect_ratio == "pad":
        background = tuple(int(m * 255) for m in image_processor.image_mean)
        return resized_square(picture, background, side)
    short = min(picture.size)
    left, top = (picture.width - short) // 2, (picture.height - short) // 2
    picture = picture.crop((left, top, left + short, top + short))
    return picture.resize((side, side), Image.Resampling.BICUBIC)


def demand_places(seen_views: Sequence[View]) -> None:
    """Raise ValueError where no visual token has a place on the picture."""
    if not seen_views:
        raise ValueError(
            "no visual token of this checkpoint has a place on the picture (Senna's adapter, for "
            "one, mixes all its patches), so nothing can be drawn over it"
        )


def demand_square(model_cfg: Any) -> None:
    """Raise ValueError for a checkpoint whose visual tokens are not the patches of one square."""
    aspect_ratio = getattr(model_cfg, "image_aspect_ratio", None)
    if aspect_ratio not in (None, "square", "pad"):
        raise ValueError(
            f"image_aspect_ratio {aspect_ratio!r} cuts a picture into tiles; this figure is for "
            "checkpoints that see one square (pad or square)"
        )
    if (adapter := getattr(model_cfg, "mm_token_adapter", None)) is not None:
        raise ValueError(
            f"this checkpoint's adapter mixes the {adapter[0]} patches of a picture into "
            f"{adapter[1]} tokens (as Senna's does); none of them has a place on the picture, so "
            "nothing can be drawn over it"
        )
