"""Masks for layers of different lengths, and attention of a few rows beside any backend.

transformers builds one mask, sized by layer 0, for all layers; a pruned model needs one a layer.
And it can return attention weights only from its slow backend, all of them; the methods here look
at the rows of a few dozen text tokens. They are computed from the queries and keys that the layer's
own attention has rotated (`Watch`), or, before a layer runs, from the layer's own weights.

What happens between projection and softmax differs from family to family (norms, partial or other
rotations, capped logits, sinks, windows), and a step left out would rank tokens wrongly in silence:
rows are computed of the layers in `ROW_LAYERS`, each held against the eager backend by a test.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from .layout import TokenLayout
from .selection import columns, precise, rounded

#: Attention classes of transformers' families that work as this module does: `q_proj`, `k_proj` and
#: `v_proj`, a norm of each head of queries and keys where there is a `q_norm`, Llama's rotation of
#: whole heads, `scaling`, and softmax over all earlier tokens.
ROW_LAYERS = {
    "llama": "LlamaAttention",
    "mistral": "MistralAttention",
    "mixtral": "MixtralAttention",
    "qwen2": "Qwen2Attention",
    "qwen3": "Qwen3Attention",
    "qwen3_moe": "Qwen3MoeAttention",
    "gemma": "GemmaAttention",
    "granite": "GraniteAttention",
    "gemma3": "Gemma3Attention",
    "qwen2_vl": "Qwen2VLAttention",
    "qwen2_5_vl": "Qwen2_5_VLAttention",
    "qwen3_vl": "Qwen3VLTextAttention",
}

Rope = tuple[Tensor, Tensor]

# Of more rows than any prompt's text has, the table of what comes later is not kept.
_MANY_ROWS = 512


class Watch:
    """Given to a layer as the keyword `watch`: where its attention leaves the rotated queries."""

    def __init__(self) -> None:
        self.queries: Tensor | None = None


@lru_cache(maxsize=4)
def _past(size: int, device: torch.device) -> Tensor:
    """(size, size): True where the column is not behind the row."""
    with torch.inference_mode(False):
        return torch.ones(size, size, dtype=torch.bool, device=device).tril_()


@lru_cache(maxsize=4)
def _same(size: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.eye(size, dtype=torch.bool, device=device)


def themselves(queries: int, keys: int, device: torch.device) -> Tensor:
    """(queries, keys): True where one of the last `queries` of `keys` tokens meets itself."""
    return _same(rounded(keys), device)[keys - queries : keys, :keys]


@lru_cache(maxsize=16)
def _hidden_future(
    count: int, size: int, heads: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(heads * count, size + count), to be added: minus infinity where a column is behind the row,
    rows being the last `count` of as many tokens as there are columns, once for each head."""
    with torch.inference_mode(False):
        ahead = torch.ones(count, size + count, dtype=torch.bool, device=device).triu_(size + 1)
        blank = torch.zeros(count, size + count, dtype=dtype, device=device)
        return blank.masked_fill_(ahead, -torch.inf).repeat(heads, 1)


def visible(valid: Tensor | None, queries: int, keys: int, device: torch.device) -> Tensor:
    """Which keys the last `queries` of `keys` tokens see: (batch or 1, 1, queries, keys).

    A token sees itself and those that stand before it. valid: (batch, keys), False on padding,
    which nobody sees but itself, so that no row is empty; None when there is none.
    """
    if valid is not None and queries == 1:
        return valid[:, None, None, :]
    past = _past(rounded(keys), device)[keys - queries : keys, :keys]
    if valid is None:
        return past[None, None]
    return (past & valid[:, None, None, :]) | themselves(queries, keys, device)


def causal_mask(
    backend: str, valid: Tensor | None, queries: int, keys: int, like: Tensor
) -> Tensor | None:
    """The causal mask of one layer for the last `queries` of `keys` tokens, as `backend` wants it.

    valid: see `visible`. `like` gives dtype and device.

    sdpa: None where the kernel's own causal flag or no mask at all does it (which selects the fast
    kernels), else booleans (batch, 1, queries, keys). eager: numbers to add, of that shape.
    flash_attention_2: the validity itself.
    """
    if backend == "flash_attention_2":
        return None if valid is None else valid.to(torch.long)
    if backend == "sdpa" and valid is None and queries in (1, keys):
        return None
    return as_mask(backend, visible(valid, queries, keys, like.device), like)


