"""Pictures before they are pixels: read, brought to RGB, refused when too large, put on a square.

RGB is what Pillow's `convert` gives, as in LLaVA, but for grey with more than 8 bits, of which
`convert` makes all above 255 white, and a picture black whose values end at 1:

    16 bits (I;16, also big-endian)   v / 257, rounded: 0 .. 65535 become 0 .. 255
    32-bit integers (I)               0 .. 255 as they are, up to 65535 as 16 bits
    floats (F)                        up to 1 times 255, rounded; up to 255 as they are

Any other range states no scale, and the picture is refused. What was scaled carries a note.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

logger = logging.getLogger(__name__)

#: Most pixels of a picture: 1 GiB, decoded and as RGB at 4 bytes a pixel each.
MAX_PIXELS = 2**27
#: Longest side. The time that Pillow's filter takes for a tall picture's padded square grows with
#: its area: some 10 s at this one.
MAX_SIDE = 2**15

_NOTE = (__name__, "note")  # a key of `Image.info` that no file can bring
_WIDE = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
#: The grey level of each 16-bit value. 257 is odd, so none lies between two levels.
_LEVELS = ((np.arange(2**16) + 128) // 257).astype(np.uint8)
_STRIPE = 2**22  # pixels of the padded square that are there at a time


def read(source: str | Path | IO[bytes], formats: Sequence[str] | None = None) -> Image.Image:
    """Fully decode a picture, as RGB, once its header says that it is not too large.

    Raises whatever Pillow raises on damaged data, and ValueError for what `check_size` and `to_rgb`
    refuse. `note` says how values were scaled.
    """
    with warnings.catch_warnings():
        # Pillow warns below our limit; what it refuses is above it.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(source, formats=formats)
    with image:
        check_size(image.size)
        # Opening reads the header only; converting decodes, so damaged data shows up here.
        return to_rgb(image)


def load_image(path: str | Path) -> Image.Image:
    """Read and fully decode an image file, as RGB; a scaling is logged, once a process.

    Raises:
        FileNotFoundError: no such file.
        OSError: not an image, truncated, too large or otherwise unreadable; names the path.
    """
    return noted(read_file(Path(path)))


def read_file(path: Path) -> Image.Image:
    """`load_image` without a word; see `note`."""
    if not path.is_file():
        raise FileNotFoundError(f"no image file at {path}")
    try:
        return read(path)
    # Pillow's decoders raise SyntaxError, ValueError, EOFError, struct.error... on damaged data.
    except Exception as error:
        raise OSError(f"cannot read image {path}: {error}") from error


def check_size(size: tuple[int, int], most_pixels: int = MAX_PIXELS) -> None:
    """Raise ValueError for a (width, height) that takes too much memory, or too much time."""
    width, height = size
    if width * height > most_pixels or max(size) > MAX_SIDE:
        raise ValueError(
            f"too large ({width} x {height}); at most {most_pixels // 10**6} megapixels are taken, "
            f"and {MAX_SIDE} pixels a side"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as RGB; see the module for grey with more than 8 bits.

    Raises:
        ValueError: values whose scale nothing states.
    """
    if image.mode not in _WIDE:
        return image.convert("RGB")
    values = np.asarray(image)
    low, high = values.min(), values.max()
    sixteen = image.mode.startswith("I;16")
    if low >= 0 and (sixteen or (image.mode == "I" and 255 < high <= 65535)):
        return _scaled(
            _LEVELS[values],
            "16-bit grey is divided by 257, so that 65535 is white (LLaVA makes all above 255 "
            "white); values that use fewer of the bits come out dark",
        )
    if image.mode == "F" and low >= 0 and high <= 1:
        return _scaled(
            np.rint(values * 255).astype(np.uint8),
            "float pictures between 0 and 1 are multiplied by 255 (LLaVA makes them black)",
        )
    if low >= 0 and high <= 255:
        return image.convert("RGB")
    kind, most = ("float", "1 or 255") if image.mode == "F" else ("32-bit integer", "255 or 65535")
    raise ValueError(
        f"its {kind} values go from {low:g} to {high:g}, and only values from 0 to {most} have a "
        "known scale: save it with 8 or 16 bits"
    )


def _scaled(values: np.ndarray, note: str) -> Image.Image:
    picture = Image.fromarray(values).convert("RGB")
    picture.info[_NOTE] = note
    return picture


def note(image: Image.Image) -> str | None:
    """How the values of a picture that `read` or `to_rgb` gave were scaled, None if not at all."""
    return image.info.get(_NOTE)


def noted(image: Image.Image) -> Image.Image:
    """The picture itself; its note, if it has one, is logged, once a process."""
    if (said := note(image)) is not None:
        _log(said)
    return image


@cache
def _log(said: str) -> None:
    logger.warning("%s", said)


def expand2square(image: Image.Image, background_color: tuple[int, int, int]) -> Image.Image:
    """Centre an image on a square of its longer side; a square image is returned as it is.

    The offset on the short axis is floor(difference / 2), so an odd pixel goes to the end.
    """
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new(image.mode, (side, side), background_color)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def resized_square(
    image: Image.Image,
    background_color: tuple[int, int, int],
    side: int,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """`expand2square`, resized to `side`: the same bits, without the whole square in memory.

    Pillow filters the rows first, each by itself, and then the columns of what that gave. So the
    rows of the picture are filtered stripe by stripe; a row of nothing but background stays that.
    """
    width, height = image.size
    longer = max(width, height)
    left, top = (longer - width) // 2, (longer - height) // 2
    narrow = Image.new("RGB", (side, longer), background_color)
    rows = max(1, _STRIPE // longer)
    for start in range(0, height, rows):
        count = min(rows, height - start)
        stripe = Image.new("RGB", (longer, count), background_color)
        stripe.paste(image.crop((0, start, width, start + count)), (left, 0))
        narrow.paste(stripe.resize((side, count), resample), (0, top + start))
    return narrow.resize((side, side), resample)
