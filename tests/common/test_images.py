"""Pictures before they are pixels: the padded square, grey with more than 8 bits, limits."""

from __future__ import annotations

import io
import logging
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from llava.analysis import views
from llava.common import images
from llava.common.images import check_size, expand2square, note, read, resized_square, to_rgb
from llava.mm_utils import load_image, load_image_processor, process_images

PAD = SimpleNamespace(image_aspect_ratio="pad", mm_token_adapter=None)
CROP = SimpleNamespace(image_aspect_ratio="square")
COLOUR = (122, 116, 104)


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture(scope="module")
def processor():
    return load_image_processor("no such folder")


def stock(image: Image.Image, processor) -> torch.Tensor:
    """LLaVA's way: the whole square, and transformers' processor on it."""
    square = expand2square(image, COLOUR)
    return processor(square, return_tensors="pt", input_data_format="channels_last")["pixel_values"]


SIZES = [
    (1, 1),
    (1, 2),
    (2, 1),
    (3, 7),
    (7, 3),
    (1, 500),
    (500, 1),
    (51, 50),
    (50, 51),
    (335, 336),
    (336, 335),
    (336, 337),
    (337, 336),
    (336, 20),
    (20, 336),
    (640, 427),
    (427, 640),
    (1001, 333),
    (333, 1001),
    (2000, 31),
    (31, 2000),
    (700, 700),
    (5, 5),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("stripe", [images._STRIPE, 1500])
def test_the_square_is_never_there_and_its_bits_are(processor, monkeypatch, size, stripe) -> None:
    """One stripe, and as many as the picture is high or has thousands of pixels."""
    monkeypatch.setattr(images, "_STRIPE", stripe)
    image = noise(size, sum(size))
    assert torch.equal(process_images([image], processor, PAD), stock(image, processor))


@pytest.mark.parametrize("side", [56, 224, 337])
def test_other_sizes_of_the_tower(side) -> None:
    for i in range(12):
        size = tuple(int(n) for n in np.random.default_rng(i).integers(1, 900, 2))
        image = noise(size, i)
        whole = expand2square(image, COLOUR).resize((side, side), Image.Resampling.BICUBIC)
        assert resized_square(image, COLOUR, side).tobytes() == whole.tobytes(), size


def test_a_processor_that_does_not_resize_gets_the_whole_square(processor) -> None:
    plain = load_image_processor("no such folder")
    plain.do_resize = False
    image = noise((500, 400))
    assert torch.equal(process_images([image], plain, PAD), stock(image, plain))
    with pytest.raises(ValueError, match=r"too large \(20000 x 20000\)"):
        process_images([Image.new("RGB", (20_000, 1))], plain, PAD)


def test_a_stretched_picture_takes_little_memory(processor) -> None:
    """Its square at 4 bytes a pixel would be 576 MB. What Pillow allocates is not traced, so its
    pictures are counted."""
    made: list[int] = []
    new = Image.new

    def counted(mode, size, *colour):
        made.append(size[0] * size[1])
        return new(mode, size, *colour)

    image = noise((12_000, 40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "new", counted)
        tracemalloc.start()
        process_images([image], processor, PAD)
        views.seen(image, processor, PAD)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert max(made) <= images._STRIPE and peak < 20_000_000


def test_the_square_that_is_drawn_is_the_square_that_is_seen(processor) -> None:
    image = noise((123, 400))
    seen = torch.from_numpy(np.array(views.seen(image, processor, PAD))).permute(2, 0, 1) / 255
    mean = torch.tensor(processor.image_mean)[:, None, None]
    std = torch.tensor(processor.image_std)[:, None, None]
    pixels = process_images([image], processor, PAD)[0]
    assert torch.equal((pixels * std + mean).mul(255).round(), (seen * 255).round())


def test_a_picture_too_long_to_be_cropped_is_refused(processor) -> None:
    with pytest.raises(ValueError, match=r"9000 x 1 is too long.* it has 1016 megapixels"):
        process_images([Image.new("RGB", (9000, 1))], processor, CROP)
    assert process_images([noise((900, 3))], processor, CROP).shape == (1, 3, 336, 336)


@pytest.mark.parametrize(
    ("size", "most", "ok"),
    [
        ((20_000, 100), images.MAX_PIXELS, True),
        ((2**15, 2**12), images.MAX_PIXELS, True),
        ((2**15, 2**12 + 1), images.MAX_PIXELS, False),
        ((1, 2**15 + 1), images.MAX_PIXELS, False),
        ((7000, 6000), 40_000_000, False),
    ],
)
def test_limits(size, most, ok) -> None:
    if ok:
        return check_size(size, most)
    with pytest.raises(ValueError, match=f"too large .{size[0]} x {size[1]}.; at most"):
        check_size(size, most)


def test_a_header_alone_is_enough_to_refuse(tmp_path, monkeypatch, recwarn) -> None:
    Image.new("1", (33_000, 1)).save(tmp_path / "a.png")
    Image.new("1", (400, 300)).save(tmp_path / "b.png")

    def decompress(*_):
        raise AssertionError("the size stands in the header")

    with monkeypatch.context() as patch:
        patch.setattr("PIL.ImageFile.ImageFile.load", decompress)
        with pytest.raises(OSError, match=r"a\.png: too large \(33000 x 1\).* 32768 pixels a side"):
            load_image(tmp_path / "a.png")
    # Between Pillow's warning and its error our own limit decides, without a word of Pillow's.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    assert load_image(tmp_path / "b.png").size == (400, 300) and not recwarn.list


GREY = np.arange(0, 65_536, 64, dtype=np.uint16).reshape(32, 32)


def saved(values: np.ndarray | Image.Image, kind: str) -> io.BytesIO:
    data = io.BytesIO()
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(data, kind)
    data.seek(0)
    return data


def big_endian() -> Image.Image:
    return Image.frombytes("I;16B", (32, 32), GREY.astype(">u2").tobytes())


@pytest.mark.parametrize(
    ("file", "mode"),
    [
        (lambda: saved(GREY, "PNG"), "I;16"),
        (lambda: saved(GREY, "TIFF"), "I;16"),
        (lambda: saved(big_endian(), "TIFF"), "I;16B"),
        (lambda: saved(GREY.astype(np.int32), "TIFF"), "I"),
        (lambda: io.BytesIO(b"P5 32 32 65535\n" + GREY.astype(">u2").tobytes()), "I"),
    ],
    ids=["png", "tiff", "big-endian", "32-bit", "pgm"],
)
def test_sixteen_bits_become_eight(file, mode) -> None:
    assert Image.open(file()).mode == mode
    image = read(file())
    wanted = np.rint(GREY / 257).astype(np.uint8)
    assert image.mode == "RGB" and wanted.min() == 0 and wanted.max() == 255
    assert np.array_equal(np.asarray(image), np.stack([wanted] * 3, -1))
    assert "16-bit grey is divided by 257" in note(image)


def test_every_level_of_sixteen_bits() -> None:
    every = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    levels = np.asarray(to_rgb(Image.fromarray(every)))[..., 0]
    assert np.array_equal(levels, np.rint(every / 257))
    eight = np.arange(256, dtype=np.uint16)[None]
    assert np.array_equal(np.asarray(to_rgb(Image.fromarray(eight * 257)))[..., 0], eight)


@pytest.mark.parametrize("factor", [1 / 255, 1.0])
def test_floats_up_to_1_or_255(factor) -> None:
    values = np.arange(256, dtype=np.float32)[None]
    image = read(saved(values * np.float32(factor), "TIFF"))
    assert np.array_equal(np.asarray(image)[..., 0], values)
    assert (note(image) is None) == (factor == 1.0)  # then it is what LLaVA sees


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0.0, 5000.0]], np.float32), "float values go from 0 to 5000, .*0 to 1 or 255"),
        (np.array([[-0.5, 0.5]], np.float32), "go from -0.5 to 0.5"),
        (np.array([[0.0, np.nan]], np.float32), "go from nan to nan"),
        (np.array([[0.0, np.inf]], np.float32), "go from 0 to inf"),
        (np.array([[0, 65_536]], np.int32), "32-bit integer .* 65536, .*0 to 255 or 65535"),
        (np.array([[-1, 200]], np.int32), "go from -1 to 200"),
    ],
)
def test_values_without_a_known_scale_are_refused(tmp_path, values, message) -> None:
    with pytest.raises(ValueError, match=message):
        to_rgb(Image.fromarray(values))
    path = tmp_path / "depth.tiff"
    path.write_bytes(saved(values, "TIFF").getvalue())
    with pytest.raises(OSError, match=f"depth.tiff: its .*{message}"):
        load_image(path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_all_other_modes_are_as_in_llava(mode) -> None:
    image = noise((9, 5)).convert(mode)
    if mode == "P":
        image.info["transparency"] = 0
    assert to_rgb(image).tobytes() == image.convert("RGB").tobytes()
    assert note(to_rgb(image)) is None


def test_a_scaling_is_logged_once_a_process(tmp_path, caplog, processor) -> None:
    images._log.cache_clear()
    Image.fromarray(GREY).save(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING):
        first, second = load_image(tmp_path / "a.png"), load_image(tmp_path / "a.png")
        pixels = process_images([first, Image.fromarray(GREY)], processor, PAD)
    assert len(caplog.records) == 1 and "divided by 257" in caplog.text
    assert first.tobytes() == second.tobytes() and torch.equal(pixels[0], pixels[1])
