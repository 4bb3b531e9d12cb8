"""Images and prompts on their way into LLaVA: decode, pad, normalise, tokenise around images.

Pixels are bit-identical to LLaVA's: RGB first, padding to a square in the colour int(255 * mean),
then CLIP's preprocessing with Pillow's bicubic filter (torch's differs by one grey level in about
0.5 % of the values). Deviation from haotian-liu/LLaVA 1.2.2: images are always converted to RGB
*before* padding; two of its programs pad in the image's own mode, which destroys palette pictures
and fails on grey ones.

Sources: haotian-liu/LLaVA 1.2.2 (behaviour); AutoLab-SAI-SJTU/AutoPrune (letterbox rule).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from llava.anyres import read_pinpoints, select_best_resolution, views
from llava.common.image_processor import CLIP_IMAGE_SIZE, load_image_processor
from llava.common.images import (
    MAX_PIXELS,
    check_size,
    expand2square,
    load_image,
    noted,
    resized_square,
    to_rgb,
)
from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import image_prompt, without_image_tokens
from llava.pruning.checks import PromptError

__all__ = [
    "CLIP_IMAGE_SIZE",
    "KeywordsStoppingCriteria",
    "ask",
    "expand2square",
    "get_model_name_from_path",
    "letterbox_mask",
    "load_image",
    "load_image_from_base64",
    "load_image_processor",
    "process_images",
    "tokenizer_image_token",
]


def process_images(
    images: Sequence[Image.Image], image_processor: Any, model_cfg: Any
) -> Tensor | list[Tensor]:
    """Turn pictures of any mode and size into the pixels a LLaVA checkpoint was trained on.

    Args:
        images: PIL images, at least one.
        image_processor: a CLIP image processor, see `load_image_processor`.
        model_cfg: its `image_aspect_ratio` decides: `pad` pads to a square; `anyres` tiles, see
            `llava.anyres`, with its `image_grid_pinpoints`; `square`, None or no such attribute
            resizes the short side and crops the centre, losing the ends.

    Returns:
        float32 tensor (n, 3, h, w). With `anyres` (n, views, 3, h, w), or a list of n tensors
        (views, 3, h, w) where pictures differ in the number of views.

    Raises:
        ValueError: no image, one that takes too much memory or that `to_rgb` refuses, or an
            `image_aspect_ratio` unknown to LLaVA-1.5 and 1.6.
    """
    if len(images) == 0:
        raise ValueError("process_images needs at least one image, got an empty list")
    pictures = [image if image.mode == "RGB" else noted(to_rgb(image)) for image in images]
    aspect_ratio = getattr(model_cfg, "image_aspect_ratio", None)
    if aspect_ratio == "anyres":
        return _anyres(pictures, image_processor, model_cfg)
    if aspect_ratio == "pad":
        background = tuple(int(mean * 255) for mean in image_processor.image_mean)
        pictures = [_padded(picture, background, image_processor) for picture in pictures]
    elif aspect_ratio in (None, "square"):
        for picture in pictures:
            _demand_cropped_size(picture.size, image_processor)
    else:
        raise ValueError(
            f"expected image_aspect_ratio 'pad', 'anyres', 'square' or None, got "
            f"{aspect_ratio!r}: correct it in the checkpoint's config.json"
        )
    return _clip(pictures, image_processor)


def _padded(picture: Image.Image, background: tuple[int, ...], image_processor: Any) -> Image.Image:
    """The padded square, already at the size to which the processor would bring it."""
    side = image_processor.size.get("shortest_edge")
    if not image_processor.do_resize or side is None:
        check_size((max(picture.size),) * 2)
        return expand2square(picture, background)
    return resized_square(picture, background, side, image_processor.resample)


def _demand_cropped_size(size: tuple[int, int], image_processor: Any) -> None:
    """Raise ValueError for a stretched picture, huge once its short side has the tower's size."""
    side = image_processor.size.get("shortest_edge")
    if image_processor.do_resize and side is not None:
        longer = side * max(size) / min(size)
        if side * longer > MAX_PIXELS:
            raise ValueError(
                f"{size[0]} x {size[1]} is too long: with its short side at {side} pixels it has "
                f"{side * longer / 1e6:.0f} megapixels, and at most {MAX_PIXELS // 10**6} are taken"
            )


def _clip(pictures: list[Image.Image], image_processor: Any) -> Tensor:
    # Said outright, because some releases take a picture three pixels high for channels-first.
    pixels = image_processor(pictures, return_tensors="pt", input_data_format="channels_last")
    return pixels["pixel_values"]


