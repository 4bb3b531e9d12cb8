"""Time to first token, dense and pruned, over shapes, prompts, batches and attention backends.

Time to first token is that of the language model: a prefill of embeddings, the norm, the output
head on the last token, and the token read back. Image encoding is not in it. Launches and peak
memory are a CUDA device's.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, product
from math import inf
from typing import Any

import torch

from ..model.compilation import check_compiler, compile_layers
from ..pruning import Pruner
from ..pruning import build as build_pruner
from ..pruning.cost import DecoderShape
from .launches import Counts, Launches, count, profile_launches
from .prefills import (
    SHAPES,
    Decoders,
    PrefillRun,
    Setup,
    Timing,
    acts_in_tower,
    build,
    make_input,
    take_turns,
    with_target,
)

#: Visual tokens of a picture of LLaVA-1.5 and of LLaVA-1.6, and the papers' budgets for them.
BUDGETS: dict[int, tuple[float, ...]] = {576: (192, 128, 64), 2880: (640, 320, 160)}
BATCH_SIZES = (1, 8, 32)
_GIB = 2**30


def budgets(visual_tokens: int) -> tuple[float, ...]:
    """The published budgets for a picture; of other sizes the fractions that 576 tokens have."""
    fractions = (round(visual_tokens * t / 576) for t in BUDGETS[576])
    return BUDGETS.get(visual_tokens) or tuple(fractions)


@dataclass(frozen=True)
class Cell:
    """Runs that take turns: the dense one and one for each target."""

    shape: str
    compiled: bool
    attention: str
    visual_tokens: int
    batch: int
    targets: tuple[float | None, ...]

    def __str__(self) -> str:
        layers = "compiled" if self.compiled else "eager"
        return (
            f"{self.shape}, {self.visual_tokens} visual tokens, {self.attention}, {layers}, "
            f"batch {self.batch}"
        )

    def flops(self) -> int:
        """FLOPs of the dense prefill, its text left out."""
        hidden, intermediate, layers, heads = SHAPES[self.shape]
        shape = DecoderShape(layers, hidden, heads, heads, hidden // heads, intermediate)
        return self.batch * layers * shape.layer_flops(self.visual_tokens, self.visual_tokens)


def prompts(shape: str) -> tuple[int, ...]:
    """Visual tokens of the prompts of a shape; the tiny one, which is for trying, has tiny ones."""
    return (36, 180) if shape == "tiny" else tuple(BUDGETS)


def plan(
    shape: str,
    attentions: Sequence[str],
    visual_tokens: Sequence[int],
    batch_sizes: Sequence[int],
    targets: Callable[[int], tuple[float | None, ...]],
) -> list[Cell]:
    """The cells of a shape, in the order that changes a model least.

    targets: by the number of visual tokens
    """
    return [
        Cell(shape, compiled, attention, n, batch, targets(n))
        for compiled, attention, n, batch in product(
            (False, True), attentions, visual_tokens, batch_sizes
        )
    ]


@dataclass
class Report:
    """What was measured: rows as plain JSON, and what there is to say beside them."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add a line, once."""
        if text not in self.notes:
            self.notes.append(text)


def fits(run: Callable[[], object]) -> bool:
    """Run; False where the device's memory does not hold it."""
    try:
        run()
        return True
    except torch.OutOfMemoryError:
        pass
    # Not in the handler: until it ends, the error holds what the run had allocated.
    torch.cuda.empty_cache()
    return False


