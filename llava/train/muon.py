"""Muon: momentum, made orthogonal, for matrices. Its products run in autocast's precision.

torch.optim.Muon always iterates in bfloat16, which processors without bfloat16 instructions emulate
a hundred times slower than float32; it also takes the matrices one by one.
Source: Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024), with the
scaling of Liu et al., arXiv:2502.16982 (update size as of AdamW: 0.2 * sqrt(max(rows, columns))).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, from the source
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose updates have all singular values near 1.

    Args:
        params: matrices only, or groups of them.
        lr: learning rate, in AdamW's scale.
        momentum: of the running mean of gradients.
        weight_decay: decoupled.
    """

    def __init__(
        self, params: Any, lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.05
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter that has a gradient; `closure` is not used."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for shape, parameters in alike.items():
                scale = group["lr"] * 0.2 * max(shape) ** 0.5
                updates = orthogonal(
                    torch.stack([self._momentum(p, group["momentum"]) for p in parameters])
                )
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(update, alpha=scale)

    def _momentum(self, parameter: torch.Tensor, momentum: float) -> torch.Tensor:
        state = self.state[parameter]
        if "mean" not in state:
            state["mean"] = torch.zeros_like(parameter)
        state["mean"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["mean"], momentum)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices (n, rows, columns) with their singular values moved close to 1."""
    a, b, c = _COEFFICIENTS
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide is matrices else x.mT
