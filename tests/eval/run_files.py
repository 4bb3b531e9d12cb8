"""Hand-made runs on the benchmarks of `benchmark_files`: answers and records, no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llava import pruning

DENSE = pruning.build("none")
#: Questions of each benchmark.
COUNTS = {"alpha": 4, "beta": 8}


def write_run(
    folder: Path, name: str, right: int, pruner: pruning.Pruner = DENSE, **changes: Any
) -> Path:
    """A run of which the first `right` answers are right; `changes` are of record and settings."""
    count = COUNTS[name.split("/")[0]]
    file = folder / "out" / f"{name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    answers = [{"question_id": f"q{i}", "text": "yes" if i < right else "no"} for i in range(count)]
    file.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    kept = changes.pop("kept", 1.0)
    benchmark = name.split("/")[0]
    settings = {
        "model_path": "models/tiny",
        "dtype": "float32",
        "question_file": f"data/{benchmark}/questions.jsonl",
        "question_sha256": benchmark,
        "pruner": pruner.to_dict(),
    }
    record = {
        "status": changes.pop("status", "complete"),
        "environment": {"device_name": "a processor", "torch": "9.1"},
        "counts": {"answered": count},
        "tokens": {"entering": 100 * kept + count, "leaving": 100 * kept},
        "flops": {
            "prefill": 1000 * kept * count,
            "scoring": 10 * count,
            "merging": 20 * count,
            "computed": (900 * kept + 30) * count,
            "dense_prefill": 1000 * count,
        },
        "kv_bytes": {"total": 50 * kept * count, "dense": 50 * count},
        "seconds": {"prefill": 2.0, "vision": changes.pop("vision", None)},
        "settings": settings | changes,
    }
    file.with_suffix(".run.json").write_text(json.dumps(record))
    return file
