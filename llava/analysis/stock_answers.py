"""A question to a model that transformers loads by itself: its inputs, and where its tokens are.

Where they are is known of one picture: of square pictures or tiles whose tokens are a square
(LLaVA, PaliGemma, Gemma 3, InternVL, Idefics 3), of grids that the inputs name (Qwen), of rows that
breaks end (Mistral 3), and of LLaVA-1.6's tiles. Elsewhere, and where numbers do not fit, nothing
is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from llava.common import json_files
from llava.common.images import to_rgb
from llava.eval.run.models import load_checkpoint
from llava.hf.families import FAMILIES, demand_fitting, family_of
from llava.hf.prompts import placeholders
from llava.model.reading import resolve
from llava.pruning.base import Pruner

from .stock_subject import load_stock, prepared, prompt_text
from .views import View, tiled


def load_any(args: Any) -> tuple[Any, Any, Any, int]:
    """Tokenizer, model, image processor and context length of a parsed command line; of a stock
    model the processor of all its inputs stands for that of images.

    Raises what loading raises.
    """
    if not is_stock_folder(args.model_path, args.offline):
        return load_checkpoint(args)
    model, processor = load_stock(args, resolve(args.model_path, offline=args.offline))
    context = getattr(model.config.get_text_config(), "max_position_embeddings", 0)
    return processor.tokenizer, model, processor, context


def is_stock_folder(model_path: str, offline: bool = False) -> bool:
    """Whether a checkpoint is one that `llava.hf` knows and this package's own loader does not."""
    try:
        folder = resolve(model_path, offline=offline)
        config = json_files.read(folder / "config.json")
    except (OSError, ValueError):
        return False  # the loader says what is wrong
    return config.get("model_type") in FAMILIES.keys() - {"llava", "llava_next"}


def is_stock(model: Any) -> bool:
    """Whether a model is stock, not this package's own."""
    return not hasattr(model, "get_vision_tower")


def can_run(model: Any, method: type[Pruner]) -> bool:
    """Whether `llava.hf` runs a method on a stock model, if need be with tower_scores=received."""
    return not method().needs_patches or (
        hasattr(method, "tower_scores") and bool(family_of(model).views)
    )


def fits(model: Any, pruner: Pruner) -> bool:
    """Whether `llava.hf` runs a method with its settings on a stock model."""
    try:
        demand_fitting(model, pruner)
    except ValueError:
        return False
    return True


def fitting(pruner: Pruner) -> Pruner:
    """The method with positions as `llava.hf` has them: those of the unpruned sequence."""
    if getattr(pruner, "positions", "original") == "original":
        return pruner
    return replace(pruner, **{"positions": "original"})


def inputs_of(question: str, image: Image.Image, processor: Any, model: Any) -> dict[str, Tensor]:
    """What `model.generate` takes for one question about one picture."""
    return prepared([prompt_text(processor, question)], [[image]], processor, model)


def stock_views(
    image: Image.Image, processor: Any, model: Any, inputs: Mapping[str, Tensor]
) -> tuple[View, ...]:
    """What a stock model sees of the one picture of `inputs`, as far as the module says."""
    config, picture = model.config, to_rgb(image)
    kinds = placeholders(config)
    visual = [token in kinds for token in inputs["input_ids"][0].tolist()]
    count = sum(visual)
    if (grid := inputs.get("image_grid_thw")) is not None:
        merge = config.vision_config.spatial_merge_size
        _, rows, columns = grid[0].tolist()
        return _whole(picture, columns // merge, rows // merge, count)
    if family_of(model).pictures == "last marks":
        rows = sum(now and not before for now, before in zip(visual, [False, *visual]))
        return _whole(picture, count // rows, rows, count)
    if pairs := getattr(config, "image_grid_pinpoints", None):
        tile = config.vision_config.image_size
        side = tile // config.vision_config.patch_size
        both = tiled(picture, tile, side, pairs, "spatial_unpad", "llava-hf")
        newlines = both[1].rows
        return both if sum(len(view.tokens) for view in both) + newlines == count else ()
    return _squares(inputs["pixel_values"].flatten(0, -4), processor, count)


def _whole(picture: Image.Image, columns: int, rows: int, count: int) -> tuple[View, ...]:
    return (View(picture, columns, rows, range(count)),) if columns * rows == count else ()


def _squares(pixels: Tensor, processor: Any, count: int) -> tuple[View, ...]:
    """Pictures or tiles (n, 3, side, side), each of as many tokens."""
    number, _, height, width = pixels.shape
    each, rest = divmod(count, number)
    side = isqrt(each)
    if rest or side * side != each or height != width:
        return ()
    images = processor.image_processor
    mean, std = (torch.tensor(getattr(images, f"image_{name}")) for name in ("mean", "std"))
    shown = pixels.float().cpu() * std[:, None, None] + mean[:, None, None]
    shown = (shown * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    return tuple(
        View(
            Image.fromarray(square.numpy()),
            side,
            side,
            range(i * each, (i + 1) * each),
            title=f"picture {i + 1} of {number}" if number > 1 else "",
        )
        for i, square in enumerate(shown)
    )
