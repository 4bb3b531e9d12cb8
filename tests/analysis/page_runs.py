"""Runs on a hand-made benchmark with metadata: what is lost, gained and merely other is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llava import pruning

from ..eval.benchmark_files import write_benchmark
from ..eval.run_files import write_run

COST = {"tokens_entering": 110.0, "prefill_flops": 250, "dense_prefill_flops": 1000}
DENSE = ["red", "blue", "TEA", "left", "7", "no", "yes", "a dog"]
#: Of these, 0 and 3 became wrong, 5 right, 7 another wrong one; 2 differs in case alone.
AUTO = ["green", "blue", "tea.", "right", "7", "yes", "yes", "a cat"]
RIGHT = ["red", "blue", "TEA", "left", "7", "yes", "yes", "a horse"]
HOPS = [1, 1, 1, 2, 2, 3, 1, 1]


def write(folder: Path, model_path: str = "models/tiny", **settings: Any) -> Path:
    """Runs of beta (eight questions, two a picture) in folder/out, the benchmark in folder/data."""
    settings = {"model_path": model_path, "max_new_tokens": 4, **settings}
    write_benchmark(folder / "data", "beta", 8, right=RIGHT)
    metadata = [
        {
            "index": i, "question_id": f"q{i}", "kind": "it", "hops": hops, "distractors": None,
            "target_patches": None, "answer": RIGHT[i],
        }
        for i, hops in enumerate(HOPS)
    ]  # fmt: skip
    lines(folder / "data" / "beta" / "metadata.jsonl", metadata)
    auto = pruning.build("autoprune", target_token_num=64, x0=5.6)
    fastv = pruning.build("fastv", target_token_num=32, depth=1)
    for name, texts, pruner in (
        ("none", DENSE, pruning.build("none")),
        ("auto-64", AUTO, auto),
        ("fastv-32", [*DENSE[:7], "<b>&\"'</b>"], fastv),
        ("random-1", ["?"] * 8, pruning.build("random", target_token_num=32, seed=1)),
        ("random-0", DENSE, pruning.build("random", target_token_num=32, seed=0)),
        ("no-image", ["?"] * 8, pruning.build("no-image")),
    ):
        kept = {"none": 1.0, "no-image": 0.0}.get(name, 0.5)
        file = write_run(folder, f"beta/{name}", 0, pruner, kept=kept, **settings)
        measured = {"mi": 0.5} if pruner is auto else {}
        lines(file, [answer(i, text, measured) for i, text in enumerate(texts)])
    return folder


def answer(index: int, text: str, measured: dict[str, float]) -> dict[str, Any]:
    """An answer; those without a measure are of a version that did not say what really ran."""
    cost = COST | ({"computed_flops": 240} if measured else {})
    return {
        "question_id": f"q{index}",
        "text": text,
        "metadata": {"index": index, "cost": cost, "complexity": measured},
    }


def lines(path: Path, entries: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
