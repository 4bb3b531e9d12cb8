"""MM-Vet: its questions, the file that its grader takes, and the score from the grader's file.

Questions: `llava-mm-vet.jsonl`, free ones without any instruction. Answers are free text, and
MM-Vet has GPT-4 grade each against a reference, from 0.0 to 1.0 in tenths; no rule replaces that.
`write_submission` gives its evaluator what to grade, `{"v1_<id>": text}`. What the evaluator
writes, `<model>_<grader>-grade-<n>runs.json`, is read back: `{"v1_<id>": {"model", "content",
"score"}}`, each a list with an entry for every time the answer was graded. `mm-vet.json` names the
capabilities (rec, ocr, know, gen, spat, math) that a question needs.

The total is the mean grade in percent, the mean of the gradings; LLaVA-1.5-7B is published at 31.1.
Rules: yuweihao/MM-Vet, mm-vet_evaluator.py; haotian-liu/LLaVA, scripts/convert_mmvet_for_eval.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, NoReturn

from llava.common import json_files

from ..run.questions import QuestionFile
from .base import (
    Benchmark,
    File,
    Split,
    Submission,
    existing,
    question_list,
    register,
    require_complete,
)
from .scoring import percentages_by_group, texts_by_id

NAME = "mmvet"
QUESTIONS = "llava-mm-vet.jsonl"
GRADING = (
    "MM-Vet is graded by GPT-4, not here. scripts/convert_mmvet_for_eval.py --src ANSWERS.jsonl "
    "--dst RESULTS.json writes what its evaluator takes (mm-vet_evaluator of yuweihao/MM-Vet); "
    "python -m llava.eval.eval_mmvet --annotation-file mm-vet.json --grade-file GRADES.json reads "
    "what the evaluator then writes."
)


def load_questions(folder: Path, num_chunks: int = 1, chunk_idx: int = 0) -> QuestionFile:
    """The questions, or one chunk of them.

    Raises:
        FileNotFoundError: no question file; says where it comes from.
        ValueError: a malformed file, a wrong chunk.
    """
    return QuestionFile(_questions(folder / QUESTIONS), num_chunks, chunk_idx)


def write_submission(
    path: Path, answers: Iterable[dict[str, Any]], question_file: Path | None = None
) -> int:
    """Write the file for MM-Vet's evaluator, {"v1_<id>": text}; how many answers there are.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: no answer at all, two to one question, or, given the question file, an answer to
            none of its questions or a question without an answer.
    """
    ids: list[str] | None = None
    if question_file is not None:
        file = QuestionFile(_questions(question_file))
        ids = [str(file[position].question_id) for position in range(len(file))]
    texts = texts_by_id(answers, ids)
    if not texts:
        raise ValueError("there are no answers to grade.")
    if ids is not None:
        missing = [key for key in ids if key not in texts]
        require_complete(missing, len(ids), allow_missing=False)
    results = {f"v1_{key}": text for key, text in texts.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2), encoding="utf-8")
    return len(results)


def load_capabilities(path: Path) -> dict[str, tuple[str, ...]]:
    """The capabilities that each question of `mm-vet.json` needs, sorted, by its id `v1_<id>`.

    Raises:
        FileNotFoundError: no such file; says where it comes from.
        ValueError: not MM-Vet's file.
    """
    existing(path, "mm-vet.json is in mm-vet.zip of MM-Vet.")
    try:
        lists = _lists(path, "capability", str)
    except ValueError as error:
        raise ValueError(f"{error}. Expected MM-Vet's mm-vet.json.") from None
    result = {key: tuple(sorted(set(names))) for key, names in lists.items()}
    if not result or not all(result.values()):
        raise ValueError(f"{path} has no questions, or one without a capability.")
    return result


def load_grades(path: Path) -> dict[str, list[float]]:
    """The grades in [0, 1] of each answer, one for every time it was graded.

    Raises:
        FileNotFoundError: no such file; says what writes it.
        ValueError: not a grade file, a grade outside 0 to 1, or answers graded more often than
            others.
    """
    existing(path, GRADING, "Grade file ")
    try:
        grades = _lists(path, "score", float)
    except ValueError as error:
        raise ValueError(f"{error}. Expected a grade file of MM-Vet. {GRADING}") from None
    if not grades:
        raise ValueError(f"{path} has no grades.")
    runs = len(next(iter(grades.values())))
    for key, marks in grades.items():
        if len(marks) != runs or not runs:
            raise ValueError(
                f"{path}: {key} was graded {len(marks)} times, other answers {runs} times. Let "
                f"MM-Vet's evaluator finish."
            )
        if not all(0 <= grade <= 1 for grade in marks):
            raise ValueError(f"{path}: grades from 0 to 1 were expected of {key}, got {marks}.")
    return grades


def score_grades(
    capabilities: Mapping[str, tuple[str, ...]],
    grades: Mapping[str, Sequence[float]],
    *,
    allow_missing: bool = False,
) -> dict[str, Any]:
    """Mean grades, in percent.

    Returns:
        benchmark, samples (answers with grades), missing, gradings (how often each was graded),
        total (the mean of the gradings' totals), deviation (their standard deviation),
        by_capability and by_capabilities (exactly these together), each with accuracy and samples.

    Raises:
        ValueError: grades of no question, or, unless `allow_missing`, a question without grades.
    """
    if unknown := [key for key in grades if key not in capabilities]:
        raise ValueError(f"grades of {unknown[0]}, which mm-vet.json does not have.")
    missing = [key for key in capabilities if key not in grades]
    require_complete(missing, len(capabilities), allow_missing=allow_missing)
    totals = [100 * fmean(grading) for grading in zip(*grades.values())]
    means = [(capabilities[key], fmean(marks)) for key, marks in grades.items()]
    return {
        "benchmark": NAME,
        "samples": len(grades),
        "missing": len(missing),
        "gradings": len(totals),
        "total": fmean(totals),
        "deviation": pstdev(totals),
        "by_capability": percentages_by_group(
            (name, mean) for needs, mean in means for name in needs
        ),
        "by_capabilities": percentages_by_group(("_".join(needs), mean) for needs, mean in means),
    }


def submit(
    target: Path, folder: Path, question_file: Path, answers: Iterable[dict[str, Any]]
) -> dict[str, int]:
    """`write_submission`, counted."""
    return {"answers": write_submission(target, answers, question_file)}


def score(
    folder: Path, answers: Iterable[dict[str, Any]], *, allow_missing: bool = False
) -> NoReturn:
    """Raises ValueError: there is no score of answers without the grader; says what to do."""
    raise ValueError(GRADING)


def _lists(path: Path, field: str, expected: type) -> dict[str, list[Any]]:
    """By question id like v1_0, the list that a file has as this field, of values of one type."""
    result: dict[str, list[Any]] = {}
    for key, entry in json_files.read(path).items():
        where = f"{path}, question {json_files.shorten(key)}"
        result[key] = json_files.check(entry, where, {field: list})[field]
        for number, value in enumerate(result[key], 1):
            json_files.check({field: value}, f"{where}, number {number}", {field: expected})
    return result


def _questions(path: Path) -> Path:
    return existing(path, "llava-mm-vet.jsonl is in mm-vet/ of LLaVA's eval.zip.", "Question file ")


BENCHMARK = register(
    Benchmark(
        name=NAME,
        title="MM-Vet",
        folder="mm-vet",
        splits=(
            Split(
                question_list("mm-vet", QUESTIONS),
                File("images", "mm-vet.zip in the releases of yuweihao/MM-Vet on GitHub", "images"),
                submission=Submission(submit, "MM-Vet's GPT-4 grader", GRADING),
            ),
        ),
        metric="total",
        load_questions=load_questions,
        score=score,
        max_new_tokens=1024,
        program="llava.eval.model_vqa",
        script="mmvet.sh",
    )
)
