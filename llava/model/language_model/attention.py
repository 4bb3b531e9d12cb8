"""The layers' attention: transformers' own kernels, which also show their queries to a prefill.

transformers looks the attention of a layer up by the name in the layer's config. Watched layers
have a copy of their config with the name of `watched`, which leaves the rotated queries with the
`Watch` it is given, if any, and calls the kernel that the config itself names. The model stays as
it was: its config has the user's name, and nothing of a call is kept.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...pruning.attention import Watch

NAME = "watched"

Kernel = Callable[..., tuple[Tensor, Tensor | None]]


def watch_attention(layers: nn.ModuleList) -> None:
    """Let the attention of decoder layers be `watched`; of layers that are it changes nothing."""
    copies: dict[int, Any] = {}
    for layer in layers:
        config = layer.self_attn.config
        if config._attn_implementation == NAME:
            continue
        if id(config) not in copies:
            copies[id(config)] = renamed = copy.copy(config)
            renamed._attn_implementation_internal = NAME
            renamed.unwatched = config
        layer.self_attn.config = copies[id(config)]


def watched(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    watch: Watch | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What the kernel that the unwatched config names computes, with queries left in `watch`."""
    if watch is not None:
        watch.queries = query
    unwatched = Unwatched(module)
    name: str = unwatched.config._attn_implementation
    if attention_mask is not None and attention_mask.dim() == 4 and "flash" in name:
        name = "sdpa"  # flash takes validity only, no mask of its own for each query
    kernel = _kernel(name, module)
    return kernel(unwatched, query, key, value, attention_mask, **kwargs)


class Unwatched:
    """An attention module as its kernel has to see it: with the config that names the kernel."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        # Hooks may come off a stock model while another thread is in here.
        self.config = getattr(module.config, "unwatched", module.config)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _kernel(name: str, module: nn.Module) -> Kernel:
    """transformers' attention function of that name; eager's is that of the layer's family."""
    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


AttentionInterface.register(NAME, watched)
