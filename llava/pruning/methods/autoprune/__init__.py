"""AutoPrune: its `settings`, the `run` of a prefill, its `preselection` and its `budget`."""

from __future__ import annotations

from dataclasses import dataclass

from ...cost import DecoderShape
from ...layout import TokenLayout
from ...registry import register
from .run import AutoPruneRun
from .settings import AutoPruneSettings

__all__ = ["AutoPrune", "AutoPruneRun", "AutoPruneSettings"]


@register
@dataclass(frozen=True, kw_only=True)
class AutoPrune(AutoPruneSettings):
    """The method: its settings, and the run that each prefill starts."""

    def start(self, layout: TokenLayout, shape: DecoderShape) -> AutoPruneRun:
        return AutoPruneRun(self, layout, shape)
