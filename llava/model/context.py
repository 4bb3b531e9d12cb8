"""The context of a model: how many tokens a prompt and its answer may have together.

Beyond it positions come that the decoder never learned, and what it says is no answer any more.
LLaVA cuts a prompt off at its end, where the question is, and generates beyond; here such a prompt
is refused, and an answer ends where the context does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

from ..pruning.checks import PromptError

#: What config.json calls it, the first that is there. The last is every decoder's own.
_KEYS = ("max_sequence_length", "tokenizer_model_max_length", "max_position_embeddings")


def context_length(config: Any) -> int | None:
    """Most tokens of a conversation, None where the config states none."""
    return next(filter(None, (getattr(config, key, None) for key in _KEYS)), None)


def demand_context(lengths: Sequence[int], n_visual: Sequence[int], config: Any) -> None:
    """Raise PromptError for a sample with more tokens than the context.

    lengths, n_visual: of each sample, all tokens and the visual ones among them.
    """
    most, longest = context_length(config), max(lengths)
    if most is not None and longest > most:
        key = next(key for key in _KEYS if getattr(config, key, None))
        visual = n_visual[lengths.index(longest)]
        fewer = ", give fewer images, or bound them with visual_token_num" if visual else ""
        raise PromptError(
            f"a prompt has {longest} tokens, {visual} of them visual; the context of this model is "
            f"{most} ({key}). Nothing is cut off, since the question would be: shorten the text"
            f"{fewer}"
        )


class ContextEnd(StoppingCriteria):
    """Ends the answer of each sample where the context of the model does; one token always fits.

    lengths: tokens of each sample before its answer; beams of a sample stand side by side.
    """

    def __init__(self, lengths: Sequence[int], config: Any) -> None:
        self._lengths = lengths
        self._most = context_length(config)

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any
    ) -> torch.BoolTensor:
        """(batch,) of whether a sample is done; `input_ids` (batch, n) are the new tokens."""
        rows, new = input_ids.shape
        if self._most is None or max(self._lengths) + new < self._most:
            # Nearly always, and nothing is sent to the device.
            return torch.zeros(rows, dtype=torch.bool, device=input_ids.device)
        beams = rows // len(self._lengths)
        full = [length + new >= self._most for length in self._lengths for _ in range(beams)]
        return torch.tensor(full, device=input_ids.device)
