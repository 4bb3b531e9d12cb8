"""The KV cache of a pruned model: everything that belongs to one sequence batch and not the model.

`PrunedCache` carries the pruner into the prefill (transformers' `generate` hands the cache through
and rejects unknown arguments) and, after it, what each layer holds: which entries are padding, how
many tokens are real, and the trace. Layers hold different lengths, so `get_seq_length` reports the
length of the *unpruned* sequence: with it all lengths and masks that `generate` works out agree.

This is the one file of the sub-package that imports transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, DynamicLayer

from .base import Pruner
from .layout import TokenLayout
from .trace import PruneTrace


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of a layer; the first are kept as they come, without a copy."""

    def lazy_initialization(self, key_states: Tensor, *rest: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.keys is not None and self.values is not None:
            key_states = _joined(self.keys, key_states)
            value_states = _joined(self.values, value_states)
        else:
            self.lazy_initialization(key_states)
        self.keys, self.values = key_states, value_states
        return key_states, value_states


def _joined(held: Tensor, new: Tensor) -> Tensor:
    """Both (batch, heads, n, head_dim), laid out token by token as projections leave them: so the
    first step of decoding meets the layout of all others, and needs no graph of its own."""
    return torch.cat((held.transpose(1, 2), new.transpose(1, 2)), 1).transpose(1, 2)


class PrunedCache(DynamicCache):
    """Keys and values per layer, with validity and positions; the pruner of the coming prefill.

    pruner: settings of the method, None for the unpruned model
    layout: tokens of the coming prefill; the decoder makes a text layout when there is none
    trace:  what the prefill did; filled by it
    """

    def __init__(self, pruner: Pruner | None = None, layout: TokenLayout | None = None) -> None:
        super().__init__()
        self.layer_class_to_replicate = GrowingLayer
        self.pruner = pruner
        self.layout = layout
        self.trace = PruneTrace()
        self.positions = "original"
        self._prompt_columns = 0
        self._appended = 0
        self._entered: list[TokenLayout] = []
        self._valid: dict[int, Tensor] = {}
        self._on_device: tuple[Tensor, Tensor] | None = None

    def begin(self, layout: TokenLayout, positions: str) -> None:
        """Start a prefill of `layout` under the position policy "original" or "compact"."""
        self.layout, self.positions = layout, positions
        self._prompt_columns = layout.n

    def entered(self, layout: TokenLayout) -> None:
        """Note what the next layer is about to cache; to be called once a layer, in order."""
        self._entered.append(layout)

    def append(self, tokens: int) -> None:
        """Note that every layer has cached `tokens` more tokens, none of them padding."""
        self._appended += tokens

    @property
    def is_empty(self) -> bool:
        return not self._entered

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Length of the unpruned sequence so far, padding included, whatever the layers hold."""
        return 0 if self.is_empty else self._prompt_columns + self._appended

    def next_positions(self, tokens: int) -> Tensor:
        """Rotary positions of the next `tokens` tokens: (1 or layers, batch, tokens).

        "original": one more than the last of the unpruned sequence, the same in all layers.
        "compact": each layer counts only what it holds. The one function that knows this.
        """
        lengths, held = self._counts()
        step = torch.arange(tokens, device=lengths.device) + self._appended
        if self.positions == "original":
            return (lengths[:, None] + step)[None]
        return held[..., None] + step

    def _counts(self) -> tuple[Tensor, Tensor]:
        """Real tokens of each sample before and in each layer of the prefill: (batch,) and (layers,
        batch). They go to the device when first asked for, by decoding."""
        if self._on_device is None:
            assert self.layout is not None, "positions follow a prefill"
            rows = [self.layout.lengths, *(layout.lengths for layout in self._entered)]
            counts = torch.tensor(rows, device=self.layout.device)
            self._on_device = counts[0], counts[1:]
        return self._on_device

    def valid_keys(self, layer: int, new_tokens: int) -> Tensor | None:
        """(batch, keys) validity of what `layer` holds and the `new_tokens` it is about to hold.

        None when every entry is real.
        """
        layout = self._entered[layer]
        if not layout.padded:
            return None
        valid = self._valid.setdefault(layer, layout.valid)
        return pad(valid, (0, self._appended + new_tokens), value=True)

    def _rows(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a change of the batch dimension to what is kept beside keys and values."""
        if self.is_empty:
            return
        padded = {i: layout for i, layout in enumerate(self._entered) if layout.padded}
        self._valid = {i: function(self._valid.get(i, padded[i].valid)) for i in padded}
        lengths, held = self._counts()
        self._on_device = function(lengths), function(held.T).T

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._rows(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._rows(lambda x: x[indices.to(x.device)])

    def layer(self, index: int) -> Any:
        """What holds keys and values of a layer. A layer is given this in place of the cache: what
        it does then does not depend on its number, and all layers share one compiled graph."""
        while len(self.layers) <= index:
            self.layers.append(GrowingLayer())  # type: ignore[no-untyped-call]
        return self.layers[index]

    def held(self, layer: int) -> Tensor:
        """Keys (batch, kv heads, n, head_dim) that a layer holds."""
        keys: Tensor = self.layers[layer].keys  # type: ignore[union-attr, assignment]
        return keys

    @property
    def is_croppable(self) -> bool:
        """No: what was pruned is gone, so tokens before the prefill's end cannot be taken back."""
        return False

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: assisted decoding and other rollbacks do not work on a pruned cache."""
        raise NotImplementedError("a PrunedCache cannot be cropped; use greedy, sampling or beams")
