"""Masks for layers of different lengths, and attention of a few rows beside any backend.

transformers builds one mask, sized by layer 0, for all layers; a pruned model needs one a layer.
And it can return attention weights only from its slow backend, all of them; the methods here look
at the rows of a few dozen text tokens. Both are computed here from a stock layer's own weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

BACKENDS = ("sdpa", "eager", "flash_attention_2")


def check_backend(name: str) -> None:
    """Raise ValueError for an attention implementation whose masks this package does not know.

    A mask of the wrong kind makes attention silently non-causal, so unknown names are refused.
    """
    if name not in BACKENDS:
        raise ValueError(f"attn_implementation must be one of {', '.join(BACKENDS)}, got {name!r}")


def causal_mask(
    backend: str, valid: Tensor | None, queries: int, keys: int, like: Tensor
) -> Tensor | None:
    """The causal mask of one layer for the last `queries` of `keys` tokens, as `backend` wants it.

    valid: (batch, keys), False on padding; None when there is none. `like` gives dtype and device.

    sdpa: None where the kernel's own causal flag or no mask at all does it (which selects the fast
    kernels), else booleans (batch, 1, queries, keys). eager: numbers to add, of that shape.
    flash_attention_2: the validity itself. A padding query sees itself, so nothing becomes NaN.
    """
    if backend == "flash_attention_2":
        return None if valid is None else valid.to(torch.long)
    if backend == "sdpa" and valid is None and queries in (1, keys):
        return None
    device = like.device
    rows = torch.arange(keys - queries, keys, device=device)[:, None]
    columns = torch.arange(keys, device=device)[None]
    allowed = (columns <= rows)[None, None]
    if valid is not None:
        allowed = (allowed & valid[:, None, None, :]) | (columns == rows)
    if backend == "sdpa":
        return allowed.expand(like.shape[0], -1, -1, -1)
    blank = torch.zeros((), dtype=like.dtype, device=device)
    return torch.where(allowed, blank, torch.finfo(like.dtype).min)


@torch.no_grad()
def attention_rows(
    layer: nn.Module,
    entering: Tensor,
    rope: tuple[Tensor, Tensor],
    keys: Tensor,
    count: int,
    valid: Tensor | None,
) -> Tensor:
    """Attention of the last `count` tokens over all keys of a Llama decoder layer, in float32.

    entering: (batch, n, d), what entered the layer; rope: its cosines and sines, (batch or 1, n,
    head_dim); keys: (batch, kv heads, n, head_dim), what the layer has just cached; valid:
    (batch, n) or None. Returns (batch, heads, count, n), softmaxed over the visible keys.
    """
    attention = layer.self_attn
    hidden = layer.input_layernorm(entering[:, -count:])
    query = attention.q_proj(hidden).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    cos, sin = (table[:, -count:] for table in rope)
    query, _ = apply_rotary_pos_emb(query, query, cos, sin)
    batch, heads, _, width = query.shape
    groups = keys.shape[1]
    query = query.float().view(batch, groups, heads // groups, count, width) * attention.scaling
    scores = torch.einsum("bghrd,bgnd->bghrn", query, keys.float()).flatten(1, 2)
    if valid is not None:
        scores.masked_fill_(~valid[:, None, None, :], -torch.inf)
    future = torch.ones(count, count, dtype=torch.bool, device=scores.device).triu_(1)
    scores[..., -count:].masked_fill_(future, -torch.inf)
    return torch.nan_to_num_(scores.softmax(-1)) if valid is not None else scores.softmax(-1)
