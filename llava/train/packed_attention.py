"""Attention over a picture and the turns packed behind it, without the blocks nobody looks at.

The picture, and the text before it, are plainly causal and never see the turns; only the turns need
a mask. Computing the two apart costs little more than half of one masked product over everything.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention as attend
from transformers import AttentionInterface

NAME = "packed_turns"


def packed_attention(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    *,
    shared: int,
    scaling: float,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: (batch, heads, n, dim) in, (batch, n, heads, dim) out.

    `mask` (batch, 1, n, n) is True where a query may look, and `shared` the number of tokens before
    the turns.
    """
    before = attend(
        *(states[:, :, :shared] for states in (query, key, value)), is_causal=True, scale=scaling
    )
    turns = attend(query[:, :, shared:], key, value, mask[:, :, shared:], scale=scaling)
    return torch.cat([before, turns], dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, packed_attention)
