"""What a checkpoint answers to one prompt with one picture, to compare checkpoints by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import linear

from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model

from . import tiny
from .checkpoints import PROMPT


@dataclass(frozen=True)
class Answer:
    """What a checkpoint answers to PROMPT: greedy tokens and the logits (n, vocabulary)."""

    tokens: list[int]
    logits: Tensor


def check(result: Answer, expected: Answer) -> None:
    """The same tokens, and the same logits to the last bit."""
    assert result.tokens == expected.tokens
    assert torch.equal(result.logits, expected.logits)


def picture() -> Image.Image:
    """Not square, so that padding and cropping it give different pixels."""
    image = Image.new("RGB", (70, 50), (200, 30, 60))
    image.paste((20, 220, 90), (5, 5, 40, 30))
    return image


def inputs(loaded: tuple) -> tuple[Tensor, Tensor]:
    """PROMPT's ids (1, n) and pixels (1, 3, 56, 56), made with what the loader returned."""
    tokenizer, model, processor, _ = loaded
    ids = tokenizer_image_token(PROMPT, tokenizer, return_tensors="pt")
    return ids[None], process_images([picture()], processor, model.config)


def ask(loaded: tuple) -> Answer:
    """Answer PROMPT with what `load_pretrained_model` returned."""
    model = loaded[1]
    ids, pixels = inputs(loaded)
    entering: list[Tensor] = []
    hook = model.lm_head.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    with torch.no_grad():
        model(input_ids=ids, images=pixels, use_cache=False)
        hook.remove()
        tokens = model.generate(ids, images=pixels, do_sample=False, max_new_tokens=12)
    return Answer(tokens[0].tolist(), logits_of(entering[0][0], model.lm_head))


def logits_of(hidden: Tensor, head: nn.Module) -> Tensor:
    """(n, tiny.VOCAB) of what enters the head (n, d).

    Of its first rows alone: with those that llava-hf appends it is another product, and on some
    processors one with other last bits.
    """
    with torch.no_grad():
        return linear(hidden, head.weight[: tiny.VOCAB])


def answer(folder: Path, model_base: Path | None = None, **options: Any) -> Answer:
    """Load in float32 on the CPU, and answer PROMPT."""
    options = {"dtype": "float32", "device": "cpu", **options}
    return ask(load_pretrained_model(folder, model_base, **options))


def refused(folder: Path, *parts: str, error: type = ValueError, **options: Any) -> str:
    """Loading fails with an error that has all `parts` in it; returns its message."""
    with pytest.raises(error) as caught:
        load_pretrained_model(folder, **{"device": "cpu", **options})
    for part in parts:
        assert part in str(caught.value)
    return str(caught.value)
