"""VScan: local and global CLS attention choose in the tower, the last token in mid-decoder.

Paper: VScan, TMLR 2026. Reference implementation: Tencent/SelfEvolvingAgent at a82450e, its VScan
folder.

Stage 1 keeps T1 visual tokens. CLS attention is averaged over heads.
    local:  the grid of patches is cut into `windows` x `windows` (4 x 4, of 6 x 6 patches in
            LLaVA-1.5); of each the floor((T1 / 2) / 16) best by the attention of an early layer
    global: of the others the best by the attention of the last layer that ran, up to T1
    merge:  behind the projector, each dropped token joins the kept token of its image with the
            highest cosine: kept <- mean of the kept and all that join it
Stage 2 drops before layer `layer` of the decoder to T2, by the attention of the last token of the
prompt in that layer (mean over heads). The reference's script has 96 -> 32 before layer 16 of 32
for T = 64.

Budget: VScan counts tokens entering a layer, so both modes are the same, and with K = `layer` of L
    K T1 + (L - K) T2 = L T
holds exactly. T1 is what comes nearest to first_ratio x T such that T2 is whole: T1 = T + j (L - K)
/ g and T2 = T - j K / g for a whole j, g = gcd(K, L - K). Half-way through the decoder T1 = 1.5 T
and T2 = T / 2: 96 -> 32, 192 -> 64, 288 -> 96. T1 never exceeds the sample's visual tokens (T2 is
larger then) and T2 is at least 1, so every whole T from 1 is reached; where a decoder's depths have
no such split of a small T, T1 = T2 = T. A sample with no more than T visual tokens keeps all.

`local_layer` is an index in a tower of which 23 layers run and moves in proportion in others.

Deviations from the reference: where T1 / 2 is no multiple of the windows it comes out short of T1,
here the global part takes the rest; a window that is not a whole number of patches is rounded
(window of row y in a grid of g: floor(4 y / g)); similarities and means are in float32, and a
similarity is one matrix product per image, not a broadcast; ties go to the lower index. Several
images divide T1 evenly, a rest goes to the first ones, and compete for T2. LLaVA-NeXT's tiles are
not covered.
Fields: `merge` off drops without merging; `positions` as AutoPrune has them (the reference:
compact).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd, isqrt
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import Observation, PrunerRun
from ..budget import Budgeted
from ..checks import demand, demand_later_layers, demand_text_behind
from ..cost import DecoderShape
from ..entry import find_images
from ..images import divide, share_out
from ..layout import TokenLayout
from ..registry import register
from ..selection import Merge, Selection, precise, right_aligned
from ..selectors import keep_top
from ..vision import Groups, Reduced, VisionFeatures

# Layers that run of the tower that `local_layer` is given for: CLIP ViT-L, feature -2.
_RAN = 23


@register
@dataclass(frozen=True, kw_only=True)
class VScan(Budgeted):
    """Settings; `target_token_num` is the average of tokens entering a layer. See the module.

    first_ratio: T1 / T. layer: of the decoder, before which stage 2 drops. local_layer: of the
    tower. windows: along one side of the image.

    Raises ValueError on values that make no sense.
    """

    method: ClassVar[str] = "vscan"
    depths: ClassVar[tuple[str, ...]] = ("layer",)

    first_ratio: float = 1.5
    layer: int = 16
    local_layer: int = 5
    windows: int = 4
    merge: bool = True
    positions: Literal["compact", "original"] = "compact"

    def __post_init__(self) -> None:
        super().__post_init__()
        demand(self, "first_ratio", self.first_ratio >= 1, "1 or more")
        demand(self, "layer", self.layer >= 1, "1 or more (tokens are dropped before it)")
        demand(self, "local_layer", 0 <= self.local_layer < _RAN, f"from 0 to {_RAN - 1}")
        demand(self, "windows", self.windows >= 1, "1 or more")

    def tower_layers(self, ran: int) -> tuple[int, ...]:
        """The layer of the local attention, and the last that ran."""
        return (self._local(ran), ran - 1)

    def _local(self, ran: int) -> int:
        return min(round(self.local_layer * ran / _RAN), ran - 1)

    def reduce(self, features: VisionFeatures, groups: Groups) -> list[Reduced] | None:
        """All patches, with the two rankings of stage 1 as scores for `at_entry`.

        T1 depends on the decoder, which is not known here; a ranking does not depend on T1.
        """
        patches = features.patches.shape[1]
        sizes = [[views * patches for views in group] for group in groups]
        if all(sum(images) <= self.resolved(images).target_token_num for images in sizes):
            return None
        if features.grids is not None:
            raise ValueError(
                "method vscan does not cover tiled pictures (LLaVA-1.6): its windows are those of "
                "a single view; use another method, or a LLaVA-1.5 checkpoint"
            )
        local = features.probes[self._local(features.ran)].cls_attention().mean(1)
        scores = pack_ranks(local, features.cls, window_of(patches, self.windows))
        every = torch.arange(patches, device=local.device)
        return [Reduced(image, every, ranks) for image, ranks in zip(features.patches, scores)]

    def stages(self, visual: int, layers: int) -> tuple[int, int]:
        """T1 and T2 of a sample of `visual` tokens in a decoder of `layers` layers."""
        target, before = int(self.target_token_num), self.layer
        if visual <= target:
            return visual, visual
        common = gcd(before, layers - before)
        more, less = (layers - before) // common, before // common
        wanted = round((self.first_ratio - 1) * target / more)
        steps = min(wanted, (visual - target) // more, (target - 1) // less)
        return target + steps * more, target - steps * less

    def start(self, layout: TokenLayout, shape: DecoderShape) -> VScanRun:
        return VScanRun(self, layout, shape)


class VScanRun(PrunerRun):
    """One prefill."""

    def __init__(self, config: VScan, layout: TokenLayout, shape: DecoderShape) -> None:
        self.config, self.positions = config, config.positions
        demand_later_layers(config.method, "layer", config.layer, shape.layers)
        stages = [
            config.resolved(sizes).stages(visual, shape.layers)
            for sizes, visual in zip(layout.sizes, layout.n_visual)
        ]
        self.targets = config.targets_in_images(layout.sizes)
        self.first, self.second = (list(counts) for counts in zip(*stages))
        self.reduces = any(n < have for n, have in zip(self.second, layout.n_visual))
        demand_text_behind(config.method, layout)
        if self.reduces and layout.cls is None:
            raise ValueError("VScan needs the attention of the vision tower's CLS token")
        self._flops = [0] * layout.batch

    def scoring_flops(self) -> list[int]:
        return self._flops

    def at_entry(self, layout: TokenLayout, embeds: Tensor) -> Selection | None:
        """Stage 1. Waits for the device, to see the images."""
        if self.first == list(layout.n_visual):
            return None
        assert layout.cls is not None, "the rankings of stage 1"
        device = layout.image.device
        chosen = torch.zeros(layout.image.shape, device=device)
        # For each token the column that it goes on in; its own unless it joins another.
        goes_to = torch.arange(layout.n, device=device).repeat(layout.batch, 1)
        for sample, images in enumerate(find_images(layout)):
            sizes = [len(image) for image in images]
            if self.targets is None:
                counts = divide(self.first[sample], sizes)
            else:
                counts = share_out(self.first[sample], self.targets[sample], sizes)
            for image, count in zip(images, counts):
                start, stop = image.columns[0], image.columns[-1] + 1
                ranks = layout.cls[sample, start:stop]
                kept, dropped = unpack_ranks(ranks, count, self.config.windows)
                chosen[sample, start + kept] = 1
                if self.config.merge and len(kept) and len(dropped):
                    tokens = embeds[sample, start:stop]
                    joined = start + kept[most_similar(tokens[dropped], tokens[kept])]
                    goes_to[sample, start + dropped] = joined
                    pairs = len(dropped) * (len(kept) + 1)
                    self._flops[sample] += 2 * pairs * embeds.shape[-1]
        selection = keep_top(layout, chosen, self.first)
        if selection is None or not self.config.merge:
            return selection
        return pool_into(layout, selection, goes_to)

    def needed_by(self, layer: int, layout: TokenLayout) -> list[bool]:
        return [keep < n for keep, n in zip(self.second, layout.n_visual)]

    def leaving(self, layer: int, layout: TokenLayout) -> list[int] | None:
        return None if layer < self.config.layer else [0] * layout.batch

    def after_layer(self, observation: Observation) -> Selection | None:
        """Stage 2."""
        if observation.layer != self.config.layer - 1 or not self.reduces:
            return None
        scores = observation.looked_ahead().rows(1).mean(1)[:, 0]
        return keep_top(observation.layout, scores, self.second, targets=self.targets)


def window_of(patches: int, windows: int) -> Tensor:
    """Which window each patch of a square grid is in: (patches,), `windows` along a side."""
    side = isqrt(patches)
    along = min(windows, side)
    line = torch.arange(side) * along // side
    return (line[:, None] * along + line).flatten()


def pack_ranks(local: Tensor, overall: Tensor, window: Tensor) -> Tensor:
    """Two rankings of patches (images, p) as one number each: (images, p) float32.

    p x the rank by `local` in the patch's own `window` (p,), plus the rank by `overall` in the
    image; the best is 0. Exact while p x (patches of a window) is below 2^24.
    """
    images, p = local.shape
    index = torch.arange(p, device=local.device).expand(images, -1)
    # Counted where the windows were made, so that no device is waited for.
    sizes = window.bincount()
    first = (sizes.cumsum(0) - sizes)[window.sort().values]
    window, first = torch.stack([window, first]).to(local.device)
    order = local.argsort(dim=1, descending=True, stable=True)
    # Grouped by window, best first in each.
    order = order.gather(1, window[order].argsort(dim=1, stable=True))
    inside = torch.empty_like(order).scatter_(1, order, index - first)
    by_overall = overall.argsort(dim=1, descending=True, stable=True)
    whole = torch.empty_like(order).scatter_(1, by_overall, index)
    return (inside * p + whole).float()


def unpack_ranks(packed: Tensor, count: int, windows: int) -> tuple[Tensor, Tensor]:
    """Patches to keep (count,) and to drop (p - count,), ascending, by the ranks of one image.

    The best of each window first, floor((count / 2) / number of windows) of them; the rest of
    `count` overall.
    """
    p = len(packed)
    along = min(windows, isqrt(p))
    share = count // 2 // along**2
    ranks = packed.long()
    inside, whole = ranks // p, ranks % p
    order = torch.where(inside < share, whole - p, whole).argsort()
    return order[:count].sort().values, order[count:].sort().values


def most_similar(tokens: Tensor, among: Tensor) -> Tensor:
    """For each of `tokens` (m, d) the index of the row of `among` (k, d) with highest cosine."""
    rows, columns = (F.normalize(precise(x), dim=-1) for x in (tokens, among))
    return (rows @ columns.T).argmax(-1)


def pool_into(layout: TokenLayout, selection: Selection, goes_to: Tensor) -> Selection:
    """`selection` with every token averaged into the one in column `goes_to` (batch, n).

    A kept token that nobody joins is the mean of itself; one that goes to a column that is not
    kept is dropped.
    """
    width, device = selection.index.shape[1], goes_to.device
    new = torch.arange(width, device=device).expand(layout.batch, -1)
    # Columns that fill a shorter sample up stand for no token: they go to one beyond the sequence.
    index = selection.index
    if min(selection.lengths) < width:
        index = index.where(right_aligned(selection.lengths, width, device), layout.n)
    column = torch.full((layout.batch, layout.n + 1), width, device=device).scatter_(1, index, new)
    merge = Merge(
        source=torch.arange(layout.n, device=device).expand(layout.batch, -1),
        pools=tuple(old - left for old, left in zip(layout.lengths, selection.lengths)),
        cluster=column.gather(1, goes_to),
        clusters=width,
        place=0,
    )
    return replace(selection, merge=merge)
