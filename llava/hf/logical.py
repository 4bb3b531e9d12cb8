"""The cache that a stock model is called with: it reports what an unpruned one would."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..pruning.base import Pruner
from ..pruning.cache import PrunedCache
from .families import Family

ANOTHER = "this cache was made for another model: make one for this with hf.cache(model, ...)"


class LogicalCache(PrunedCache):
    """A `PrunedCache` whose lengths, for the masks that transformers makes, are the unpruned ones.

    model_id: of the one model that it is for
    step, last_only, deep: of the call under way, see `hooks`: what accompanies its layers, whether
    only the last token's output is wanted, and features to be added behind layers
    """

    def __init__(self, pruner: Pruner, family: Family, model_id: int) -> None:
        super().__init__(pruner)
        self.family, self.model_id = family, model_id
        self.step: Any = None
        self.last_only, self.deep = False, None
        self._columns: dict[int, Tensor | None] = {}

    @property
    def new_tokens(self) -> int:
        """Tokens that were made: one came out of the prefill, and each that was fed back."""
        return 0 if self.is_empty else 1 + self._appended

    def get_mask_sizes(self, queries: int | Tensor, layer_idx: int = 0) -> tuple[int, int]:
        # Early transformers 5 gives their positions, later ones their number.
        count = len(queries) if isinstance(queries, Tensor) else queries
        return self.get_seq_length() + count, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.get_seq_length()

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.step is None:
            raise ValueError(ANOTHER)
        return super().update(*args, **kwargs)

    def columns(self, layer: int, new_tokens: int) -> Tensor | None:
        """Columns (batch, keys) of the unpruned sequence that `layer` holds and is about to hold;
        None for all."""
        columns = self._columns.setdefault(layer, self._entered[layer].columns)
        if columns is None:
            return None
        past = self.get_seq_length()
        new = torch.arange(self._prompt_columns, past + new_tokens, device=columns.device)
        return torch.cat([columns, new.expand(len(columns), -1)], 1)

    def _rows(self, function: Any) -> None:
        super()._rows(function)
        for layer, layout in enumerate(self._entered):
            columns = self._columns.get(layer, layout.columns)
            self._columns[layer] = None if columns is None else function(columns)

    def activate_past_recording(self) -> None:
        """Refuse: assisted decoding takes tokens back."""
        self.crop(0)

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse, as `activate_past_recording` does."""
        raise NotImplementedError(
            "assisted decoding (assistant_model, prompt_lookup_num_tokens) takes tokens back, "
            "which a pruned cache cannot; use greedy, sampling or beams"
        )
