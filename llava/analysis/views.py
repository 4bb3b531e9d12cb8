"""What a model saw of a picture, and where on it each visual token is.

A `View` is a picture cut into rows of equal patches. LLaVA-1.5 has one, the square. LLaVA-1.6 has
two: the overview, which is the whole picture squeezed into a square, and the canvas of all tiles
at their places, without the border where its merge type takes that off. Newlines and CLS tokens are
nowhere. A token of Senna shows the whole picture, which is then one patch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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
    mixed: whether each of its tokens, however many, shows all of the picture; then it is one patch,
        and none of them has a place
    """

    picture: Image.Image
    columns: int
    rows: int
    tokens: Sequence[int]
    padding: tuple[int, ...] = ()
    title: str = ""
    mixed: bool = False

    def patches(self, tokens: Iterable[int]) -> list[int]:
        """Where some tokens are, counted row by row from 0; those of other views are left out."""
        if self.mixed:
            return []
        place = {token: patch for patch, token in enumerate(self.tokens)}
        return [place[token] for token in tokens if token in place]

    def count(self, tokens: Iterable[int]) -> int:
        """How many of some tokens are of this view."""
        return len({*self.tokens} & {*tokens})

    def of_picture(self, name: str, first: int) -> View:
        """The view of one of several pictures, whose ids are counted on from `first`."""
        return replace(
            self,
            tokens=[first + token for token in self.tokens],
            padding=tuple(first + token for token in self.padding),
            title=", ".join(filter(None, [name, self.title])),
        )


def views(image: Image.Image, image_processor: Any, model: Any) -> tuple[View, ...]:
    """What one of this package's models sees of a picture."""
    config, grid = model.config, model.get_vision_tower().grid
    aspect_ratio = getattr(config, "image_aspect_ratio", None)
    if aspect_ratio == "anyres":
        pairs = config.image_grid_pinpoints
        merge, reading = config.mm_patch_merge_type, config.anyres_reading
        return tiled(image, image_processor.crop_size["height"], grid, pairs, merge, reading)
    padding: tuple[int, ...] = ()
    if aspect_ratio == "pad":
        padding = tuple(letterbox_mask(image.size, grid).nonzero()[:, 0].tolist())
    square = seen(image, image_processor, config)
    if (adapter := getattr(config, "mm_token_adapter", None)) is not None:
        return (View(square, 1, 1, range(adapter[1]), mixed=True),)
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
        ValueError: a checkpoint that tiles pictures.
    """
    aspect_ratio = getattr(model_cfg, "image_aspect_ratio", None)
    if aspect_ratio not in (None, "square", "pad"):
        raise ValueError(f"image_aspect_ratio {aspect_ratio!r} sees no single square of a picture")
    side = image_processor.crop_size["height"]
    picture = to_rgb(image)
    if aspect_ratio == "pad":
        background = tuple(int(m * 255) for m in image_processor.image_mean)
        return resized_square(picture, background, side)
    short = min(picture.size)
    left, top = (picture.width - short) // 2, (picture.height - short) // 2
    picture = picture.crop((left, top, left + short, top + short))
    return picture.resize((side, side), Image.Resampling.BICUBIC)


def demand_places(drawn: Sequence[View]) -> None:
    """Raise ValueError where no visual token has a place on the picture."""
    if all(view.mixed for view in drawn):
        raise ValueError(
            "no visual token of this checkpoint has a place on the picture (Senna's adapter, for "
            "one, mixes all its patches), so nothing can be drawn over it"
        )
