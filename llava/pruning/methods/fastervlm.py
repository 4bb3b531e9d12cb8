"""FasterVLM: the T patches that the vision tower's CLS token attends to most.

Zhang et al., "[CLS] Attention is All You Need for Training-Free Visual Token Pruning", arXiv
2412.01818 v1; reference: github.com/Theia-4869/FasterVLM at f5d5f12 (2025-06-29).

    score_j = mean over heads h of A^h[CLS, j]     A: softmaxed over CLS and patches
    keep the T patches of highest score, in spatial order

A is the attention of the layer whose output LLaVA uses (`attentions[-2]`, layer 22 of 24). Nothing
is merged, and rotary positions are contiguous. Exactly T tokens are in every layer, so the two
ways of counting T, `published` and `strict`, mean the same.

tower_scores "received" is for towers that have no CLS token, as the author advises for VisPruner:
score_j is then the mean over the heads and over all patches i of A[i, j].

Deviations from the reference:
- Only the CLS row of this one layer is computed, in float32, beside any attention backend. The
  reference asks for the attention matrices of all layers in the model's dtype.
- Equal scores keep the lower patch index; the reference's topk leaves that open.
- The choice is made before the projector, so dropped patches are never projected. Each token is
  projected on its own: the kept ones come out the same.
- A T above the number of patches keeps all; the reference fails.
- Several images of a sample divide T, see `tower`. The reference gives T to each, and to each tile
  of LLaVA-1.6: its 128 a tile are 640 here for a picture of an overview and four tiles. There it
  runs with merge type `spatial`, so it knows no newlines, and chooses canvases by `fill`, a setting
  of the loader here (see `llava.anyres`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ..registry import register
from ..tower import TowerPruner, cls_attention, keep_patches, top
from ..vision import Reduced, VisionFeatures


@register
@dataclass(frozen=True, kw_only=True)
class FasterVLM(TowerPruner):
    """Settings of `TowerPruner`, and `tower_scores`, see the module."""

    method: ClassVar[str] = "fastervlm"

    tower_scores: Literal["cls", "received"] = "cls"

    def choose(self, features: VisionFeatures, image: int, count: int) -> Reduced:
        scores = cls_attention(features, image).mean(0)
        chosen = self.chosen(scores, features.patches[image], count)
        return keep_patches(features, image, chosen)

    def chosen(self, scores: Tensor, features: Tensor, count: int) -> Tensor:
        return top(scores, count)
