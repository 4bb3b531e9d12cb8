"""Image preprocessing against an independent numpy computation; prompts split at images."""

from __future__ import annotations

import json
import math
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from llava.mm_utils import (
    KeywordsStoppingCriteria,
    expand2square,
    get_model_name_from_path,
    letterbox_mask,
    load_image,
    load_image_processor,
    process_images,
    tokenizer_image_token,
)
from tests.closeness import FLOAT32, assert_close

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PAD = SimpleNamespace(image_aspect_ratio="pad")
SIZES = [(64, 40), (40, 64), (51, 50), (50, 50), (1, 37), (37, 1), (1, 1), (3, 3), (400, 333)]


def picture(mode: str, size: tuple[int, int]) -> Image.Image:
    """A noisy picture, so that every error in order, rounding or mode shows."""
    noise = np.random.default_rng(7).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(noise, "RGBA")
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def normalised(square: Image.Image) -> np.ndarray:
    """What LLaVA does to a square RGB picture, written without transformers."""
    pixels = np.asarray(square.resize((336, 336), Image.Resampling.BICUBIC))
    scaled = (pixels.astype(np.float64) * (1 / 255)).astype(np.float32)
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    return ((scaled - mean) / std).transpose(2, 0, 1)


def padded(image: Image.Image) -> Image.Image:
    """The picture on its square, written with numpy slices."""
    pixels = np.asarray(image.convert("RGB"))
    height, width, _ = pixels.shape
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = (122, 116, 104)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return Image.fromarray(square, "RGB")


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory):
    return load_image_processor(tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_padded_pixels_are_bit_identical(processor, mode: str, size: tuple[int, int]) -> None:
    image = picture(mode, size)
    pixels = process_images([image], processor, PAD)
    assert pixels.shape == (1, 3, 336, 336)
    assert pixels.dtype == torch.float32
    assert np.array_equal(pixels[0].numpy(), normalised(padded(image)))


def test_images_are_stacked_in_order(processor) -> None:
    images = [picture("RGB", (20, 30)), picture("L", (30, 20))]
    pixels = process_images(images, processor, PAD)
    assert torch.equal(pixels[:1], process_images(images[:1], processor, PAD))
    assert torch.equal(pixels[1:], process_images(images[1:], processor, PAD))


@pytest.mark.parametrize("config", [SimpleNamespace(), SimpleNamespace(image_aspect_ratio=None)])
def test_without_padding_the_centre_is_cropped(processor, config) -> None:
    image = picture("RGB", (672, 336))
    centre = image.crop((168, 0, 504, 336))
    assert np.array_equal(process_images([image], processor, config)[0], normalised(centre))


def test_unknown_aspect_ratio_and_no_images_are_errors(processor) -> None:
    with pytest.raises(ValueError, match="'padd'"):
        process_images(
            [picture("RGB", (9, 9))], processor, SimpleNamespace(image_aspect_ratio="padd")
        )
    with pytest.raises(ValueError, match="at least one"):
        process_images([], processor, PAD)


def test_square_image_is_returned_itself() -> None:
    image = picture("RGB", (5, 5))
    assert expand2square(image, (1, 2, 3)) is image


def write_config(folder: Path, **config: object) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return folder


def test_old_style_preprocessor_config(tmp_path: Path) -> None:
    write_config(
        tmp_path,
        feature_extractor_type="CLIPFeatureExtractor",
        size=56,
        crop_size=42,
        resample=3,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
        do_center_crop=True,
        do_normalize=True,
        do_resize=True,
    )
    processor = load_image_processor(tmp_path)
    image = picture("RGB", (56, 56))
    expected = np.asarray(image.crop((7, 7, 49, 49))).transpose(2, 0, 1) / 255 * 4 - 2
    pixels = process_images([image], processor, SimpleNamespace())
    assert_close(pixels[0], torch.tensor(expected).float(), FLOAT32)


def test_current_preprocessor_config_equals_the_defaults(tmp_path: Path, processor) -> None:
    write_config(
        tmp_path,
        image_processor_type="CLIPImageProcessor",
        size={"shortest_edge": 336},
        crop_size={"height": 336, "width": 336},
        do_pad=True,
        pad_size={"height": 400, "width": 400},
    )
    image = picture("RGB", (64, 40))
    pixels = process_images([image], load_image_processor(tmp_path), PAD)
    assert torch.equal(pixels, process_images([image], processor, PAD))


def test_processor_of_another_family_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path, image_processor_type="SiglipImageProcessor")
    with pytest.raises(ValueError, match="SiglipImageProcessor"):
        load_image_processor(tmp_path)


