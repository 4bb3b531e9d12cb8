"""The steps after a prefill: what each layer is called with when new tokens come."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .attention import causal_mask, device_of, moved
from .cache import PrunedCache


class Decoding:
    """One step over a cache that a prefill has filled; `enter` and `leave` are as in `Prefill`.

    decoder: has `layers` and `rotary_emb`; hidden: (batch, tokens, d), the new tokens' embeddings
    backend: of the attention, see `attention.causal_mask`
    """

    def __init__(self, hidden: Tensor, decoder: Any, cache: PrunedCache, backend: str) -> None:
        self.tokens, self.decoder, self.cache, self.backend = (
            hidden.shape[1],
            decoder,
            cache,
            backend,
        )
        positions = cache.next_positions(self.tokens)
        cos, sin = decoder.rotary_emb(hidden, positions.flatten(0, 1))
        shape = positions.shape[:2]
        self._tables = list(zip(cos.unflatten(0, shape), sin.unflatten(0, shape)))

    def enter(self, index: int, hidden: Tensor) -> tuple[Tensor, dict[str, Any]]:
        hidden = moved(hidden, device_of(self.decoder.layers[index], hidden))
        valid = self.cache.valid_keys(index, self.tokens)
        keys = self.cache.held(index).shape[-2] + self.tokens
        rope = self._tables[index if len(self._tables) > 1 else 0]
        return hidden, {
            "attention_mask": causal_mask(self.backend, valid, self.tokens, keys, hidden),
            "position_embeddings": rope,
            "past_key_values": self.cache.layer(index),
            "use_cache": True,
        }

    def leave(self, hidden: Tensor) -> Tensor:
        return hidden

    def finish(self) -> None:
        """Note that every layer holds the new tokens now."""
        self.cache.append(self.tokens)
