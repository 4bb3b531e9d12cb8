"""DivPrune: keep the T visual tokens that lie farthest apart, chosen before layer 0.

Paper: "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025.
The distance of two tokens is 1 - cos of their embeddings, as they enter the decoder. The choice is
greedy for the largest smallest distance (max-min): it starts with the token whose nearest neighbour
is farthest, i.e. whose second smallest distance is largest (the smallest is its own, 0), and goes
on with the token that is farthest from all chosen so far. Neither text nor attention is looked at.

What is kept goes on in its order in the image. Published settings are shares of the tokens there
are: 0.333, 0.222 and 0.111 of 576 are T = 192, 128 and 64.

Newlines of a tiled picture (LLaVA-1.6) are tokens among others: `newlines` "candidates", as in the
reference. All of a picture are one embedding, so one is chosen early, often, and the others last;
that one changes what comes after it. With "last" they leave before any patch does.

Deviations from the reference code, vbdi/divprune at 799e2d9, which works in the model's precision:
distances are float32; a chosen token is out, where there a distance rounded below 0 can choose it
again (of identical padding patches, say); the smallest distance to the chosen is kept up to date,
which costs N comparisons a step and not T N; ties go to the lower index, those of equal embeddings
(newlines) exactly, see `dpp`. The reference sees the first image of the first sample only.

Several images and the ways of counting T: `entry`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..entry import EntryPruner, ImageTokens
from ..layout import Newlines
from ..registry import register
from .dpp import cosines


@register
@dataclass(frozen=True, kw_only=True)
class DivPrune(EntryPruner):
    """Settings of `EntryPruner`, and `newlines`, see the module."""

    method: ClassVar[str] = "divprune"

    newlines: Newlines = "candidates"

    @property
    def chooses_newlines(self) -> bool:
        return self.newlines == "candidates"

    def choose(self, image: ImageTokens, count: int, embeds: Tensor) -> list[int]:
        return farthest(embeds, count)

    def pairs(self, tokens: int, count: int) -> int:
        """All of them, whatever the count."""
        return tokens * tokens


@torch.no_grad()
def farthest(embeds: Tensor, count: int) -> list[int]:
    """Indices of `count` rows of `embeds` (n, d), 0 <= count <= n, in the order of their choice.

    Waits for the device once, at the end.
    """
    if not count:
        return []
    distance = 1 - cosines(embeds)
    nearest = distance.fill_diagonal_(torch.inf).amin(1)
    # argmax gives the first of equals. From here on a chosen row is farther than none.
    chosen = [nearest.argmax(0, keepdim=True)]
    distance.fill_diagonal_(-torch.inf)
    nearest = distance.index_select(0, chosen[0])[0]
    for _ in range(count - 1):
        pick = nearest.argmax(0, keepdim=True)
        chosen.append(pick)
        nearest = torch.minimum(nearest, distance.index_select(0, pick)[0])
    return torch.cat(chosen).tolist()