def test_damaged_preprocessor_config_names_its_path(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=str(path)):
        load_image_processor(tmp_path)


@pytest.mark.parametrize("mode", ["RGB", "P", "L"])
def test_load_image_decodes_to_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "picture.png"
    image = picture(mode, (20, 10))
    image.save(path)
    loaded = load_image(path)
    assert loaded.mode == "RGB"
    assert loaded.tobytes() == image.convert("RGB").tobytes()


def test_load_image_names_the_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "missing.jpg"
    with pytest.raises(FileNotFoundError, match=str(path)):
        load_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "text", "empty"])
def test_load_image_refuses_damaged_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "damaged.img"
    if kind in ("JPEG", "PNG"):
        buffer = BytesIO()
        picture("RGB", (64, 64)).save(buffer, kind)
        path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    else:
        path.write_text("not an image" if kind == "text" else "")
    with pytest.raises(OSError, match=str(path)):
        load_image(path)


def mask_of_pixels(size: tuple[int, int], grid: int) -> np.ndarray:
    """The letterbox rule on a full pixel map, sampled with float32 nearest indices."""
    width, height = size
    side = max(size)
    border = math.ceil(side / grid)
    top, left = (side - height) // 2, (side - width) // 2
    rows, columns = np.mgrid[:side, :side]
    inside = np.ones((side, side), bool)
    if height < side:
        inside &= (rows >= top - border) & (rows < top + height + border)
    if width < side:
        inside &= (columns >= left - border) & (columns < left + width + border)
    scale = np.float32(side) / np.float32(grid)
    index = np.floor(np.arange(grid, dtype=np.float32) * scale).astype(int)
    return ~inside[np.ix_(index, index)].reshape(-1)


@pytest.mark.parametrize(
    "size",
    [(640, 480), (480, 640), (640, 427), (1024, 683), (333, 500), (1, 100), (100, 1), (25, 24)],
    ids=str,
)
@pytest.mark.parametrize("grid", [24, 12, 7])
def test_letterbox_mask_equals_the_pixel_map(size: tuple[int, int], grid: int) -> None:
    mask = letterbox_mask(size, grid)
    assert mask.dtype == torch.bool
    assert np.array_equal(mask.numpy(), mask_of_pixels(size, grid))


def test_letterbox_mask_of_a_common_photo() -> None:
    # Side 640, border 27: pixel rows 53 to 586 are kept. A patch row is sampled at its first
    # pixel row, floor(row * 640 / 24): row 2 at 53 and row 22 at 586, so the ends differ.
    mask = letterbox_mask((640, 480), 24).view(24, 24)
    padding = [row for row in range(24) if mask[row].all()]
    assert padding == [0, 1, 23]
    assert int(mask.sum()) == 3 * 24
    assert torch.equal(letterbox_mask((480, 640), 24).view(24, 24), mask.T)


def test_letterbox_mask_of_a_nearly_square_picture_is_empty() -> None:
    assert not letterbox_mask((500, 500), 24).any()
    assert not letterbox_mask((500, 470), 24).any()
    assert letterbox_mask((500, 500), 24).shape == (576,)


