"""The settings under which `test_methods` runs each method.

A method needs no case here: without one it has a default case. For tiny models: 6 layers, 16 visual
tokens an image, and prompts with up to 2 images. A budget must be reachable for one image in both
ways of counting, and for two in the one that the settings name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from typing import Any, NamedTuple

from llava import pruning
from tests import clip_files

LAYERS, PATCHES = 6, 16

Runs = list[tuple[int, int]]


class Case(NamedTuple):
    """One method with settings.

    published, strict: what enters the layers of one image in the two ways of counting T, worked
        out by hand, as (layers, tokens); None where the pruner depends on what the picture shows,
        which has to come within a token of T. `strict` is left out where it is the same.
    merges: makes new tokens of several in the decoder or the tower, so that no full-length run with
        a mask equals it. None: `test_methods` looks.
    """

    method: str
    settings: dict[str, Any]
    published: Runs | None
    strict: Runs | None = None
    merges: bool | None = False

    @property
    def pruner(self) -> pruning.Pruner:
        return pruning.build(self.method, **self.settings)

    def entering(self, mode: str) -> list[int] | None:
        """Visual tokens that enter each layer in `budget_mode` mode; None: see the class."""
        runs = self.strict if mode == "strict" and self.strict else self.published
        if runs is None:
            return None
        return list(chain.from_iterable(repeat(tokens, layers) for layers, tokens in runs))

    def __str__(self) -> str:
        told = {k: v for k, v in self.settings.items() if k not in ("clip", "question")}
        return "-".join([self.method, *(f"{k}={v}" for k, v in told.items())])


def _nowhere() -> Iterator[Case]:
    yield Case("none", {}, [(6, 16)])
    yield Case("no-image", {}, [(6, 0)])


def _by_attention() -> Iterator[Case]:
    """Methods whose counts depend on the attention."""
    autoprune = {"target_token_num": 8, "x0": 3.0}
    yield Case("autoprune", autoprune, None, merges=True)
    yield Case("autoprune", {**autoprune, "recycle_ratio": 0.0}, None)
    yield Case("autoprune", {**autoprune, "preset": "paper"}, None)
    yield Case("autoprune", {**autoprune, "preset": "balanced"}, None)
    yield Case("autoprune", {**autoprune, "prune_every": 2}, None, merges=True)
    yield Case("autoprune", {**autoprune, "recycle_ratio": 0.0, "prune_every": 4}, None)
    yield Case("zipvl", {"target_token_num": 7}, None)
    strict = {"target_token_num": 7, "budget_mode": "strict", "positions": "compact"}
    yield Case("zipvl", strict, None)
    yield Case("zipvl", {"tau": 0.9, "probes": 3}, None)
    yield Case("prumerge+", {"adaptive": True}, None, merges=True)
    yield Case("prumerge+", {"training": True}, None, merges=True)


def _once() -> Iterator[Case]:
    """T tokens in all layers, in both ways of counting."""

    def case(method: str, target: int, merges: bool = False, **settings: Any) -> Case:
        settings = {"target_token_num": target, **settings}
        return Case(method, settings, [(6, min(target, PATCHES))], merges=merges)

    # Among the embeddings.
    yield case("random", 9, seed=1)
    yield case("random", 9, positions="original")
    yield case("uniform-grid", 9)
    yield case("uniform-grid", 20, positions="original")
    yield case("divprune", 9)
    yield case("divprune", 9, positions="original")
    yield case("dpp", 9)
    yield case("holov", 9)
    yield case("holov", 9, crops=3, positions="original")
    yield case("id-selection", 9)
    # In the tower. ToMe cannot merge the 16 patches below 6 in the 2 layers that run.
    yield case("fastervlm", 9)
    yield case("hired", 9)
    yield case("vispruner", 9)
    yield case("vispruner", 7, important_ratio=0.75)
    yield case("tome", 13, merges=True)
    yield case("tome", 12, merges=True, proportional_attention=False)
    yield case("visionzip", 9, merges=True)
    yield case("visionzip", 6, merges=True, contextual_ratio=0.5)
    yield case("prumerge+", 9, merges=True)
    yield case("prumerge+", 5, merges=True, plus=False, neighbours=4)


def _one_cut() -> Iterator[Case]:
    """Everything enters the first layers, and the same number the others.

    6 T tokens enter in all; a cut after d layers leaves (6 T - 16 d) / (6 - d), or one layer more
    where leaving ones count. Halves are rounded down.
    """

    def case(method: str, published: int, strict: int, depth: int, **settings: Any) -> Case:
        counts = ([(depth, 16), (6 - depth, kept)] for kept in (published, strict))
        return Case(method, settings, *counts)

    # T are kept; strictly (42 - 32) / 4.
    yield case("fastv", 7, 2, 2, target_token_num=7)
    # (72 - 16) / 5 = 11.2 leave on average, 12 are enough; strictly (72 - 32) / 4.
    leaving = {"query": "all", "published_count": "leaving"}
    yield case("fastv", 12, 10, 2, target_token_num=12, **leaving)
    # (78 - 32) / 4.
    strict = {"target_token_num": 13, "budget_mode": "strict"}
    yield case("fastv", 13, 11, 2, **strict, positions="compact")
    # 4 pivots and 8 for each whole 8 of T.
    yield case("dart", 12, 4, 2, target_token_num=8)
    yield case("dart", 12, 11, 2, **strict, pivot_order="norm")
    # (48 - 16) / 5, at most; (48 - 32) / 4.
    yield case("topv", 6, 4, 2, target_token_num=8, layer=2)
    # 42 / 6; (42 - 16) / 5, at most.
    yield case("topv", 7, 5, 1, target_token_num=7, layer=1, positions="compact")


def _withdrawals() -> Iterator[Case]:
    """Everything enters the first layers, 6 T / 16 of them, and nothing the others."""
    yield Case("vtw", {"target_token_num": 8}, [(3, 16), (3, 0)])
    strict = {"budget_mode": "strict", "positions": "compact"}
    yield Case("vtw", {"target_token_num": 12, **strict}, [(4, 16), (2, 0)])


def _many_cuts() -> Iterator[Case]:
    # 3 x 12 + 3 x 4 and 2 x 12 + 4 x 6 are 6 x 8.
    vscan: dict[str, Any] = {"target_token_num": 8, "layer": 3, "windows": 2}
    halves: Runs = [(3, 12), (3, 4)]
    yield Case("vscan", vscan, halves, merges=True)
    yield Case("vscan", {**vscan, "merge": False, "positions": "original"}, halves)
    yield Case("vscan", {**vscan, "layer": 2, "merge": False}, [(2, 12), (4, 6)])

    # 16 times 0.665, its square and cube are 10.6, 7.1 and 4.7; 16 + 10 + 2 x 7 + 2 x 4 = 48.
    pdrop = {"target_token_num": 8, "stages": (1, 2, 4)}
    powers: Runs = [(1, 16), (1, 10), (2, 7), (2, 4)]
    yield Case("pdrop", pdrop, powers)
    yield Case("pdrop", {**pdrop, "budget_mode": "strict"}, powers)
    ratios = {"stages": (2, 4), "ratios": (0.5, 0.25), "positions": "original"}
    yield Case("pdrop", ratios, [(2, 16), (2, 8), (2, 4)])

    # Kept: a multiple of 300, 200, 110, rounded down, and one merged token after each cut. The best
    # for T = 8 leaves 2 x 12 + 8 + 3 x 5 = 47 of 48 (the next 50), for T = 9 28 + 10 + 15 = 53
    # of 54 (the next 56); entering in all 16 + 18 + 6 + 8 = 48, and 16 + 22 + 8 + 8 = 54.
    def sparsevlm(target: int, published: Runs, strict: Runs, **more: Any) -> Case:
        settings = {"target_token_num": target, "stages": (1, 3, 4), **more}
        return Case("sparsevlm", settings, published, strict, merges="version" not in more)

    after_8: Runs = [(1, 16), (2, 12), (1, 8), (2, 5)]
    yield sparsevlm(8, after_8, [(1, 16), (2, 9), (1, 6), (2, 4)])
    after_9: Runs = [(1, 16), (2, 14), (1, 10), (2, 5)]
    strict_9: Runs = [(1, 16), (2, 11), (1, 8), (2, 4)]
    yield sparsevlm(9, after_9, strict_9, budget_mode="strict", raters="all")
    # The shape 300, 200, 118 and nothing merged: 24 + 8 + 15 = 47 leave, 16 + 20 + 6 + 6 = 48
    # enter. 28 + 10 + 15 = 53 leave: 14 turns to 15 and 9 to 10 at the same multiple, and in
    # floating point the 10 comes first. Of 54, 16 + 22 + 7 + 8 = 53 enter, and the second stage,
    # of one layer, has room for one more.
    plus = {"version": "plus"}
    yield sparsevlm(8, after_8, [(1, 16), (2, 10), (1, 6), (2, 3)], **plus)
    plus |= {"top_heads": 2, "budget_mode": "strict", "raters": "last"}
    yield sparsevlm(9, after_9, strict_9, **plus)


def small_settings(cls: type[pruning.Pruner], budget: int = PATCHES // 2) -> dict[str, Any]:
    """The budget where a method has one, its default depths in a tiny model, and what is asked."""
    small = cls().scaled(32, LAYERS)
    more = {name: getattr(small, name) for name in cls.depths}
    if cls.reads_text:
        more |= {"clip": clip_files.folder(), "question": ("What is on the sign?",)}
    return {"target_token_num": budget, **more} if cls.takes_budget() else more


def _without_a_case(methods: Iterable[str]) -> Iterator[Case]:
    for method, cls in pruning.METHODS.items():
        if method not in methods:
            yield Case(method, small_settings(cls), None, merges=None)


_WRITTEN = [*_nowhere(), *_by_attention(), *_once(), *_one_cut(), *_withdrawals(), *_many_cuts()]
CASES = [*_WRITTEN, *_without_a_case({case.method for case in _WRITTEN})]
