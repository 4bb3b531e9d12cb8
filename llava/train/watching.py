"""What modules give during a forward, for losses on what happens inside of a stock model."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

Key = TypeVar("Key", bound=Hashable)


@contextmanager
def outputs_of(modules: Mapping[Key, nn.Module]) -> Iterator[dict[Key, torch.Tensor]]:
    """A dictionary that holds, by the keys of `modules`, what each gave last inside the context."""
    outputs: dict[Key, torch.Tensor] = {}
    handles = []
    for key, module in modules.items():

        def keep(_module, _inputs, output, key: Key = key) -> None:
            outputs[key] = output

        handles.append(module.register_forward_hook(keep))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
