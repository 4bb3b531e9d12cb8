"""Puts modules on virtual devices: on one, or spread over two as accelerate spreads them."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import dispatch_model
from torch import nn

from .device import FIRST, SECOND, VirtualTensor, host_value, virtual_devices


def move(module: nn.Module, device: torch.device) -> nn.Module:
    """The module itself, its parameters and buffers on a virtual device."""
    for child in module.modules():
        for tensors in (child._parameters, child._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = moved = VirtualTensor(host_value(tensor.data), device)
                    if isinstance(tensor, nn.Parameter):
                        tensors[name] = nn.Parameter(moved, requires_grad=False)
    return module


def split(model: Any) -> Any:
    """The model itself, spread over two devices as accelerate does it: in the order of its modules,
    here with the border in the middle of the decoder's layers."""
    places: dict[str, torch.device] = {}
    device = FIRST
    for name, child in model.model.named_children():
        if child is model.model.layers:
            half = len(child) // 2
            for i in range(len(child)):
                places[f"model.{name}.{i}"] = FIRST if i < half else SECOND
            device = SECOND
        else:
            places[f"model.{name}"] = device
    places["lm_head"] = SECOND
    for name, device in places.items():
        move(model.get_submodule(name), device)
    left = {k for k, v in model.state_dict().items() if not isinstance(v, VirtualTensor)}
    assert not left, f"neither half has {sorted(left)}"
    with virtual_devices():
        return dispatch_model(
            model,
            places,
            main_device=FIRST,
            skip_keys=model._skip_keys_device_placement,
            force_hooks=True,
        )
