"""The speed-up of pruned prefills over dense ones, beside what FLOPs allow and what is launched."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Hashable, Mapping, Sequence
from itertools import product
from typing import Any

import torch

from ..pruning import Pruner
from ..pruning.cost import Cost
from .launches import count
from .prefills import (
    PrefillRun,
    Setup,
    Timing,
    acts_in_tower,
    build,
    make_input,
    take_turns,
    with_target,
)


@torch.inference_mode()
def measure(
    setup: Setup,
    attention: str,
    pruner: Pruner,
    prompts: Mapping[int, Sequence[float | None]],
    batch_sizes: Sequence[int],
    warmup: int,
    turns: int,
) -> list[dict[str, Any]]:
    """One row for each prompt, batch size and target, as plain JSON.

    prompts: the targets, by the number of visual tokens; None for a method without a budget

    Raises ValueError for a budget that cannot be met, ImportError for attention that is absent.
    """
    decoders = build(setup)
    decoders.set_attention(attention)
    rows = []
    for (visual_tokens, targets), batch in product(prompts.items(), batch_sizes):
        embeds, layout = make_input(setup, visual_tokens, batch)
        dense = PrefillRun(decoders, embeds, layout)
        pruned: dict[float | None, PrefillRun] = {}
        for target in targets:
            chosen = with_target(pruner, target)
            if acts_in_tower(chosen):
                embeds, layout = make_input(setup, visual_tokens, batch, chosen)
            pruned[target] = PrefillRun(decoders, embeds, layout, chosen)
        runs: dict[Hashable, PrefillRun] = {"dense": dense, **pruned}
        take_turns(runs, setup.device, warmup)
        timings = take_turns(runs, setup.device, turns)
        counts = {name: count(run) for name, run in runs.items()}
        for target, run in pruned.items():
            rows.append(
                {
                    "visual_tokens": visual_tokens,
                    "batch": batch,
                    "target": target,
                    **_compared(timings["dense"], timings[target], run.cost()),
                    "dense_operators": counts["dense"].operators,
                    "operators": counts[target].operators,
                    "dense_waits": counts["dense"].waits,
                    "waits": counts[target].waits,
                }
            )
            print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def _compared(dense: list[Timing], pruned: list[Timing], cost: Cost) -> dict[str, Any]:
    """Times of turns, the speed-up, and what the cost of the pruned run would allow."""
    base = statistics.median(turn.seconds for turn in dense)
    median = statistics.median(turn.seconds for turn in pruned)
    best = [min(turn.seconds for turn in turns) for turns in (dense, pruned)]
    speedup = statistics.median(d.seconds / p.seconds for d, p in zip(dense, pruned, strict=True))
    allowed = cost.dense_prefill_flops / cost.prefill_flops
    counted = cost.prefill_flops + cost.scoring_flops + cost.merging_flops
    return {
        "tokens_entering": round(cost.tokens_entering, 1),
        "tokens_leaving": round(cost.tokens_leaving, 1),
        "dense_seconds": round(base, 5),
        "seconds": round(median, 5),
        "speedup": round(speedup, 3),
        "time_ratio": round(1 / speedup, 3),
        "flops_speedup": round(allowed, 3),
        "share": round(speedup / allowed, 3),
        "share_counting_scoring": round(speedup * counted / cost.dense_prefill_flops, 3),
        "best_share": round(best[0] / best[1] / allowed, 3),
        "dense_peak_bytes": dense[-1].peak,
        "peak_bytes": pruned[-1].peak,
        "dense_spread": round(max(turn.seconds for turn in dense) / best[0], 2),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown; operators and waits of dense / pruned."""
    lines = [
        "| visual tokens | batch | target | entering | dense s | pruned s | speed-up "
        "| pruned / dense | FLOPs allow (published counting) | share | operators | waits |",
        "| --- " * 12 + "|",
    ]
    for r in rows:
        target = "-" if r["target"] is None else f"{r['target']:g}"
        lines.append(
            f"| {r['visual_tokens']} | {r['batch']} | {target} | {r['tokens_entering']} "
            f"| {r['dense_seconds']:.4f} | {r['seconds']:.4f} | {r['speedup']:.2f} "
            f"| {r['time_ratio']:.2f} | {r['flops_speedup']:.2f} | {100 * r['share']:.0f} % "
            f"| {r['dense_operators']} / {r['operators']} | {r['dense_waits']} / {r['waits']} |"
        )
    return "\n".join(lines)
