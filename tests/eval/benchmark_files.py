"""Two small benchmarks for tests of sweeps and tables, whose scores are easy to foresee.

An answer is right if its text is the question's annotation. `alpha` counts percent, `beta` points
of 200; its questions come in pairs of an image.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from llava.eval.benchmarks.base import Benchmark, File, Split, question_lines, require_complete
from llava.eval.benchmarks.scoring import texts_by_id

QUESTIONS = File("questions.jsonl", "the tests", "questions")


def splits(name: str) -> tuple[Split]:
    truth = File("annotations.json", "the tests")
    return (Split(QUESTIONS, File("images", "the tests", "images"), (truth,), scored_as=name),)


def score(
    folder: Path, answers: Iterable[dict[str, Any]], *, points: float, allow_missing: bool = False
) -> dict[str, Any]:
    right = json.loads((folder / "annotations.json").read_text())
    given = texts_by_id(answers)
    missing = right.keys() - given.keys()
    require_complete(sorted(missing), len(right), allow_missing=allow_missing)
    hits = [given[key] == right[key] for key in given]
    return {
        "samples": len(hits),
        "missing": len(missing),
        "accuracy": points * sum(hits) / len(hits) if hits else None,
    }


ALPHA = Benchmark(
    name="alpha",
    title="Alpha (a split)",
    folder="alpha",
    splits=splits("alpha"),
    metric="accuracy",
    load_questions=question_lines(QUESTIONS),
    score=partial(score, points=100.0),
)
BETA = Benchmark(
    name="beta",
    title="Beta",
    folder="beta",
    splits=splits("beta"),
    metric="accuracy",
    load_questions=question_lines(QUESTIONS),
    score=partial(score, points=200.0),
    best=200.0,
    max_new_tokens=1024,
    group=lambda question: question.image,
)
BENCHMARKS = {"alpha": ALPHA, "beta": BETA}


def score_letters(folder: Path, answers: Iterable[dict[str, Any]], **options: Any) -> dict:
    """As `score` of alpha, and counts what is not yes as an answer that gives no letter."""
    lines = list(answers)
    unparsed = sum(line["text"] != "yes" for line in lines)
    return ALPHA.score(folder, lines, **options) | {"unparsed": unparsed}


#: The same with an alpha whose answers are letters.
OF_LETTERS = BENCHMARKS | {"alpha": replace(ALPHA, score=score_letters)}


def write_benchmark(data: Path, name: str, count: int, right: list[str] | None = None) -> None:
    """`count` questions q0, q1, ... in data/name, two about each image; `right` answers."""
    folder = data / name
    (folder / "images").mkdir(parents=True)
    questions = []
    for i in range(count):
        image = f"{i // 2}.png"
        Image.new("RGB", (40 + i, 30), (i * 20 % 256, 0, 0)).save(folder / "images" / image)
        questions.append({"question_id": f"q{i}", "image": image, "text": f"What is {'it ' * i}?"})
    lines = [json.dumps(question) + "\n" for question in questions]
    (folder / "questions.jsonl").write_text("".join(lines))
    annotations = {f"q{i}": text for i, text in enumerate(right or ["yes"] * count)}
    (folder / "annotations.json").write_text(json.dumps(annotations))
