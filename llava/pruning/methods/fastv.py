"""FastV: one cut early in the decoder, by the attention that tokens get from the last one.

Paper: "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024 (oral), arXiv 2403.06764. Reference
implementation: pkunlp-icler/FastV at d165972. After K layers the visual tokens with the highest
score stay, in every later layer:

    s_i = mean over heads of A^(K-1)[h, last, i],        K = 2 (layers counted from 0)

A is softmaxed over all keys, in float32 here, and not renormalised over the image.

Paper and code differ: the paper describes the attention received from all tokens, the code takes
the row of the prompt's last token (its issue 14). `query` is "last" (code) or "all": the mean over
all query rows. Tokens before i cannot see it, so early tokens win under "all".

What T means has three families, all of which circulate under the name FastV:
- `published_count` "kept" (the default): T tokens are kept, as in the official runs. The ratio R of
  the paper is T = N (1 - R). 192/128/64 of 576 process 216/156/96 tokens a layer.
- "leaving": tokens *leaving* a layer are T on average, as in the table of SparseVLM that later
  papers copied: the smallest number kept that is enough, 180/114/48. That table was made with
  query="all" (Gumpest/SparseVLMs at 14cb5a9), and its accuracies are far below official FastV.
- budget_mode "strict": tokens entering a layer are T on average, 166/98/30, whichever of the other
  two is set. One cut cannot spend single tokens: the total is within (L - K) / 2 tokens of L T.

Deviations: the reference has five variants that disagree with each other. This is the one that
drops tokens in the prefill and keeps a KV cache, where the kept set stays as it is while tokens
are generated (its variant without a cache ranks again for every new token). The repository's K = 0,
a random subset, is the method `random`. Layer K-1 runs once (in one variant twice, its issue 46).
The image is found, not assumed at a fixed position. The reference has no tiled pictures; those who
ran it on LLaVA-1.6 gave it the whole block, so `newlines` are "candidates" (see `staged`). Equal
scores go to the lower index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ..base import Observation
from ..checks import demand_count
from ..cost import DecoderShape
from ..indicators import text_relevance
from ..layout import TokenLayout
from ..registry import register
from ..solver import up
from ..staged import Cut, StagedPruner, StagedRun, Stages, fit_single


@register
@dataclass(frozen=True, kw_only=True)
class FastV(StagedPruner):
    """Settings of FastV; see the module for `query` and `published_count`.

    depth: K, the layers that run with every token.
    positions: rotary positions "original" (reference) or "compact".

    Raises ValueError on values that make no sense.
    """

    method: ClassVar[str] = "fastv"
    depths: ClassVar[tuple[str, ...]] = ("depth",)

    depth: int = 2
    query: Literal["last", "all"] = "last"
    published_count: Literal["kept", "leaving"] = "kept"
    positions: Literal["original", "compact"] = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        demand_count(self, "depth", 1)

    @property
    def cut_depths(self) -> tuple[int, ...]:
        return (self.depth,)

    def cuts(self, n_visual: int, shape: DecoderShape) -> tuple[Cut, ...]:
        target, layers = int(self.target_token_num), shape.layers
        if target >= n_visual:
            return ()
        keep = target
        if self.strict:
            keep = fit_single(n_visual, layers, self.depth, target)
        elif self.published_count == "leaving":
            keep = fit_single(n_visual, layers, self.depth, target, "leaving", up)
        return Stages(n_visual, layers, (self.depth,)).cuts([keep])

    def start(self, layout: TokenLayout, shape: DecoderShape) -> FastVRun:
        return FastVRun(self, layout, shape, self.positions)


class FastVRun(StagedRun):
    """One prefill."""

    config: FastV

    def rows_at_cut(self, layout: TokenLayout) -> int:
        return 1 if self.config.query == "last" else layout.n

    def flops_at_cut(self, layout: TokenLayout, sample: int) -> int:
        """The rows before the text behind the image, which the trace does not count as measured."""
        if self.config.query == "last":
            return 0
        shape, length = self.shape, layout.lengths[sample]
        width = shape.heads * shape.head_dim
        return 2 * (length - layout.tail[sample]) * width * (shape.hidden + length)

    def scores(self, observation: Observation, keep: Sequence[int]) -> Tensor:
        rows = observation.rows
        assert rows is not None, "asked for at a cut"
        if self.config.query == "last":
            return rows[:, :, -1].mean(1)
        return text_relevance(rows, observation.layout.valid)
