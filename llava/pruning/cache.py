"""The KV cache of a pruned model: everything that belongs to one sequence batch and not the model.

`PrunedCache` carries the pruner into the prefill (transformers' `generate` hands the cache through
and rejects unknown arguments) and, after it, what each layer holds: which entries are padding, how
many tokens are real, and the trace. Layers hold different lengths, so `get_seq_length` reports the
length of the *unpruned* sequence: with it all lengths and masks that `generate` works out agree.

This is the one file of the sub-package that imports transformers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from .base import Pruner
from .layout import TokenLayout
from .trace import PruneTrace


class PrunedCache(DynamicCache):
    """Keys and values per layer, with validity and positions; the pruner of the coming prefill.

    pruner: settings of the method, None for the unpruned model
    layout: tokens of the coming prefill; the decoder makes a text layout when there is none
    trace:  what the prefill did; filled by it
    """

    def __init__(self, pruner: Pruner | None = None, layout: TokenLayout | None = None) -> None:
        super().__init__()
        self.pruner = pruner
        self.layout = layout
        self.trace = PruneTrace()
        self.positions = "original"
        self._prompt_columns = 0
        self._appended = 0
        self._valid: list[Tensor | None] = []
        self._lengths: list[tuple[int, ...]] = []
        self._held: Tensor | None = None
        self._next: Tensor | None = None

    def begin(self, layout: TokenLayout, positions: str) -> None:
        """Start a prefill of `layout` under the position policy "original" or "compact"."""
        self.layout, self.positions = layout, positions
        self._prompt_columns = layout.n
        self._next = torch.tensor(layout.lengths, device=layout.image.device)

    def entered(self, layout: TokenLayout) -> None:
        """Note what the next layer has just cached; to be called once a layer, in order."""
        self._valid.append(layout.valid if layout.padded else None)
        self._lengths.append(layout.lengths)

    def append(self, tokens: int) -> None:
        """Note that every layer has cached `tokens` more tokens, none of them padding."""
        self._appended += tokens

    @property
    def is_empty(self) -> bool:
        return not self._lengths

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Length of the unpruned sequence so far, padding included, whatever the layers hold."""
        return 0 if self.is_empty else self._prompt_columns + self._appended

    def next_positions(self, tokens: int) -> Tensor:
        """Rotary positions of the next `tokens` tokens: (1 or layers, batch, tokens).

        "original": one more than the last of the unpruned sequence, the same in all layers.
        "compact": each layer counts only what it holds. The one function that knows this.
        """
        assert self._next is not None, "positions follow a prefill"
        step = torch.arange(tokens, device=self._next.device) + self._appended
        if self.positions == "original":
            return (self._next[:, None] + step)[None]
        return self._held_tokens()[..., None] + step

    def _held_tokens(self) -> Tensor:
        """Real tokens that each layer held after the prefill: (layers, batch)."""
        if self._held is None:
            assert self._next is not None, "layers hold tokens after a prefill"
            self._held = torch.tensor(self._lengths, device=self._next.device)
        return self._held

    def valid_keys(self, layer: int, new_tokens: int) -> Tensor | None:
        """(batch, keys) validity of what `layer` holds and the `new_tokens` it is about to hold.

        None when every entry is real.
        """
        valid = self._valid[layer]
        if valid is None:
            return None
        grown = valid.new_ones(valid.shape[0], self._appended + new_tokens)
        return torch.cat([valid, grown], 1)

    def _rows(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a change of the batch dimension to what is kept beside keys and values."""
        self._valid = [None if v is None else function(v) for v in self._valid]
        if self._next is not None:
            self._next = function(self._next)
            self._held = function(self._held_tokens().T).T

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._rows(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._rows(lambda x: x[indices.to(x.device)])

    @property
    def is_croppable(self) -> bool:
        """No: what was pruned is gone, so tokens before the prefill's end cannot be taken back."""
        return False

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: assisted decoding and other rollbacks do not work on a pruned cache."""
        raise NotImplementedError("a PrunedCache cannot be cropped; use greedy, sampling or beams")
