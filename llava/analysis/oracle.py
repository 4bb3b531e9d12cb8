"""The oracle of a pruned run: all tokens in all layers, those that were dropped masked.

It knows nothing of caches, selections or lengths by layer: it asks the trace which tokens each
layer saw, and gives that layer a mask in which the others are invisible as keys. Merged tokens
stand in no such run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..pruning.layout import TEXT, TokenLayout
from ..pruning.trace import PruneTrace


def seen_by_layer(trace: PruneTrace, sample: int, whole: TokenLayout) -> list[set[int]]:
    """The positions of the unpruned sequence that each layer saw, then those left after the last.

    whole: the layout of that sample alone, with all its tokens.
    """
    patch = whole.patch[0].tolist()
    place = {p: i for i, p in enumerate(patch) if p != TEXT}
    text = {i for i, p in enumerate(patch) if p == TEXT}
    return [text | {place[p] for p in kept} for kept in trace.kept_patches(sample)]


def masked_states(decoder: Any, embeds: Tensor, seen: Sequence[set[int]], positions: str) -> Tensor:
    """Hidden states (n, d) after the norm, of all tokens.

    decoder: has `layers`, `rotary_emb` and `norm`; embeds: (1, n, d); `seen[l]`: the tokens that
    are visible in layer l. positions: "original", or "compact", by which each layer counts only
    the tokens that it sees.
    """
    n = embeds.shape[1]
    hidden = embeds
    past = torch.ones(n, n, device=embeds.device).tril().bool()
    itself = torch.eye(n, device=embeds.device).bool()
    for layer, alive in zip(decoder.layers, seen):
        here = torch.tensor([i in alive for i in range(n)], device=embeds.device)
        count = torch.ones_like(here) if positions == "original" else here
        rope = decoder.rotary_emb(hidden, (count.long().cumsum(0) - 1).clamp(min=0)[None])
        visible = past & (here[None] | itself)
        mask = torch.where(visible, 0.0, -torch.inf).to(hidden)[None, None]
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rope)
    normed: Tensor = decoder.norm(hidden)[0]
    return normed
