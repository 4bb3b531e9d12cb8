"""The attention backends whose masks this package makes."""

from __future__ import annotations

from typing import Any

from transformers import modeling_utils

BACKENDS = ("sdpa", "eager", "flash_attention_2")


def check_backend(name: str) -> None:
    """Raise ValueError for an attention implementation whose masks this package does not know.

    A mask of the wrong kind makes attention silently non-causal, so unknown names are refused.
    """
    if name not in BACKENDS:
        raise ValueError(f"attn_implementation must be one of {', '.join(BACKENDS)}, got {name!r}")


def backend_of(config: Any) -> str:
    """Which of `BACKENDS` the attention implementation in a model's config is.

    Where flash-attn is not installed and `kernels` is, transformers loads a kernel of the hub in
    place of flash_attention_2 and writes its name into the config. It takes the same masks.

    Raises ValueError as `check_backend`.
    """
    name: str = config._attn_implementation
    for backend, kernel in modeling_utils.FLASH_ATTN_KERNEL_FALLBACK.items():
        if name == kernel and backend in BACKENDS:
            return backend
    check_backend(name)
    return name
