"""AutoPrune for LLaVA: complexity-adaptive visual-token pruning on current transformers."""

__version__ = "0.1.0"
