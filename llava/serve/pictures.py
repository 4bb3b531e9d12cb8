"""Pictures from outside: bytes become an image within limits, or a message says why not."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image

from llava.common.images import check_size, load_image, noted, to_rgb

MAX_BYTES = 20 * 2**20
#: Of a picture from outside; `llava.common.images` takes larger ones from files of one's own.
MAX_PIXELS = 40_000_000
#: What browsers show. Pillow's other readers are for files of one's own: some start programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


def decode_picture(data: bytes, name: str = "the picture") -> Image.Image:
    """Fully decode a picture of an unknown source, as RGB; of an animation, the first frame.

    The size is read from the header before anything is decompressed. `images.note` says whether its
    values were scaled.

    Raises:
        ValueError: too many bytes or pixels, another format, or damaged data; `name` is in it.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"{name} has {size(len(data))}; at most {size(MAX_BYTES)} are taken")
    try:
        # Pillow's own limit is of no interest below ours, and an error far above it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(_too_large(name, str(error))) from None
    except Exception:
        listed = ", ".join(FORMATS)
        raise ValueError(f"{name} is no image that can be read here ({listed})") from None
    try:
        check_size(image.size, MAX_PIXELS)
    except ValueError as error:
        raise ValueError(f"{name} is {error}") from None
    try:
        with image:
            return to_rgb(image)
    # Pillow's decoders raise SyntaxError, ValueError, EOFError, struct.error... on damaged data.
    except Exception as error:
        raise ValueError(f"{name} is damaged: {error}") from None


def open_picture(source: str, allow_urls: bool = False) -> Image.Image:
    """The picture at a path, or at a URL where that is allowed, as RGB.

    Raises:
        ValueError: a URL that is not allowed, or what `decode_picture` and `download.fetch` refuse.
        OSError: no such file, or one that cannot be read; the server cannot be reached.
    """
    if "://" not in source:
        return load_image(Path(source))
    if not allow_urls:
        raise ValueError(
            f"{source} is a URL; give --allow-urls to have it downloaded, or a file's path"
        )
    from .download import fetch

    return noted(decode_picture(fetch(source, MAX_BYTES), source))


def size(count: int) -> str:
    """A number of bytes to read: `20.0 MiB`."""
    return f"{count / 2**20:.1f} MiB"


def _too_large(name: str, size: str) -> str:
    return f"{name} is too large ({size}); at most {MAX_PIXELS // 10**6} megapixels are taken"