def _anyres(
    pictures: list[Image.Image], image_processor: Any, model_cfg: Any
) -> Tensor | list[Tensor]:
    tile = image_processor.crop_size["height"]
    pinpoints = read_pinpoints(
        getattr(model_cfg, "image_grid_pinpoints", None), tile, "config.json"
    )
    reading = getattr(model_cfg, "anyres_reading", "llava")
    tensors = []
    for picture in pictures:
        canvas = select_best_resolution(picture.size, pinpoints, reading)
        tensors.append(_clip(views(picture, canvas, tile), image_processor))
    return torch.stack(tensors) if len({len(pixels) for pixels in tensors}) == 1 else tensors


def letterbox_mask(image_size: tuple[int, int], grid: int) -> Tensor:
    """Which patches of a picture padded to a square show padding only.

    The picture's box in the padded square, at pixel resolution, is grown by
    int((side + grid - 1) / grid) pixels (one patch) at both ends of its short axis, so a patch at
    the edge of the picture never counts as padding; the result is sampled at grid x grid places
    by torch's nearest rule.

    Args:
        image_size: (width, height) of the picture in pixels, before padding.
        grid: patches a side; 24 for CLIP ViT-L/14 at 336 px.

    Returns:
        bool tensor (grid * grid,), row-major, True on padding; all False for a square picture.

    Raises:
        ValueError: a size or grid below 1.

    Source: the AutoPrune release, whose constants 23 and 24 are `grid - 1` and `grid`.
    """
    width, height = image_size
    if min(width, height, grid) < 1:
        raise ValueError(
            f"expected a positive (width, height) and grid, got {image_size} and {grid}"
        )
    side, short = max(width, height), min(width, height)
    if side == short:
        return torch.zeros(grid * grid, dtype=torch.bool)
    border = int((side + grid - 1) / grid)
    padding = torch.ones(1, 1, side)
    padding[..., max((side - short) // 2 - border, 0) : (side + short) // 2 + border] = 0
    # interpolate() rather than integer arithmetic: it computes the source index in float32.
    line = F.interpolate(padding, size=grid, mode="nearest")[0, 0].bool()
    mask = line[:, None] if width > height else line[None, :]
    return mask.expand(grid, grid).reshape(-1)


def tokenizer_image_token(
    prompt: str,
    tokenizer: Any,
    image_token_index: int = IMAGE_TOKEN_INDEX,
    return_tensors: str | None = None,
) -> list[int] | Tensor:
    """Token ids of a prompt, with one placeholder for each literal `<image>` in it.

    The text between the images is tokenised chunk by chunk, as in training: each chunk gets
    SentencePiece's prefix space of its own, and only the first keeps its BOS. A tokenizer that
    encodes whole prompts, placeholders and all (`HfTokenizer`), does so.

    Returns:
        list of ids, or a long tensor (n,) for `return_tensors="pt"`.

    Raises:
        PromptError: half of a surrogate pair, as JSON's "\\ud800" gives, which no tokenizer takes.
        ValueError: any other `return_tensors`.

    Source: haotian-liu/LLaVA 1.2.2 (behaviour).
    """
    if return_tensors not in (None, "pt"):
        raise ValueError(f"return_tensors must be None or 'pt', got {return_tensors!r}")
    demand_characters(prompt)
    if hasattr(tokenizer, "encode_prompt"):
        ids = [image_token_index if i == IMAGE_TOKEN_INDEX else i
               for i in tokenizer.encode_prompt(prompt)]  # fmt: skip
        return ids if return_tensors is None else torch.tensor(ids, dtype=torch.long)
    chunks = [list(tokenizer(chunk).input_ids) for chunk in prompt.split(DEFAULT_IMAGE_TOKEN)]
    ids = chunks[0]
    bos = 1 if ids and ids[0] == tokenizer.bos_token_id else 0
    for chunk in chunks[1:]:
        ids = [*ids, image_token_index, *chunk[bos:]]
    return ids if return_tensors is None else torch.tensor(ids, dtype=torch.long)


def demand_characters(text: str) -> None:
    """Raise PromptError for a text with half of a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = ascii(text[max(error.start - 10, 0) : error.end + 10])
        raise PromptError(
            f"the text has half of a surrogate pair, U+{ord(text[error.start]):04X}, in {shown}; "
            "that is no character: correct the text"
        ) from None


def ask(
    question: str,
    images: Sequence[Image.Image],
    tokenizer: Any,
    image_processor: Any,
    model: Any,
    conv_mode: str = "vicuna_v1",
    placed: bool = False,
) -> dict[str, Any]:
    """Keyword arguments for `model.generate` that put one question about some images.

    placed: whether each `<image>` in the question is the place of one; else they go in front of it,
        and a literal `<image>`, which would be taken for one more, is removed.

    Raises:
        ValueError: no such conversation template, or what `process_images` and
            `tokenizer_image_token` refuse.
    """
    text, in_front = (question, 0) if placed else (without_image_tokens(question), len(images))
    prompt = image_prompt(text, in_front, conv_mode, model.config)
    ids = tokenizer_image_token(prompt, tokenizer, return_tensors="pt")
    inputs: dict[str, Any] = {"inputs": ids[None].to(model.device)}
    if images:
        pixels = process_images(images, image_processor, model.config)
        there = {"device": model.device, "dtype": model.dtype}
        tiled = isinstance(pixels, list)
        inputs["images"] = [tiles.to(**there) for tiles in pixels] if tiled else pixels.to(**there)
        inputs["image_sizes"] = [image.size for image in images]
    return inputs


def get_model_name_from_path(model_path: str) -> str:
    """Last component of a path; `checkpoint-N` folders are prefixed with their parent's name."""
    *parents, name = model_path.strip("/").split("/")
    if name.startswith("checkpoint-") and parents:
        return f"{parents[-1]}_{name}"
    return name


def load_image_from_base64(image: str | bytes) -> Image.Image:
    """A picture from base64, as it is; LLaVA's programs import it.

    Raises:
        ValueError, OSError: not base64, or not an image.
    """
    return Image.open(BytesIO(base64.b64decode(image)))


def stopping_at(
    texts: str | Sequence[str], tokenizer: Any, others: Sequence[StoppingCriteria] | None
) -> StoppingCriteriaList:
    """Criteria that end a sequence once its new text holds one of some, besides `others`.

    transformers' own `stop_strings` takes special tokens for text, and misses characters that are
    spelled in bytes.

    Raises:
        ValueError: no tokenizer, or an empty text.
    """
    if tokenizer is None:
        raise ValueError("stop_strings need the model's tokenizer: give generate a tokenizer too")
    texts = [texts] if isinstance(texts, str) else texts
    nothing_yet = torch.empty(1, 0, dtype=torch.long)
    stop = KeywordsStoppingCriteria(texts, tokenizer, nothing_yet)
    return StoppingCriteriaList([*(others or ()), stop])


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stops each sequence of a batch once it has produced one of some keywords.

    Deviations from haotian-liu/LLaVA 1.2.2: the answer is one bool a sequence, as current
    transformers expects; a keyword is found however the model happened to tokenise it; the
    prompt is skipped when `generate` passes it along, and its absence is recognised.
    """

    def __init__(self, keywords: Sequence[str], tokenizer: Any, input_ids: Tensor) -> None:
        """Args:
        keywords: strings to stop at; a special token such as `</s>` is matched by its id.
        tokenizer: encodes the keywords and decodes the answers.
        input_ids: (batch, n) prompt ids, as given to `generate`.

        Raises:
            ValueError: no keyword, or an empty one, which every answer would contain.
        """
        if not keywords or "" in keywords:
            raise ValueError(f"expected non-empty keywords to stop at, got {list(keywords)}")
        self.keywords = list(keywords)
        self.tokenizer = tokenizer
        self.special = set(getattr(tokenizer, "all_special_ids", ()))
        self.prompt = input_ids[0].tolist()
        self.keyword_ids = []
        for keyword in self.keywords:
            ids = list(tokenizer(keyword).input_ids)
            self.keyword_ids.append(ids[1:] if ids[:1] == [tokenizer.bos_token_id] else ids)
        # A token is at least a byte of text, apart from special ones and the first's prefix space.
        self.window = 1 + max(len(keyword.encode()) for keyword in self.keywords)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Bool tensor (batch,): True where a sequence of `input_ids` (batch, n) is finished."""
        rows = input_ids.tolist()
        start = len(self.prompt)
        if rows[0][:start] == self.prompt:
            rows = [row[start:] for row in rows]
        done = [self._ends(row) for row in rows]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)

    def _ends(self, ids: list[int]) -> bool:
        if any(keyword and ids[-len(keyword) :] == keyword for keyword in self.keyword_ids):
            return True
        ids = [i for i in ids if i not in self.special]
        tail = self.tokenizer.decode(ids[-self.window :], skip_special_tokens=True)
        return any(keyword in tail for keyword in self.keywords)
