"""AutoPrune for LLaVA: complexity-adaptive visual-token pruning on current transformers."""

from .common import signals

__version__ = "0.1.0"

if signals.is_starting():
    signals.begin_program()
