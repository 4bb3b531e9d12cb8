"""The CLIP image processor of a folder: which file describes it, and what size it gives.

Two files may, and they are read in the order of transformers' AutoProcessor: `image_processor` in
processor_config.json, which is all that transformers 5 writes, then preprocessor_config.json. The
processor is always the Pillow-backed one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor

from llava.common import json_files

CLIP_IMAGE_SIZE = 336

#: The two files, the one that decides first.
NESTED_FILE, PLAIN_FILE = "processor_config.json", "preprocessor_config.json"

# Names under which checkpoints of any age describe the same resize, crop and normalisation.
_CLIP_PROCESSORS = (
    "CLIPImageProcessor",
    "CLIPFeatureExtractor",
    "LlavaImageProcessor",
    "LlavaNextImageProcessor",
)
_FLAGS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
_TYPES = {
    **dict.fromkeys(("image_processor_type", "feature_extractor_type"), str),
    **dict.fromkeys(("size", "crop_size"), (int, dict)),
    **dict.fromkeys(("image_mean", "image_std"), list),
    **dict.fromkeys(_FLAGS, bool),
    **{"resample": int, "rescale_factor": float},
}
_MOST_PIXELS = 10_000  # along a side; no tower takes more, and memory is not endless

logger = logging.getLogger(__name__)


def describe_processor(folder: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """The file that describes a folder's image processor, and what it says; None without one.

    Raises:
        ValueError: a file is not JSON, or `image_processor` in it is no object.
    """
    nested, plain = Path(folder) / NESTED_FILE, Path(folder) / PLAIN_FILE
    if nested.is_file():
        values = json_files.check(json_files.read(nested), nested, {}, {"image_processor": dict})
        if values.get("image_processor") is not None:
            return nested, values["image_processor"]
    return (plain, json_files.read(plain)) if plain.is_file() else None


def load_image_processor(folder: str | Path) -> Any:
    """The CLIP image processor of a checkpoint folder; the old style (integer sizes) is read too.

    Original LLaVA checkpoints describe none: then the values of CLIP ViT-L/14 at 336 px hold.

    Raises:
        ValueError: a file is not JSON, or describes a processor that is not CLIP's or cannot work.
    """
    description = describe_processor(folder)
    if description is None:
        side = CLIP_IMAGE_SIZE
        return _class()(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    path, values = description
    processor = _build(path, values)
    plain = path.with_name(PLAIN_FILE)
    if path != plain and plain.is_file():
        pixels, others = (_try(each) for each in (processor, _build(plain, json_files.read(plain))))
        if not torch.equal(pixels, others):
            logger.warning(
                "%s and %s prepare pictures differently: the first is used, as transformers does.",
                path,
                plain.name,
            )
    return processor


def check_image_size(processor: Any, folder: Path, side: int, aspect_ratio: str | None) -> None:
    """Raise ValueError unless pictures come out as the vision tower takes them, side x side pixels.

    folder: where the processor was loaded from.
    aspect_ratio: the config's; of "pad" and "anyres" (tiles as large as the crop) all are squares.
    """
    height, width = _try(processor, square=aspect_ratio in ("pad", "anyres")).shape[-2:]
    if (height, width) == (side, side) and aspect_ratio == "anyres":
        height, width = processor.crop_size["height"], processor.crop_size["width"]
    if (height, width) == (side, side):
        return
    takes = f"{width} x {height} pixels, but the vision tower takes {side} x {side}"
    if description := describe_processor(folder):
        raise ValueError(
            f"{description[0]} prepares pictures of {takes}: put the {PLAIN_FILE} of that tower in "
            "its place, or correct its size and crop_size"
        )
    raise ValueError(
        f"{folder} has no {PLAIN_FILE}, and CLIP's default prepares pictures of {takes}: copy the "
        f"{PLAIN_FILE} of that tower into {folder}"
    )


def _class() -> Any:
    # Where the PIL class exists under its own name, the plain name is the torchvision version.
    if hasattr(transformers, "CLIPImageProcessorPil"):
        return transformers.CLIPImageProcessorPil
    return transformers.CLIPImageProcessor


def _build(path: Path, values: Mapping[str, Any]) -> Any:
    json_files.check(values, path, {}, _TYPES)
    kind = values.get("image_processor_type") or values.get("feature_extractor_type")
    if kind and kind.removesuffix("Fast").removesuffix("Pil") not in _CLIP_PROCESSORS:
        raise ValueError(
            f"{path}: expected one of {', '.join(_CLIP_PROCESSORS)}, got {kind}; LLaVA sees "
            "through CLIP, take this file from the checkpoint's vision tower"
        )
    for name in ("size", "crop_size"):
        sides = values.get(name)
        for side in sides.values() if isinstance(sides, dict) else [sides]:
            whole = json_files.is_one_of(side, int) and 0 < side <= _MOST_PIXELS
            if side is not None and not whole:
                raise ValueError(
                    f"{path}: {name} must be in pixels, from 1 to {_MOST_PIXELS}, got "
                    f"{json_files.shorten(sides)}"
                )
    for name in ("image_mean", "image_std"):
        numbers = values.get(name)
        if numbers is not None and not _three(numbers, above=0 if name == "image_std" else -inf):
            raise ValueError(
                f"{path}: {name} must be three numbers, for red, green and blue"
                f"{', above 0' if name == 'image_std' else ''}, got {json_files.shorten(numbers)}"
            )
    try:
        # Padding, if any, is decided by the model's config (see `mm_utils.process_images`).
        processor = _class().from_dict({**values, "do_pad": False})
        _try(processor)
    except Exception as error:  # whatever the library meets
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} describes no working image processor: {reason}") from error
    return processor


def _three(numbers: list[Any], above: float) -> bool:
    numeric = all(json_files.is_one_of(each, float) and above < each < inf for each in numbers)
    return numeric and len(numbers) == 3


def _try(processor: Any, square: bool = True) -> Tensor:
    """Pixels (1, 3, h, w) of a picture with more than one colour."""
    picture = Image.linear_gradient("L").convert("RGB")
    if not square:
        picture = picture.crop((0, 0, picture.width, picture.height // 2))
    result = processor(picture, return_tensors="pt", input_data_format="channels_last")
    return result["pixel_values"]
