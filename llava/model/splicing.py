"""Prompts whose pictures are put in place of their placeholders: pieces, layout, embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from ..pruning.layout import Segment, TokenLayout
from .encoding import execution_device
from .tiles import EncodedImage


@dataclass(frozen=True)
class EmbeddedPrompt:
    """embeds (batch, n, d), left-padded; the layout of its tokens; labels (batch, n) or None."""

    embeds: Tensor
    layout: TokenLayout
    labels: Tensor | None = None


@dataclass(frozen=True)
class SplicedPrompt:
    """One prompt, piece by piece.

    pieces: ids (m,) of a text, embeddings (p, d) of a picture; labels: (n,), or None.
    """

    segments: list[Segment]
    pieces: list[Tensor]
    labels: Tensor | None


def unpadded(ids: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Rows of (batch, n) on the CPU without their padding, which may be on either side."""
    ids = ids.to("cpu")
    if mask is None:
        return list(ids)
    return [row[kept] for row, kept in zip(ids, mask.to("cpu").bool())]


def count_images(rows: Sequence[Tensor], images: int) -> list[int]:
    """Placeholders of each prompt. Raises ValueError unless they are as many as the images."""
    counts = [int((row == IMAGE_TOKEN_INDEX).sum()) for row in rows]
    if sum(counts) != images:
        raise ValueError(
            f"the prompts have {sum(counts)} image placeholders, but {images} images came"
        )
    return counts


def splice(ids: Tensor, images: Sequence[EncodedImage], labels: Tensor | None) -> SplicedPrompt:
    """Put each image in place of its placeholder. ids, labels: (n,); the images get no labels."""
    segments, pieces, targets = [], [], []
    slots = (ids == IMAGE_TOKEN_INDEX).nonzero()[:, 0].tolist()
    for number, (start, end) in enumerate(zip([-1, *slots], [*slots, len(ids)])):
        if number > 0:
            image = images[number - 1]
            segments.append(image.segment(number - 1))
            pieces.append(image.embeds)
            targets.append(torch.full((len(image.embeds),), IGNORE_INDEX))
        text = slice(start + 1, end)
        if len(ids[text]):
            segments.append(Segment(len(ids[text])))
            pieces.append(ids[text])
            if labels is not None:
                targets.append(labels[text])
    return SplicedPrompt(segments, pieces, None if labels is None else torch.cat(targets))


def embed_samples(
    samples: Sequence[SplicedPrompt], layout: TokenLayout, table: nn.Module
) -> EmbeddedPrompt:
    """Embed the texts of some samples with `table` and left-pad all to the length of the layout."""
    device = execution_device(table)

    def embedded(piece: Tensor) -> Tensor:
        piece = piece.to(device)
        return piece if piece.is_floating_point() else table(piece)

    rows = [torch.cat([embedded(piece) for piece in sample.pieces]) for sample in samples]
    embeds = torch.stack([_left_pad(row, layout.n, 0) for row in rows])
    labels = None
    if all(sample.labels is not None for sample in samples):
        labels = [_left_pad(sample.labels, layout.n, IGNORE_INDEX) for sample in samples]
        labels = torch.stack(labels).to(device)
    return EmbeddedPrompt(embeds, layout, labels)


def _left_pad(tensor: Tensor, length: int, value: int) -> Tensor:
    missing = length - len(tensor)
    if not missing:
        return tensor
    shape = (missing, *tensor.shape[1:])
    return torch.cat([tensor.new_full(shape, value), tensor])
