"""No pruning: the unpruned model, run by the same loop and counted the same way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..base import Pruner, PrunerRun
from ..cost import DecoderShape
from ..layout import TokenLayout
from ..registry import register


@register
@dataclass(frozen=True, kw_only=True)
class Dense(Pruner):
    """No settings."""

    method: ClassVar[str] = "none"

    def start(self, layout: TokenLayout, shape: DecoderShape) -> PrunerRun:
        return PrunerRun()
