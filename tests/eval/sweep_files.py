"""A sweep over small benchmarks: question files, their metadata, answers and run records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava import pruning

QUESTION_FILES = {"gqa": "llava_gqa_testdev_balanced.jsonl", "MME": "llava_mme.jsonl"}


@dataclass(frozen=True)
class Asked:
    """A question, what the metadata say about it, and what a run answered and measured."""

    image: str | None
    hops: int
    mi: float | None
    kind: str = "color"
    distractors: int | None = 2
    target_patches: float | None = 4.0
    reference: str | None = "red"
    text: str = "red"
    n_text: int = 40


def write_lines(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def write_benchmark(data: Path, folder: str, asked: Sequence[Asked]) -> None:
    """Question file and metadata of GQA ("gqa") or MME ("MME"); nothing that scoring needs."""
    questions = [
        {"question_id": f"q{i}", "image": a.image, "text": f"What is {i}?"}
        for i, a in enumerate(asked)
    ]
    write_lines(data / folder / QUESTION_FILES[folder], questions)
    write_metadata(data / folder, asked)


def write_metadata(folder: Path, asked: Sequence[Asked], **more: Any) -> None:
    write_lines(
        folder / "metadata.jsonl",
        [
            {
                "index": i,
                "question_id": f"q{i}",
                "kind": a.kind,
                "hops": a.hops,
                "distractors": a.distractors,
                "target_patches": a.target_patches,
                "unseen": False,
                **({} if a.reference is None else {"answer": a.reference}),
                **more,
            }
            for i, a in enumerate(asked)
        ],
    )


def answers(asked: Sequence[Asked]) -> list[dict[str, Any]]:
    return [
        {
            "question_id": f"q{i}",
            "prompt": f"What is {i}?",
            "text": a.text,
            "metadata": {
                "index": i,
                "n_visual": 0 if a.image is None else 576,
                "n_text": a.n_text,
                "complexity": {} if a.mi is None else {"mi": a.mi, "k": 0.3, "x0": 15.2},
            },
        }
        for i, a in enumerate(asked)
    ]


def write_run(
    path: Path, asked: Sequence[Asked], *, entering: float = 80, status: str = "complete", **pruner
) -> Path:
    """Answers and record of a run; `pruner` are settings of AutoPrune, or `method`."""
    write_lines(path, answers(asked))
    config = pruning.build(pruner.pop("method", "autoprune"), **pruner)
    record = {
        "status": status,
        "settings": {"model_path": "demo", "pruner": config.to_dict()},
        "counts": {"answered": len(asked)},
        "tokens": {"visual": 576.0, "entering": entering},
    }
    path.with_name(path.name.removesuffix(".jsonl") + ".run.json").write_text(json.dumps(record))
    return path
