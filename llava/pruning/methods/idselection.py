"""ID-Selection: the most important token first, and every choice weakens what resembles it.

Huang et al., "ID-Selection: Importance-Diversity Based Visual Token Selection for Efficient LVLM
Inference", arXiv 2604.05601, equations 7 to 9. With S_j the importance of token j, scaled to [0, 1]
over the image, and v_j its projected feature, a step picks the token i of highest score, and

    d_ij = 1 - cos(v_i, v_j),    w_ij = exp(-gamma d_ij^2),    S_j <- max(S_j - w_ij S_i, 0)

until T are chosen. gamma is 20 in all of the authors' experiments.

No official code was found. The equations are those of two independent re-implementations, which
agree with each other and with the abstract. What the paper as far as it could be read leaves open:
- Importance. It names visual saliency, attention between text and picture, and a union of both; the
  second is its choice for a tower without a CLS token. Here it is the CLS attention of the last
  layer of the tower that ran, mean over heads: no layer of the decoder runs before the choice.
- Whether S is scaled to [0, 1], and what becomes of a score below 0: a negative S_i would raise
  what resembles it. Of tokens whose score is 0 the more important stays, then the lower index.

Scores are float32 or better; what is kept stays in order. Several images and the ways of counting
T: `entry`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import demand
from ..entry import EntryPruner, ImageTokens
from ..registry import register
from ..selection import precise
from .dpp import cosines


@register
@dataclass(frozen=True, kw_only=True)
class IDSelection(EntryPruner):
    """Settings of `EntryPruner`, and `gamma`, how fast the suppression fades with the distance.

    Raises ValueError on values that make no sense.
    """

    method: ClassVar[str] = "id-selection"
    needs_grid: ClassVar[bool] = True

    gamma: float = 20.0

    @property
    def needs_cls(self) -> bool:
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        demand(self, "gamma", self.gamma >= 0, "0 or more")

    def choose(self, image: ImageTokens, count: int, embeds: Tensor) -> list[int]:
        assert image.scores is not None, "the tower was asked for it"
        return suppressed(precise(image.scores), embeds, count, self.gamma)

    def pairs(self, tokens: int, count: int) -> int:
        """All of them, whatever the count."""
        return tokens * tokens


@torch.no_grad()
def suppressed(importance: Tensor, embeds: Tensor, count: int, gamma: float) -> list[int]:
    """Indices of `count` tokens by importance (n,) and features (n, d), 0 <= count <= n, in the
    order of their choice. Waits for the device once, at the end."""
    # In this order the first of equal scores, which argmax gives, is the more important.
    order = importance.argsort(descending=True, stable=True)
    scores = importance[order] - importance.amin()
    scores = scores / scores.amax().clamp(min=torch.finfo(scores.dtype).tiny)
    resemble = torch.exp(-gamma * (1 - cosines(embeds[order])).clamp(min=0).square())
    chosen = []
    for _ in range(count):
        pick = scores.argmax(0, keepdim=True)
        chosen.append(pick)
        weights = resemble.index_select(0, pick)[0]
        scores = (scores - weights * scores.index_select(0, pick)).clamp(min=0)
        # A chosen one ranks below every other, whatever comes.
        scores = scores.index_fill(0, torch.cat(chosen), -torch.inf)
    indices: list[int] = order[torch.cat(chosen)].tolist() if chosen else []
    return indices
