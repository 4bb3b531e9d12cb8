"""AutoPrune: its settings and prefill, its budget, and the complexity that it measures."""

from .method import PRESETS, AutoPrune, AutoPruneRun

__all__ = ["PRESETS", "AutoPrune", "AutoPruneRun"]
