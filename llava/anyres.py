"""LLaVA-1.6's anyres: a picture as an overview and tiles, and the order of their tokens.

The picture is fitted onto one of a few canvases, which is cut into square tiles; in front of them
goes the whole picture squeezed into one tile. Each of these views gives a grid of patches. How the
patches become one sequence is the merge type:

    flat           view after view, row by row in each
    spatial        the overview, then the rows of the canvas, across tiles
    spatial_unpad  the same without the rows or columns that show only the black border, and one
                   learned embedding, `image_newline`, at the end of each row of the canvas

Which canvas a picture goes on is its reading, one of these words:

    llava      most pixels of the picture, at most those it has, then least border, then the first
    llava-hf   the same, but a pair of the list is (height, width), where the others read (width,
               height). Another canvas wins for pictures that fit into one tile: two canvases tie,
               and the first in the list is taken, tall in LLaVA and wide in llava-hf. llava-hf also
               rounds to seven digits where it takes the border off; no size is known for which that
               matters.
    fill       the canvas that the picture fills best: most scaled area over area of the canvas, in
               whole pixels, then the first. So read the official codes of AutoPrune and FasterVLM:
               640 x 427 goes on 672 x 336, with three views, where LLaVA takes 672 x 672 and five.
    672x672    always this canvas, whatever the list says, or another width and height. VisPruner's
               and CDPruner's codes take 672 x 672.

Sources: haotian-liu/LLaVA 1.2.2 (behaviour); transformers 5.23 (llava-hf's reading); AutoPrune at
e4a9918 and FasterVLM at f5d5f12 (fill); VisPruner at aefa01a (672x672).
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .common.images import MAX_PIXELS
from .constants import MERGE_TYPES as MERGE_TYPES
from .constants import READINGS as READINGS

#: What `token_order` writes for an `image_newline`.
NEWLINE = -1

Size = tuple[int, int]


def read_pinpoints(value: Any, tile: int, where: str) -> list[Size]:
    """The canvases of config.json's `image_grid_pinpoints`, pairs of pixels in its order.

    value: a list of pairs, or a string that spells one, as some checkpoints have it.
    tile: side of a tile; both numbers of a pair are multiples of it.

    Raises ValueError, naming `where`, for anything else.
    """
    pairs = value
    if isinstance(value, str):
        try:
            pairs = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            pairs = None
    ok = isinstance(pairs, (list, tuple)) and len(pairs) > 0
    for pair in pairs if ok else ():
        ok = ok and isinstance(pair, (list, tuple)) and len(pair) == 2
        ok = ok and all(isinstance(n, int) and n > 0 and n % tile == 0 for n in pair)
    if not ok:
        raise ValueError(
            f"{where}: image_grid_pinpoints must be a list of pairs of multiples of {tile}, such "
            f"as [[{tile}, {2 * tile}], [{2 * tile}, {tile}]], got {value!r}"
        )
    return [(first, second) for first, second in pairs]


def fixed_canvas(reading: str, tile: int = 1) -> Size | None:
    """The one canvas (width, height) of a reading such as "672x672", None of those with a list.

    Raises ValueError for a word that is no reading, and a canvas that tiles of side `tile` do not
    make up or that no picture may be as large as.
    """
    if reading in READINGS:
        return None
    sides = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", reading)
    across, down = map(int, sides.groups()) if sides else (0, 0)
    if not 0 < across * down <= MAX_PIXELS or across % tile or down % tile:
        of_tiles = "" if tile == 1 else f", multiples of {tile}"
        raise ValueError(
            f"processing must be one of {', '.join(READINGS)}, or the width and height of a canvas "
            f"such as {2 * tile}x{2 * tile}{of_tiles}, got {reading[:40]!r}"
        )
    return across, down


def select_best_resolution(
    original_size: Size, possible_resolutions: Sequence[Size], reading: str = "llava"
) -> Size:
    """The canvas (width, height) for a picture of `original_size` (width, height), by the rule
    that `reading` names, see the module."""
    if (canvas := fixed_canvas(reading)) is not None:
        return canvas
    width, height = original_size
    if reading == "llava-hf":
        possible_resolutions = [(second, first) for first, second in possible_resolutions]
    best: Size | None = None
    best_score: tuple[float, int] = (0, 0)
    for across, down in possible_resolutions:
        scale = min(across / width, down / height)
        scaled = int(width * scale) * int(height * scale)
        effective = min(scaled, width * height)
        score: tuple[float, int] = (effective, effective - across * down)
        if reading == "fill":
            score = (scaled / (across * down), 0)
        if best is None or score > best_score:
            best, best_score = (across, down), score
    if best is None:
        raise ValueError("expected at least one canvas, got an empty list")
    return best


def get_anyres_image_grid_shape(
    image_size: Size, grid_pinpoints: Sequence[Size], patch_size: int, reading: str = "llava"
) -> Size:
    """Tiles of side `patch_size` on the canvas of a picture: (across, down)."""
    width, height = select_best_resolution(image_size, grid_pinpoints, reading)
    return width // patch_size, height // patch_size


def resize_and_pad_image(image: Image.Image, target_resolution: Size) -> Image.Image:
    """Fit a picture onto a black canvas of `target_resolution` (width, height), centred.

    The side that does not fill the canvas is rounded up. Pillow's bicubic filter.
    """
    (width, height), (across, down) = image.size, target_resolution
    by_width, by_height = across / width, down / height
    if by_width < by_height:
        fitted = (across, min(math.ceil(height * by_width), down))
    else:
        fitted = (min(math.ceil(width * by_height), across), down)
    canvas = Image.new("RGB", (across, down), (0, 0, 0))
    corner = ((across - fitted[0]) // 2, (down - fitted[1]) // 2)
    canvas.paste(image.resize(fitted, Image.Resampling.BICUBIC), corner)
    return canvas


def views(image: Image.Image, canvas: Size, tile: int) -> list[Image.Image]:
    """The picture squeezed into a tile, then the tiles of its canvas row by row."""
    fitted = resize_and_pad_image(image, canvas)
    overview = image.resize((tile, tile), Image.Resampling.BICUBIC)
    corners = [(x, y) for y in range(0, canvas[1], tile) for x in range(0, canvas[0], tile)]
    return [overview, *(fitted.crop((x, y, x + tile, y + tile)) for x, y in corners)]


def unpadded(size: Size, rows: int, columns: int, reading: str = "llava") -> tuple[slice, slice]:
    """Rows and columns of a map of `rows` x `columns` patches that show a picture of `size`.

    size: (width, height). Equally much goes at both ends, so an odd border leaves one line of it.
    """
    digits = 7 if reading == "llava-hf" else None

    def whole(length: float) -> int:
        return int(length if digits is None else round(length, digits))

    width, height = size
    if width / height > columns / rows:
        border = (rows - whole(height * (columns / width))) // 2
        return slice(border, rows - border), slice(0, columns)
    border = (columns - whole(width * (rows / height))) // 2
    return slice(0, rows), slice(border, columns - border)


def border(size: Size, tiles: Size, side: int, reading: str = "llava") -> Tensor:
    """Which patches of all views show nothing but the canvas's black border: (patches,) bool.

    Patches are counted as by `token_order`. The overview has no border. A line that `unpadded`
    leaves of an odd border is none. Arguments: see `token_order`.
    """
    across, down = tiles
    canvas = torch.ones(down * side, across * side, dtype=torch.bool)
    canvas[unpadded(size, down * side, across * side, reading)] = False
    tiled = canvas.view(down, side, across, side).transpose(1, 2).flatten()
    return torch.cat([torch.zeros(side * side, dtype=torch.bool), tiled])


def token_order(
    size: Size, tiles: Size, side: int, merge_type: str, reading: str = "llava"
) -> Tensor:
    """What each visual token of a picture is: (tokens,) long.

    A number v * side^2 + p is patch p, counted row by row, of view v, the overview being view 0;
    NEWLINE is an `image_newline`.

    size: (width, height) of the picture. tiles: (across, down). side: patches along a view.

    Raises ValueError for an unknown merge type.
    """
    if merge_type not in MERGE_TYPES:
        raise ValueError(
            f"mm_patch_merge_type must be one of {', '.join(MERGE_TYPES)}, got {merge_type!r}"
        )
    across, down = tiles
    each = side * side
    everything = torch.arange((1 + across * down) * each)
    if merge_type == "flat":
        return everything
    overview, rest = everything[:each], everything[each:]
    canvas = rest.view(down, across, side, side).transpose(1, 2).reshape(down * side, across * side)
    if merge_type == "spatial_unpad":
        rows, columns = unpadded(size, down * side, across * side, reading)
        canvas = canvas[rows, columns]
        canvas = torch.cat([canvas, torch.full((len(canvas), 1), NEWLINE)], 1)
    return torch.cat([overview, canvas.flatten()])
