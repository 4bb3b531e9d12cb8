"""The mini benchmarks as lmms-eval's tasks: what the files in playground/lmms-eval name.

Questions, prompts and pictures are those of this package's own programs, and so is the score. A
document is a line of the benchmark's metadata.jsonl, of which only `index` is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from ..benchmarks import BENCHMARKS
from ..run.answers import QuestionSource
from ..run.questions import Question

DATA = Path(__file__).parents[3] / "playground/data/mini"


@cache
def _questions(name: str) -> QuestionSource:
    benchmark = BENCHMARKS[name]
    return benchmark.load_questions(DATA / benchmark.folder)


def _question(name: str, document: dict[str, Any]) -> Question:
    questions = _questions(name)
    position = questions.position(document["index"])
    assert position is not None, f"{name}: no question {document['index']}"
    return questions[position]


def _task(name: str) -> tuple[Callable[..., Any], ...]:
    """How a benchmark is asked, its pictures, what is noted of an answer, and the score."""
    folder = DATA / BENCHMARKS[name].folder

    def text(document: dict[str, Any]) -> str:
        return _question(name, document).model_text

    def pictures(document: dict[str, Any]) -> list[Image.Image]:
        question = _question(name, document)
        if not question.images:
            return []
        return [_questions(name).open_image(question, folder / BENCHMARKS[name].images)]

    def result(document: dict[str, Any], answers: Sequence[str]) -> dict[str, Any]:
        question = _question(name, document)
        answer = {
            "question_id": question.question_id,
            "prompt": question.prompt,
            "text": answers[0],
            "metadata": {"index": question.index},
        }
        return {BENCHMARKS[name].metric: answer}

    def score(answers: Sequence[dict[str, Any]]) -> float | None:
        benchmark = BENCHMARKS[name]
        return benchmark.score(folder, answers, allow_missing=True)[benchmark.metric]

    return text, pictures, result, score


vqav2_text, vqav2_pictures, vqav2_result, vqav2_score = _task("vqav2")
gqa_text, gqa_pictures, gqa_result, gqa_score = _task("gqa")
scienceqa_text, scienceqa_pictures, scienceqa_result, scienceqa_score = _task("scienceqa")
textvqa_text, textvqa_pictures, textvqa_result, textvqa_score = _task("textvqa")
noocr_text, noocr_pictures, noocr_result, noocr_score = _task("textvqa-noocr")
pope_text, pope_pictures, pope_result, pope_score = _task("pope")
mme_text, mme_pictures, mme_result, mme_score = _task("mme")
mmbench_text, mmbench_pictures, mmbench_result, mmbench_score = _task("mmbench")
