"""What `study` runs: the rows of its two tables, as `sweep` writes runs, without a budget."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

from llava.pruning import METHODS, Pruner, build, label
from llava.pruning.cost import DecoderShape
from llava.pruning.layout import TokenLayout
from llava.pruning.methods.autoprune import AutoPrune, AutoPruneRun

BASE = "autoprune@preset=balanced"
_BY_ATTENTION = "preselect_ratio=2,preselect_candidates=1"
#: Whose FLOPs at T tokens all rows get: the preset with a pre-selection that costs nothing. It
#: stays as it is when the preset changes, so that rows of before still have the same work.
WORK = f"{BASE},{_BY_ATTENTION}"


class Row(NamedTuple):
    """A group of the table, what tells this row from the others in it, and the run."""

    group: str
    label: str
    run: str


def _row(group: str, settings: str) -> Row:
    return Row(group, settings.replace(",", ", "), f"{BASE},{settings}")


#: Each changes the preset in one respect.
ABLATIONS = (
    Row("", "balanced", BASE),
    _row("positions", "positions=compact"),
    _row("who ranks", "rank_rows=text"),
    _row("pre-selection", _BY_ATTENTION),
    _row("pre-selection", "preselect_candidates=1"),
    _row("pre-selection", "preselect_candidates=4"),
    _row("pre-selection", "preselect_candidates=1,preselect_at=layer_0"),
    _row("pre-selection", "preselect_candidates=1,preselect_at=layer_0,preselect_ratio=1"),
    _row("pre-selection", "preselect_ratio=none,mi_layer=0"),
    _row("pre-selection", "preselect_ratio=1.25"),
    _row("pre-selection", "preselect_ratio=2"),
    _row("first cut", "mi_layer=0"),
    _row("first cut", "mi_layer=3"),
    _row("staircase", "prune_every=2"),
    _row("staircase", "prune_every=4"),
    _row("curve", "k0=0"),
    _row("curve", "k0=0.15"),
    _row("curve", "k0=0.8"),
    _row("curve", "x0=1"),
    _row("curve", "x0=6"),
    _row("curve", "curve=linear"),
    _row("recycling", "recycle_ratio=0.3"),
)
#: Adaptation: the slope of the preset is the mean, and the indicator moves it by `SPREAD`.
INDICATORS = ("mutual_information", "mean_attention", "cosine_similarity")
SPREAD = 0.2  # of the slope k, its standard deviation over samples


@dataclass(frozen=True, kw_only=True)
class ShuffledAutoPrune(AutoPrune):
    """AutoPrune whose samples get the schedules of others: what the indicator would have been is
    drawn from `values` by what it is. A control of this study, in no registry."""

    method: ClassVar[str] = "autoprune-shuffled"

    values: tuple[float, ...] = ()

    def start(self, layout: TokenLayout, shape: DecoderShape) -> AutoPruneRun:
        return _ShuffledRun(self, layout, shape)


class _ShuffledRun(AutoPruneRun):
    def _schedule(self, measured: Sequence[float]) -> None:
        config = self.config
        assert isinstance(config, ShuffledAutoPrune)
        # Three decimals: the last bits of a measure depend on what else is in the batch.
        super()._schedule([random.Random(f"{v:.3f}").choice(config.values) for v in measured])


def methods() -> Iterator[Row]:
    """Every method that takes a budget, on tokens entering where it says how it counts, and once
    more with the positions that are not its own; AutoPrune by its presets, the base first."""
    for preset in reversed(AutoPrune.presets):
        counted = "" if preset == "balanced" else "budget_mode=strict,"
        yield Row("methods", f"autoprune, {preset}", f"autoprune@{counted}preset={preset}")
    for name in sorted(METHODS):
        method = METHODS[name]
        if not method.takes_budget() or name == "autoprune":
            continue
        known = {field.name for field in fields(method)}
        strict = ["budget_mode=strict"] if "budget_mode" in known else []
        yield Row("methods", label(name), _run(name, strict))
        if "positions" in known:
            kept = [*strict, f"positions={_other_positions(build(name))}"]
            yield Row("other positions", f"{label(name)}, {kept[-1]}", _run(name, kept))


def _other_positions(pruner: Pruner) -> str:
    usual: Any = getattr(pruner, "positions", None)
    return "compact" if usual == "original" else "original"


def _run(name: str, settings: Sequence[str]) -> str:
    return name + ("@" if settings else "") + ",".join(settings)