@torch.inference_mode()
def measure_cell(
    decoders: Decoders,
    setup: Setup,
    pruner: Pruner,
    cell: Cell,
    turns: int,
    until: float,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of a cell, and which of its runs do not fit in memory.

    turns: at most; those after the first, and the profiler, only before `until` on the `clock`
    """
    embeds, layout = make_input(setup, cell.visual_tokens, cell.batch)
    # Compiled layers are this package's to call: a stock model gives each its number, and with it
    # a graph of its own. Unpruned, both compute the same bit for bit.
    unpruned = build_pruner("none") if cell.compiled else None
    prefills: dict[Hashable, PrefillRun] = {"dense": PrefillRun(decoders, embeds, layout, unpruned)}
    for target in cell.targets:
        chosen = with_target(pruner, target)
        if acts_in_tower(chosen):
            embeds, layout = make_input(setup, cell.visual_tokens, cell.batch, chosen)
        prefills[target] = PrefillRun(decoders, embeds, layout, chosen)

    counts: dict[Hashable, Counts] = {}
    launches: dict[Hashable, Launches | None] = {}

    def warm_up(name: Hashable) -> None:
        run = prefills[name].first_token
        if cell.compiled:
            run()
        else:
            counts[name] = count(run)
        # Not of the first run: what a compiler does then is no launch of the model's.
        launches[name] = profile_launches(run, setup.device) if clock() < until else None

    crowded = [name for name in prefills if not fits(partial(warm_up, name))]
    runs = {name: p.first_token for name, p in prefills.items() if name not in crowded}
    timings = take_turns(runs, setup.device, turns, until, clock)

    def numbers(name: Hashable, prefix: str) -> dict[str, Any]:
        seen: list[Timing] = timings.get(name, [])
        counted, launched = counts.get(name), launches.get(name)
        peaks = [timing.peak for timing in seen if timing.peak is not None]
        median = statistics.median(timing.seconds for timing in seen) if seen else None
        values = {
            "ms": None if median is None else round(1000 * median, 3),
            "operators": counted.operators if counted else None,
            "waits": counted.waits if counted else None,
            "kernels": launched.kernels if launched else None,
            "copies": launched.copies if launched else None,
            "peak_gib": round(max(peaks) / _GIB, 3) if peaks else None,
        }
        return {prefix + key: value for key, value in values.items()}

    rows = []
    for target in cell.targets:
        cost = prefills[target].cost() if target not in crowded else None
        pairs = zip(timings.get("dense", []), timings.get(target, []), strict=False)
        speedups = [dense.seconds / pruned.seconds for dense, pruned in pairs]
        rows.append(
            {
                "shape": cell.shape,
                "visual_tokens": cell.visual_tokens,
                "attention": cell.attention,
                "compiled": cell.compiled,
                "batch": cell.batch,
                "target": target,
                "tokens_entering": round(cost.tokens_entering, 1) if cost else None,
                "speedup": round(statistics.median(speedups), 3) if speedups else None,
                "flops_speedup": (
                    round(cost.dense_prefill_flops / cost.prefill_flops, 3) if cost else None
                ),
                "turns": len(timings.get(target, [])),
                **numbers("dense", "dense_"),
                **numbers(target, ""),
            }
        )
    return rows, ["dense" if n == "dense" else f"target {n}" for n in crowded]


def available(cells: Sequence[Cell], setup: Setup, report: Report) -> list[Cell]:
    """The cells that this installation can run; what the others lack goes into the notes.

    setup: of any shape
    """
    probe = build(replace(setup, hidden=64, intermediate=64, layers=1, heads=2))
    absent: set[str | bool] = set()
    for attention in dict.fromkeys(cell.attention for cell in cells):
        try:
            probe.set_attention(attention)
        except (ImportError, ValueError) as error:
            absent.add(attention)
            report.note(f"{attention} is absent: {_first_line(error)}")
    if any(cell.compiled for cell in cells):
        try:
            check_compiler(setup.device)
        except ValueError as error:
            absent.add(True)
            report.note(f"compiled layers are absent: {_first_line(error)}")
    return [cell for cell in cells if not absent & {cell.attention, cell.compiled}]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def measure(
    cells: Sequence[Cell],
    setups: Mapping[str, Setup],
    pruners: Mapping[str, Pruner],
    turns: int,
    seconds: float = inf,
    save: Callable[[Report], None] = lambda report: None,
    clock: Callable[[], float] = time.monotonic,
) -> Report:
    """Measure the cells, in about `seconds`: a lack of time drops turns before rows.

    setups, pruners: by the name of a shape
    turns: at most, for each cell
    save: called after each cell, so that what was measured survives whatever comes next

    A cell may take its share of the time that is left, as `shares` says. When the time is up, the
    other cells are only named.
    """
    report, end = Report(), clock() + seconds
    cells = available(cells, next(iter(setups.values())), report)
    share = shares(cells)
    for name, group in groupby(cells, key=lambda cell: cell.shape):
        setup, pruner = setups[name], pruners[name]
        try:
            decoders = build(setup)
        except torch.OutOfMemoryError:
            report.note(f"{name} does not fit in memory")
            continue
        fails = False
        for cell in group:
            now = clock()
            if now >= end:
                report.note(f"no time was left for {cell}")
                continue
            if cell.compiled and fails:
                continue
            if cell.compiled and not decoders.compiled:
                compile_layers(decoders.ours)
                decoders.compiled = True
            decoders.set_attention(cell.attention)
            until = now + share[cell] * (end - now)
            try:
                rows, crowded = measure_cell(decoders, setup, pruner, cell, turns, until, clock)
            except torch.OutOfMemoryError:
                rows, crowded = [], ["its input"]
            except RuntimeError as error:
                if not cell.compiled:
                    raise
                # A compiler that fails would fail, and take its time, in each cell.
                fails = True
                report.note(f"compiled layers of {name} fail: {_first_line(error)}")
                continue
            report.rows += rows
            for run in crowded:
                report.note(f"does not fit in memory: {cell}, {run}")
            save(report)
        del decoders  # before those of the next shape
        gc.collect()
        torch.cuda.empty_cache()
    return report


def shares(cells: Sequence[Cell]) -> dict[Cell, float]:
    """The part that each cell may take of the time that is left when it begins.

    Half of the time goes by FLOPs, half to each cell alike: small ones wait for launches.
    """
    flops = [cell.flops() for cell in cells]
    weights = [f / sum(flops) + 1 / len(cells) for f in flops]
    return {cell: weights[i] / sum(weights[i:]) for i, cell in enumerate(cells)}
