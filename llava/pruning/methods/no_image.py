"""No image: every visual token is dropped before layer 0. The floor below every other method.

What is left is the text of the prompt with compact positions, text right behind text: the run
equals one of the same prompt without its image token. The rest of the prompt stays, the newline
behind the image included. FasterVLM's tables print the row (LLaVA-1.5-7B: GQA 37.4 of 61.9,
ScienceQA 63.1 of 69.5), and what a method retains means little without it.
The vision tower still runs, so times are no measure of a text-only model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..base import Pruner, PrunerRun
from ..checks import PromptError
from ..cost import DecoderShape
from ..layout import TokenLayout
from ..registry import register
from ..selection import Selection
from ..selectors import keep_top


@register
@dataclass(frozen=True, kw_only=True)
class NoImage(Pruner):
    """Settings: none. There is no budget either; 0 visual tokens enter and leave every layer."""

    method: ClassVar[str] = "no-image"

    def start(self, layout: TokenLayout, shape: DecoderShape) -> NoImageRun:
        """Raises PromptError for a sample without text, of which nothing would be left."""
        for length, visual in zip(layout.lengths, layout.n_visual):
            if length == visual:
                raise PromptError(
                    f"no-image needs text beside the image, got a prompt of {visual} visual "
                    f"tokens and nothing else"
                )
        return NoImageRun()


class NoImageRun(PrunerRun):
    """One prefill: everything happens at its entry."""

    positions = "compact"

    def at_entry(self, layout: TokenLayout, embeds: Tensor) -> Selection | None:
        nothing = torch.zeros(layout.image.shape, device=layout.image.device)
        return keep_top(layout, nothing, [0] * layout.batch)