def as_mask(backend: str, seen: Tensor, like: Tensor) -> Tensor:
    """Booleans (batch or 1, 1, queries, keys) for every sample of `like`, as `backend` wants them.

    flash_attention_2 takes no such mask; the attention of this package then calls sdpa.
    """
    if backend != "eager":
        return seen.expand(like.shape[0], -1, -1, -1)
    blank = torch.zeros((), dtype=like.dtype, device=like.device)
    return torch.where(seen, blank, torch.finfo(like.dtype).min)


def seen_by(index: Tensor, layout: TokenLayout) -> Tensor:
    """Which tokens of `layout` those in the columns `index` (batch, m) see: (batch, 1, m, n)."""
    column = columns(layout.n, index.device)
    index = index[:, None, :, None]
    past = column <= index
    return (past & layout.valid[:, None, None, :]) | (column == index) if layout.padded else past


@torch.no_grad()
def attention_rows(queries: Tensor, keys: Tensor, scaling: float, seen: Tensor | None) -> Tensor:
    """Attention of the last tokens over all keys, in at least float32.

    queries: (batch, heads, count, head_dim) of the last `count` tokens, keys: (batch, kv heads, n,
    head_dim), both rotated. seen: (batch, 1, count, n), see `visible`; None: all before.
    Returns (batch, heads, count, n), softmaxed over the keys that each sees.
    """
    batch, heads, count, width = queries.shape
    groups, n = keys.shape[1:3]
    if seen is None and count > _MANY_ROWS:
        seen = visible(None, count, n, keys.device)
    query = precise(queries).reshape(batch * groups, -1, width)
    key = precise(keys).reshape(batch * groups, n, width).transpose(1, 2)
    if seen is None:
        # One product that scales as well, and hides what comes later.
        size = rounded(n)
        future = _hidden_future(count, size, heads // groups, query.dtype, query.device)
        scores = torch.baddbmm(future[:, size + count - n :], query, key, alpha=scaling)
        return scores.view(batch, heads, count, n).softmax(-1)
    scores = torch.bmm(query * scaling, key).view(batch, heads, count, n)
    return scores.where(seen, -torch.inf).softmax(-1)


def has_rows(attention: Any, keys: int) -> bool:
    """Whether rows over `keys` tokens can be computed: not where `check_rows` refuses."""
    window = _window(attention)
    return _known(attention) and (window is None or keys <= window)


def check_rows(attention: Any, keys: int) -> None:
    """Raise ValueError for a layer whose rows over `keys` tokens cannot be computed here."""
    kind = type(attention)
    if not _known(attention):
        raise ValueError(
            f"attention rows of {kind.__module__}.{kind.__name__} are not known: what it does "
            "between projection and softmax may differ from "
            f"{', '.join(ROW_LAYERS.values())}. Add it to ROW_LAYERS and to the test of its parity "
            "if that holds, or use a method that looks at no rows"
        )
    if not has_rows(attention, keys):
        raise ValueError(
            f"attention rows over {keys} tokens: this {kind.__name__} sees {_window(attention)} "
            "(sliding_window), and rows over a window are not known. Shorten the prompt"
        )


def _known(attention: nn.Module) -> bool:
    kind: Any = type(attention)
    return _known_kind(kind) and not getattr(attention, "attn_logit_softcapping", None)


@lru_cache
def _known_kind(kind: Any) -> bool:
    family = kind.__module__.rpartition(".modeling_")[2]
    stock = kind.__module__ == f"transformers.models.{family}.modeling_{family}"
    return bool(stock and ROW_LAYERS.get(family) == kind.__name__)


def _window(attention: Any) -> int | None:
    # Through `vars`: asking a config for what it lacks is slow, and this is asked in every layer.
    of_config = vars(attention.config).get("sliding_window")
    window: int | None = vars(attention).get("sliding_window", of_config)
    return window


def device_of(module: Any, hidden: Tensor) -> torch.device:
    """Where a layer or norm computes: where its weights are, or `hidden` where these are fetched
    later."""
    norm = getattr(module, "input_layernorm", module)
    weight: Tensor = norm.weight if hasattr(norm, "weight") else next(module.parameters(), hidden)
    return hidden.device if weight.is_meta else weight.device


def moved(values: Tensor, device: torch.device) -> Tensor:
    """`values` on `device`: themselves where they are there, without asking the dispatcher."""
    return values if values.device == device else values.to(device)


class Projections:
    """What a stock layer's own weights make of the tokens before it runs.

    hidden: (batch, n, d), what enters the layer; rope: (batch or 1, n, head_dim) each; keys: that a
    window may be too narrow for, None for n.

    Raises ValueError for a layer that `check_rows` refuses.
    """

    def __init__(self, layer: Any, hidden: Tensor, rope: Rope, keys: int | None = None) -> None:
        self.attention = layer.self_attn
        check_rows(self.attention, hidden.shape[1] if keys is None else keys)
        device = device_of(layer, hidden)
        self._normed = layer.input_layernorm(moved(hidden, device))
        cos, sin = (moved(table, device)[:, :, None] for table in rope)
        half = sin.shape[-1] // 2
        # With these signs the turned half of a head is the head rolled by half its width.
        self._rope = cos, torch.cat([-sin[..., :half], sin[..., half:]], -1)

    def queries(self, count: int) -> Tensor:
        """Of the last `count` tokens, rotated: (batch, heads, count, head_dim)."""
        projected = self.attention.q_proj(self._normed[:, -count:])
        return self._rotated(self._heads(projected, "q_norm"))

    def keys(self) -> Tensor:
        """Of all tokens, rotated: (batch, kv heads, n, head_dim)."""
        return self._rotated(self._heads(self.attention.k_proj(self._normed), "k_norm"))

    def values(self) -> Tensor:
        """Of all tokens: (batch, kv heads, n, head_dim)."""
        return self._heads(self.attention.v_proj(self._normed)).transpose(1, 2)

    def _heads(self, projected: Tensor, norm: str = "") -> Tensor:
        heads = projected.view(*projected.shape[:2], -1, self.attention.head_dim)
        normed = getattr(self.attention, norm, None) if norm else None
        return heads if normed is None else normed(heads)

    def _rotated(self, heads: Tensor) -> Tensor:
        cos, sin = (table[:, -heads.shape[1] :] for table in self._rope)
        turned = heads.roll(heads.shape[-1] // 2, -1)
        return torch.addcmul(heads * cos, turned, sin).transpose(1, 2)


class LayersAhead:
    """What a method may ask after a layer, see `base.Ahead`: of the norms and of the next layer.

    `rows_computed` is the number of rows of the next layer that were computed. inputs: a
    `LayerInputs` that knows of the next layer, where it may have another mask and other tables.
    """

    def __init__(
        self,
        decoder: Any,
        index: int,
        hidden: Tensor,
        layout: TokenLayout,
        rope: Rope,
        inputs: Any = None,
    ) -> None:
        self._decoder, self._index, self._hidden = decoder, index, hidden
        self._layout, self._rope, self._inputs = layout, rope, inputs
        self.rows_computed = 0

    def _next(self) -> Any:
        layers = self._decoder.config.num_hidden_layers
        if self._index + 1 >= layers:
            raise ValueError(f"no layer follows layer {self._index} of {layers}")
        return self._decoder.layers[self._index + 1]

    @torch.no_grad()
    def rows(self, count: int) -> Tensor:
        layer, layout, inputs = self._next(), self._layout, self._inputs
        seen = None
        if inputs is not None and inputs.windowed:
            inputs.enter(layout, self._hidden)
            ahead = Projections(layer, self._hidden, inputs.rope, 0)
            seen = inputs.rows_seen(layout, count)
        else:
            ahead = Projections(layer, self._hidden, self._rope)
            if layout.padded:
                seen = visible(layout.valid, count, layout.n, layout.device)
        keys = ahead.keys()
        seen = seen if seen is None else moved(seen, keys.device)
        self.rows_computed = max(self.rows_computed, count)
        rows = attention_rows(ahead.queries(count), keys, ahead.attention.scaling, seen)
        return moved(rows, self._hidden.device)

    @torch.no_grad()
    def next_norm(self) -> Tensor:
        return self._normed(self._next().input_layernorm)

    @torch.no_grad()
    def final_norm(self) -> Tensor:
        return self._normed(self._decoder.norm)

    def _normed(self, norm: nn.Module) -> Tensor:
        normed = norm(moved(self._hidden, device_of(norm, self._hidden)))
        return moved(normed, self._hidden.device)
