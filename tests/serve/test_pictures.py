"""Pictures of unknown sources: what is taken, and what each refusal says."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from llava.serve.pictures import MAX_BYTES, decode_picture, open_picture


def encoded(kind: str, image: Image.Image, **options) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises that many pixels, and whose data is a few bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\x00" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_what_browsers_show_is_read(kind) -> None:
    image = decode_picture(encoded(kind, Image.new("RGB", (30, 20), (255, 0, 0))))
    assert image.mode == "RGB" and image.size == (30, 20)
    assert all(abs(a - b) < 8 for a, b in zip(image.getpixel((5, 5)), (255, 0, 0)))


def test_the_first_frame_of_an_animation_is_read() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded("GIF", frames[0], save_all=True, append_images=frames[1:])
    assert decode_picture(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cat.png is no image that can be read here"),
        (b"<html></html>", "cat.png is no image"),
        (encoded("PPM", Image.new("RGB", (2, 2))), "JPEG, PNG, WEBP, GIF, BMP"),
        (encoded("EPS", Image.new("RGB", (2, 2))), "cat.png is no image"),
        (png_of(8000, 8000), r"too large \(8000 x 8000\); at most 40 megapixels"),
        (png_of(60000, 60000), "cat.png is too large.*at most 40 megapixels"),
        (png_of(100, 100), "cat.png is damaged"),
        (encoded("JPEG", Image.new("RGB", (64, 64)))[:300], "cat.png is"),
        (b"\x89PNG" + b"\x00" * MAX_BYTES, r"has 20\.0 MiB; at most 20\.0 MiB"),
    ],
)
def test_what_is_refused(data, message) -> None:
    with pytest.raises(ValueError, match=message):
        decode_picture(data, "cat.png")


def test_a_bomb_is_refused_before_it_is_decompressed(monkeypatch) -> None:
    def decompress(*_):
        raise AssertionError("the size stands in the header")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decompress)
    with pytest.raises(ValueError, match="megapixels"):
        decode_picture(png_of(8000, 8000))


def test_a_path_is_opened_and_a_url_only_when_allowed(tmp_path, monkeypatch) -> None:
    Image.new("RGB", (3, 5)).save(tmp_path / "a.png")
    assert open_picture(str(tmp_path / "a.png")).size == (3, 5)
    with pytest.raises(ValueError, match=r"a\.png is a URL; give --allow-urls"):
        open_picture("https://example.org/a.png")
    asked = []
    data = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr("llava.serve.download.fetch", lambda *args: asked.append(args) or data)
    assert open_picture("https://example.org/a.png", allow_urls=True).size == (3, 5)
    assert asked == [("https://example.org/a.png", MAX_BYTES)]
