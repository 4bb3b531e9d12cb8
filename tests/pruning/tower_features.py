"""Features of the vision tower with attention of the CLS token that is easy to work out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llava.pruning.vision import Probe, VisionFeatures

LAYERS = 3


def features(*images: Sequence[Sequence[float]], patches: Tensor | None = None) -> VisionFeatures:
    """Each image is, per head, the weights of CLS and of its patches; attention is each weight over
    the sum of its head. `patches` (images, p, d) are random unless given."""
    weights = torch.tensor(images)
    count, heads, tokens = weights.shape
    # One number a head, so that nothing is scaled: exp(1 * log(weight)).
    probe = Probe(torch.ones(count, heads, 1), weights.log()[..., None])
    if patches is None:
        patches = torch.randn(count, tokens - 1, 6, generator=torch.Generator().manual_seed(0))
    return VisionFeatures(
        patches, torch.zeros(count, patches.shape[2]), LAYERS, {LAYERS - 1: probe}
    )


def ranked(order: Sequence[int], patches: Tensor | None = None) -> VisionFeatures:
    """One image and one head whose attention falls in the order of these patches."""
    weights = [0.0] * len(order)
    for rank, patch in enumerate(order):
        weights[patch] = float(len(order) - rank)
    return features([[1.0, *weights]], patches=None if patches is None else patches[None])
