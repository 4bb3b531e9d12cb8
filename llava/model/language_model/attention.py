"""Masks for layers of different lengths, and attention of a few rows beside any backend.

transformers builds one mask, sized by layer 0, for all layers; a pruned model needs one a layer.
And it can return attention weights only from its slow backend, all of them; the methods here look
at the rows of a few dozen text tokens. Both are computed here from a stock layer's own weights.

What happens between projection and softmax differs from family to family (norms, partial or other
rotations, capped logits, sinks, windows), and a step left out would rank tokens wrongly in silence:
rows are computed of the layers in `ROW_LAYERS`, each held against the eager backend by a test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import rotate_half

from ...pruning.layout import precise
from .backends import BACKENDS as BACKENDS
from .backends import check_backend as check_backend

#: Attention classes of transformers' families that work as `attention_rows` does: `q_proj` and
#: `k_proj`, a norm of each head where there is a `q_norm`, Llama's rotation of whole heads,
#: `scaling`, and softmax over all earlier tokens.
ROW_LAYERS = {
    "llama": "LlamaAttention",
    "mistral": "MistralAttention",
    "mixtral": "MixtralAttention",
    "qwen2": "Qwen2Attention",
    "qwen3": "Qwen3Attention",
    "qwen3_moe": "Qwen3MoeAttention",
    "gemma": "GemmaAttention",
    "granite": "GraniteAttention",
}


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


def check_rows(attention: nn.Module, keys: int = 0) -> None:
    """Raise ValueError for a layer whose rows over `keys` tokens cannot be computed here."""
    kind = type(attention)
    family = kind.__module__.rpartition(".modeling_")[2]
    stock = kind.__module__ == f"transformers.models.{family}.modeling_{family}"
    if not stock or ROW_LAYERS.get(family) != kind.__name__:
        raise ValueError(
            f"attention rows of {kind.__module__}.{kind.__name__} are not known: what it does "
            "between projection and softmax may differ from "
            f"{', '.join(ROW_LAYERS.values())}. Add it to ROW_LAYERS and to the test of its parity "
            "if that holds, or use a method that looks at no rows"
        )
    window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    if window is not None and keys > window:
        raise ValueError(
            f"attention rows over {keys} tokens: this {kind.__name__} sees {window} "
            "(sliding_window), and rows over a window are not known. Shorten the prompt"
        )


#: Where the query projection of the running layer leaves its output, per thread; None: nowhere.
_QUERIES: ContextVar[list[Tensor] | None] = ContextVar("queries", default=None)


def _keep_queries(module: nn.Module, inputs: Any, output: Tensor) -> None:
    wanted = _QUERIES.get()
    if wanted is not None:
        wanted.append(output)


@contextmanager
def kept_queries(layer: nn.Module) -> Iterator[list[Tensor]]:
    """While `layer` runs inside, its query projections (batch, n, heads * head_dim) are kept.

    Saves projecting the measured rows a second time. The hook stays on the layer once put there;
    it holds nothing itself and only serves the thread that asked.

    Raises ValueError for a layer that `check_rows` refuses.
    """
    check_rows(layer.self_attn)
    projection = layer.self_attn.q_proj
    if _keep_queries not in projection._forward_hooks.values():
        projection.register_forward_hook(_keep_queries)
    kept: list[Tensor] = []
    token = _QUERIES.set(kept)
    try:
        yield kept
    finally:
        _QUERIES.reset(token)


@lru_cache(maxsize=16)
def _future(count: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.ones(count, count, dtype=torch.bool, device=device).triu_(1)


def _heads(attention: nn.Module, name: str, projected: Tensor) -> Tensor:
    """Queries ("q") or keys ("k") as the layer rotates them: (batch, heads, n, head_dim)."""
    heads = projected.unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{name}_norm", None)
    return (heads if norm is None else norm(heads)).transpose(1, 2)


@torch.no_grad()
def attention_rows(
    attention: nn.Module,
    queries: Tensor,
    rope: tuple[Tensor, Tensor],
    keys: Tensor,
    count: int,
    valid: Tensor | None,
) -> Tensor:
    """Attention of the last `count` tokens over all keys, in at least float32.

    queries: (batch, n, heads * head_dim), the layer's projections; rope: cosines and sines of its
    tokens, (batch, n, head_dim); keys: (batch, kv heads, n, head_dim), what it has just cached;
    valid: (batch, n) or None. Returns (batch, heads, count, n), softmaxed over the visible keys.

    Raises ValueError for a layer that `check_rows` refuses.
    """
    check_rows(attention, keys.shape[2])
    query = _heads(attention, "q", queries[:, -count:])
    cos, sin = (table[:, -count:].to(query.device) for table in rope)
    query = query * cos[:, None] + rotate_half(query) * sin[:, None]
    batch, heads, _, width = query.shape
    groups, n = keys.shape[1:3]
    query = precise(query).mul(attention.scaling).reshape(batch, groups, -1, width)
    scores = (query @ precise(keys).transpose(2, 3)).view(batch, heads, count, n)
    if valid is not None:
        scores.masked_fill_(~valid[:, None, None, :], -torch.inf)
    scores[..., -count:].masked_fill_(_future(count, scores.device), -torch.inf)
    # A row that is padding itself sees nothing: 0, not NaN.
    return scores.softmax(-1) if valid is None else scores.softmax(-1).nan_to_num_()


class LayersAhead:
    """What a pruning method may ask after a layer: see `llava.pruning.base.Ahead`.

    `rows_computed` is the number of rows of the next layer that were computed.
    """

    def __init__(
        self,
        model: nn.Module,
        index: int,
        hidden: Tensor,
        rope: tuple[Tensor, Tensor],
        valid: Tensor | None,
    ) -> None:
        self._model, self._index = model, index
        self._hidden, self._rope, self._valid = hidden, rope, valid
        self.rows_computed = 0

    def _next(self) -> nn.Module:
        layers = self._model.config.num_hidden_layers
        if self._index + 1 >= layers:
            raise ValueError(f"no layer follows layer {self._index} of {layers}")
        return self._model.layers[self._index + 1]

    @torch.no_grad()
    def rows(self, count: int) -> Tensor:
        layer = self._next()
        check_rows(attention := layer.self_attn)
        normed = self.next_norm()
        queries = attention.q_proj(normed[:, -count:])
        keys = _heads(attention, "k", attention.k_proj(normed))
        cos, sin = (table[:, None].to(keys.device) for table in self._rope)
        keys = keys * cos + rotate_half(keys) * sin
        valid = None if self._valid is None else self._valid.to(keys.device)
        self.rows_computed = max(self.rows_computed, count)
        return attention_rows(attention, queries, self._rope, keys, count, valid)

    @torch.no_grad()
    def next_norm(self) -> Tensor:
        return self._next().input_layernorm(self._hidden)

    @torch.no_grad()
    def final_norm(self) -> Tensor:
        return self._model.norm(self._hidden)