@pytest.mark.parametrize(("size", "grid"), [((0, 5), 24), ((5, 5), 0)])
def test_letterbox_mask_refuses_empty_input(size: tuple[int, int], grid: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        letterbox_mask(size, grid)


class CharacterTokenizer:
    """One id a character; like SentencePiece it begins each text with BOS and a prefix space."""

    bos_token_id: int | None = 1

    def __call__(self, text: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[1, *map(ord, " " + text if text else "")])

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(chr(i) for i in ids if i > 1)


class TokenizerWithoutBos(CharacterTokenizer):
    bos_token_id = None

    def __call__(self, text: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=super().__call__(text).input_ids[1:])


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", [1]),
        ("ab", [1, 32, 97, 98]),
        ("a<image>b", [1, 32, 97, -200, 32, 98]),
        ("<image>b", [1, -200, 32, 98]),
        ("a<image>", [1, 32, 97, -200]),
        ("<image><image>", [1, -200, -200]),
        ("a<image> b", [1, 32, 97, -200, 32, 32, 98]),
    ],
)
def test_one_bos_and_one_placeholder_an_image(prompt: str, expected: list[int]) -> None:
    assert tokenizer_image_token(prompt, CharacterTokenizer()) == expected
    assert tokenizer_image_token(prompt, TokenizerWithoutBos()) == expected[1:]


def test_tokenizer_image_token_as_tensor() -> None:
    ids = tokenizer_image_token("a<image>", CharacterTokenizer(), -7, return_tensors="pt")
    assert ids.dtype == torch.long
    assert ids.tolist() == [1, 32, 97, -7]
    with pytest.raises(ValueError, match="'np'"):
        tokenizer_image_token("a", CharacterTokenizer(), return_tensors="np")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("liuhaotian/llava-v1.5-7b", "llava-v1.5-7b"),
        ("/models/llava-v1.5-7b/", "llava-v1.5-7b"),
        ("runs/my-llava/checkpoint-200", "my-llava_checkpoint-200"),
        ("checkpoint-200", "checkpoint-200"),
    ],
)
def test_model_name_from_path(path: str, name: str) -> None:
    assert get_model_name_from_path(path) == name


def ids_of(*texts: str) -> torch.Tensor:
    return torch.tensor([[ord(c) for c in text] for text in texts])


def test_keywords_stop_each_row_by_itself() -> None:
    prompt = ids_of("end###Q:", "end###R:")
    stop = KeywordsStoppingCriteria(["###"], CharacterTokenizer(), prompt)
    answers = ids_of("ab###", "ab##c")
    for ids in (answers, torch.cat([prompt, answers], dim=1)):
        done = stop(ids, None)
        assert done.dtype == torch.bool
        assert done.tolist() == [True, False]


def test_keyword_in_the_prompt_does_not_stop() -> None:
    prompt = ids_of("Q###")
    stop = KeywordsStoppingCriteria(["###"], CharacterTokenizer(), prompt)
    assert stop(torch.cat([prompt, ids_of("a")], dim=1), None).tolist() == [False]


def test_special_token_as_keyword_is_matched_by_id() -> None:
    class WithEos(CharacterTokenizer):
        def __call__(self, text: str) -> SimpleNamespace:
            return SimpleNamespace(input_ids=[1, 2] if text == "</s>" else [])

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return super().decode([i for i in ids if i != 2], skip_special_tokens)

    stop = KeywordsStoppingCriteria(["</s>"], WithEos(), torch.tensor([[5, 6]]))
    assert stop(torch.tensor([[97, 2], [2, 97]]), None).tolist() == [True, False]


def test_a_keyword_without_ids_is_found_in_the_text() -> None:
    class Silent(CharacterTokenizer):
        def __call__(self, text: str) -> SimpleNamespace:
            return SimpleNamespace(input_ids=[])

    stop = KeywordsStoppingCriteria(["#"], Silent(), torch.tensor([[5]]))
    assert stop(ids_of("ab", "a#"), None).tolist() == [False, True]
    assert stop(torch.empty(1, 0, dtype=torch.long), None).tolist() == [False]


@pytest.mark.parametrize("keywords", [[], [""], ["###", ""]])
def test_empty_keywords_are_refused(keywords: list[str]) -> None:
    with pytest.raises(ValueError, match="keywords"):
        KeywordsStoppingCriteria(keywords, CharacterTokenizer(), ids_of("a"))
