"""Settings of each method that applies, for prompts of the zoo's models."""

from __future__ import annotations

from typing import Any

from llava import pruning

#: With original positions, and nothing merged: what a full-length run with a mask can equal.
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "autoprune": {"target_token_num": 8, "x0": 2.0, "recycle_ratio": 0.0},
    "dart": {"target_token_num": 13},
    "divprune": {"target_token_num": 8},
    "fastv": {"target_token_num": 6, "depth": 2},
    "no-image": {},
    "pdrop": {"target_fraction": 0.5, "stages": (1, 2, 3)},
    "random": {"target_token_num": 8},
    "sparsevlm": {"target_fraction": 0.4, "stages": (1, 2, 3), "version": "plus"},
    "zipvl": {"target_token_num": 7},
}

#: Those whose tokens are merged, too.
MERGING: dict[str, dict[str, Any]] = {
    "autoprune": {"target_token_num": 8, "x0": 2.0},
    "sparsevlm": {"target_fraction": 0.4, "stages": (1, 2, 3)},
}


def pruner(method: str, merging: bool = False, positions: str = "original") -> pruning.Pruner:
    settings = (MERGING if merging else SETTINGS)[method]
    takes_positions = hasattr(pruning.find(method)(), "positions")
    policy = {"positions": positions} if takes_positions else {}
    return pruning.build(method, **settings, **policy)
