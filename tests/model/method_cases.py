"""The settings under which `test_methods` runs each method; every method needs at least one case.

For tiny models: 6 layers, 16 visual tokens an image, and prompts with up to 2 images. A budget must
be reachable for one image in both ways of counting, and for two in the one that the settings name.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from llava import pruning


class Case(NamedTuple):
    """One method with settings.

    merges: makes new tokens of several in the decoder or the tower, so that no full-length run with
        a mask equals it.
    published: what the method's own way of counting T counts, tokens leaving or entering a layer.
    slack: by how many tokens the mean of a sample may miss T in that way of counting.
    """

    method: str
    settings: dict[str, Any]
    merges: bool
    published: Literal["leaving", "entering"] = "leaving"
    slack: float = 1.0

    @property
    def pruner(self) -> pruning.Pruner:
        return pruning.build(self.method, **self.settings)

    def __str__(self) -> str:
        return "-".join([self.method, *(f"{k}={v}" for k, v in self.settings.items())])


CASES = [
    Case("none", {}, False),
    Case("no-image", {}, False),
    Case("autoprune", {"target_token_num": 8, "x0": 3.0}, True),
    Case("autoprune", {"target_token_num": 8, "x0": 3.0, "recycle_ratio": 0.0}, False),
    Case("autoprune", {"target_token_num": 8, "x0": 3.0, "preset": "paper"}, False),
    Case("random", {"target_token_num": 9, "seed": 1}, False),
    Case("random", {"target_token_num": 9, "positions": "original"}, False),
    Case("uniform-grid", {"target_token_num": 9}, False),
    Case("uniform-grid", {"target_token_num": 20, "positions": "original"}, False),
    Case("divprune", {"target_token_num": 9}, False),
    Case("divprune", {"target_token_num": 9, "positions": "original"}, False),
    Case("zipvl", {"target_token_num": 7}, False),
    Case("zipvl", {"target_token_num": 7, "budget_mode": "strict", "positions": "compact"}, False),
    Case("zipvl", {"tau": 0.9, "probes": 3}, False),
    Case("topv", {"target_token_num": 8, "layer": 2}, False),
    Case("topv", {"target_token_num": 7, "layer": 1, "positions": "compact"}, False),
]
