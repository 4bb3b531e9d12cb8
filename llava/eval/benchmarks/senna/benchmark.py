"""Senna's plans for nuScenes frames: two words each, from six camera views.

The file is eval_plan_qa.json in upstream's format (see `senna.questions`); its answers
are the annotations. Image paths are relative to the benchmark's folder. Answers are asked for as
upstream's evaluation asks: conversation `llava_v1`, greedy, up to 512 tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..base import Benchmark, File, Split, register, require_complete
from ..scoring import texts_by_id
from .plan import CAMERAS, Plan
from .questions import SennaQuestions, read_entries
from .score import score_plans

QUESTIONS = "eval_plan_qa.json"


def load_questions(folder: Path, num_chunks: int = 1, chunk_idx: int = 0) -> SennaQuestions:
    """The plan questions, or one chunk of them; raises what `SennaQuestions` raises."""
    return SennaQuestions(folder / QUESTIONS, num_chunks, chunk_idx)


def load_plans(path: Path) -> dict[str, Plan]:
    """The annotated plans by token; raises what `read_entries` raises."""
    return {entry.token: entry.plan for entry in read_entries(path)}


def score_answers(
    plans: Mapping[str, Plan], answers: Iterable[dict[str, Any]], *, allow_missing: bool = False
) -> dict[str, Any]:
    """`score_plans` of answers in LLaVA's schema, with `benchmark` and `missing`.

    Raises:
        ValueError: an answer to no question, two to one, or, unless `allow_missing`, questions
            without an answer; names them.
    """
    texts = texts_by_id(answers, plans)
    missing = [token for token in plans if token not in texts]
    require_complete(missing, len(plans), allow_missing=allow_missing)
    score = score_plans((plans[token], text) for token, text in texts.items())
    return {"benchmark": "senna", "missing": len(missing), **score}


def score(
    folder: Path, answers: Iterable[dict[str, Any]], *, allow_missing: bool = False
) -> dict[str, Any]:
    """`score_answers` with the annotations in the benchmark's folder."""
    return score_answers(load_plans(folder / QUESTIONS), answers, allow_missing=allow_missing)


BENCHMARK = register(
    Benchmark(
        name="senna",
        title="Senna plans (nuScenes)",
        folder="senna",
        splits=(
            Split(
                File(
                    QUESTIONS,
                    "not published; python -m llava.eval.benchmarks.senna.build makes them of "
                    "nuScenes' val frames",
                    "questions",
                ),
                File(".", "nuScenes from nuscenes.org, where the questions' paths lead", "images"),
                scored_as="senna",
            ),
        ),
        metric="planning_accuracy",
        load_questions=load_questions,
        score=score,
        max_new_tokens=512,
        conv_mode="llava_v1",
        program="llava.eval.model_vqa_senna",
        checkpoint="rb93dett/Senna",
        views=len(CAMERAS),
        scoring=(
            "llava.eval.eval_senna",
            "--annotation-file",
            "{questions}",
            "--result-file",
            "{answers}",
        ),
        script="senna/eval.sh",
    )
)
