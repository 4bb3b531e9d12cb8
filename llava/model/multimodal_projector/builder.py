"""The projector from vision features to word embeddings."""

from __future__ import annotations

import re

from torch import nn


def build_vision_projector(kind: str, vision_width: int, hidden: int) -> nn.Module:
    """The projector that config.json names: "linear", "identity" or "mlpNx_gelu".

    "mlpNx_gelu" is N linear layers with exact (erf) GELU between, as modules 0, 2, 4, ... so that
    parameters have LLaVA's names. Raises ValueError for any other name.
    """
    if kind == "linear":
        return nn.Linear(vision_width, hidden)
    if kind == "identity":
        return nn.Identity()
    match = re.fullmatch(r"mlp(\d+)x_gelu", kind or "")
    if not match or int(match.group(1)) < 1:
        raise ValueError(
            f"unknown mm_projector_type {kind!r}: expected linear, identity or mlpNx_gelu "
            "(LLaVA-1.5 has mlp2x_gelu)"
        )
    layers: list[nn.Module] = [nn.Linear(vision_width, hidden)]
    for _ in range(int(match.group(1)) - 1):
        layers += [nn.GELU(), nn.Linear(hidden, hidden)]
    return nn.Sequential(*layers)
