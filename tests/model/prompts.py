"""Prompts that the tests of this folder share, and the way they are answered."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from llava import pruning
from llava.constants import IMAGE_TOKEN_INDEX
from tests import tiny

#: Prompts (n,) with 1, 2, 0 and 1 images and different lengths of text.
SAMPLES = [
    tiny.prompt(1, before=2, after=5),
    tiny.prompt(2, before=6, after=9, images=2),
    tiny.prompt(3, before=3, after=4, images=0),
    tiny.prompt(4, before=9, after=14),
]


def images_of(ids: Tensor) -> int:
    """How many images a prompt has."""
    return int((ids == IMAGE_TOKEN_INDEX).sum())


def text_of(ids: Tensor) -> Tensor:
    """A prompt without its images."""
    return ids[ids != IMAGE_TOKEN_INDEX]


def own_images(samples: list[Tensor]) -> Iterator[slice]:
    """Which of the batch's images are each sample's."""
    first = 0
    for ids in samples:
        yield slice(first, first + images_of(ids))
        first += images_of(ids)


def generate(
    model,
    ids: Tensor,
    mask: Tensor | None = None,
    images: Tensor | None = None,
    pruner: pruning.Pruner | None = None,
    new: int = 4,
    **options,
):
    """What `generate` returns for `new` tokens, greedy unless told, and its logits
    (batch, new, vocabulary)."""
    out = model.generate(
        ids,
        images=images if images is not None and len(images) else None,
        attention_mask=mask,
        pruner=pruner,
        max_new_tokens=new,
        return_dict_in_generate=True,
        output_logits=True,
        **{"do_sample": False, **options},
    )
    return out, torch.stack(out.logits, 1)


def one(model, pruner: pruning.Pruner | None, **options):
    """The first prompt, with its one image, alone."""
    return generate(model, SAMPLES[0][None], None, tiny.pixels(8), pruner, **options)
