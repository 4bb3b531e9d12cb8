"""The layers' attention: transformers' own kernels, which also show their queries to a prefill.

transformers looks the attention of a layer up by the name in the layer's config. The layers of a
patched decoder have a copy of the model's config with the name of `watched`, which leaves the
rotated queries with the `Watch` it is given, if any, and calls the kernel that the user named. The
model itself stays as it was: its config has the user's name, and nothing of a call is kept.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...pruning.attention import Watch

BACKENDS = ("sdpa", "eager", "flash_attention_2")

_PREFIX = "watched_"


def watched_name(backend: str) -> str:
    """The name under which this module has a backend, or the same where it does not."""
    return _PREFIX + backend if backend in BACKENDS else backend


def check_backend(name: str) -> None:
    """Raise ValueError for an attention implementation whose masks this package does not know.

    A mask of the wrong kind makes attention silently non-causal, so unknown names are refused.
    """
    if name not in BACKENDS:
        raise ValueError(f"attn_implementation must be one of {', '.join(BACKENDS)}, got {name!r}")


def _kernel(name: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """transformers' attention function of a backend; eager's is that of the layer's family."""
    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


def _watched(backend: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def watched(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        watch: Watch | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if watch is not None:
            watch.queries = query
        # flash takes validity; a mask of its own for each query is for sdpa.
        masked = attention_mask is not None and attention_mask.dim() == 4
        name = "sdpa" if masked and backend == "flash_attention_2" else backend
        return _kernel(name, module)(module, query, key, value, attention_mask, **kwargs)

    return watched


for _name in BACKENDS:
    AttentionInterface.register(_PREFIX + _name, _watched(_name))
    # So that a stock model that borrows such layers masks them as it would its own.
    AttentionMaskInterface.register(_PREFIX + _name, ALL_MASK_ATTENTION_FUNCTIONS[_name])


def watch_attention(decoder: nn.Module) -> None:
    """Give the layers of `decoder` the attention of this module."""
    config = copy.copy(decoder.config)
    for layer in decoder.layers:
        layer.self_attn.config = config
    sync_attention(decoder)


def sync_attention(decoder: nn.Module) -> str:
    """The backend that the model's config names, which the layers then call as well.

    Raises ValueError for one that `check_backend` refuses.
    """
    backend: str = decoder.config._attn_implementation
    check_backend(backend)
    if len(decoder.layers):
        config = decoder.layers[0].self_attn.config
        if config._attn_implementation != _PREFIX + backend:
            config._attn_implementation = _PREFIX + backend
    return backend
