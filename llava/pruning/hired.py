"""HiRED: the T patches that the vision tower's CLS token attends to most, summed over heads.

Arif et al., "HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution
Vision-Language Models", arXiv 2408.10945, AAAI 2025; reference: github.com/hasanar1f/HiRED at
502d6dd (2024-08-22).

    score_j = sum over heads h of A^h[CLS, j]      A: softmaxed over CLS and patches
    keep the T patches of highest score, in spatial order

A is the attention of the layer whose output LLaVA uses (layer 22 of 24). The reference gives a
rate: T = int(576 * rate), 115 at its benchmarks' rate of 0.2. Exactly T tokens are in every layer,
so the two ways of counting T, `published` and `strict`, mean the same.

This is the path of a single view, LLaVA-1.5's. What sets HiRED apart, a budget shared between the
full view (`alpha`) and the tiles (CLS attention of layer 0), needs LLaVA-1.6's anyres tiles, which
this package does not load yet. On a single view HiRED ranks as FasterVLM does: a sum over heads is
their mean times their number, so only rounding could tell the two apart.

Deviations from the reference:
- Only the CLS row is computed, in float32, beside any attention backend.
- Equal scores keep the lower patch index; the reference leaves that open.
- The choice is made before the projector, the reference's after it. Each token is projected on its
  own: the kept ones come out the same.
- Several images of a sample divide T, see `tower`. The reference applies its rate to each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .tower import TowerPruner, cls_attention, keep_patches, top
from .vision import Reduced, VisionFeatures


@dataclass(frozen=True, kw_only=True)
class HiRED(TowerPruner):
    """Settings of `TowerPruner`."""

    method: ClassVar[str] = "hired"

    def choose(self, features: VisionFeatures, image: int, count: int) -> Reduced:
        scores = cls_attention(features, image).sum(0)
        return keep_patches(features, image, top(scores, count))
