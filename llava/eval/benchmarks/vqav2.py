"""VQAv2: accuracy on val2014, and the file that the server of test-dev and test takes.

Annotations: `v2_mscoco_val2014_annotations.json`, `annotations[]` with `question_id`,
`question_type`, `answer_type` and ten `answers[].answer`. LLaVA has questions of test-dev only;
those of val2014 are in a file of the same form.

A score is what the server gives the file that LLaVA uploads, so an answer goes through two steps:
1. LLaVA's conversion, `llava.eval.benchmarks.answer_normaliser.normalise`.
2. The official evaluation. Where the ten references differ, they and the answer lose punctuation,
   articles, number words and missing apostrophes; where all ten are the same, nothing more happens
   to either, and the answer must equal the reference as it is written.
The first step separates "'s" and joins what commas separate, the second does neither to the
references: "men's" and "red,white" can therefore not match themselves, on the server as here.
The accuracy of an answer is the mean of min(1, matches / 3) over the ten ways to leave one
reference out.
Rules: GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py; haotian-liu/LLaVA,
scripts/convert_vqav2_for_submission.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.common import json_files

from ..run.questions import QuestionFile, parse_question
from ..run.watched import read_once, the_path
from .answer_normaliser import normalise, normalise_official
from .base import (
    Benchmark,
    File,
    Split,
    Submission,
    existing,
    existing_annotations,
    question_list,
    read_references,
    register,
    require_complete,
)
from .scoring import percentage, percentages_by_group, texts_by_id, write_array

QUESTIONS = "llava_vqav2_mscoco_val2014.jsonl"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
TEST_FILE = "llava_vqav2_mscoco_test2015.jsonl"


@dataclass(frozen=True)
class Annotation:
    """The ten reference answers to a question, written as they are, and its types."""

    references: tuple[str, ...]
    answer_type: str
    question_type: str


def load_questions(folder: Path, num_chunks: int = 1, chunk_idx: int = 0) -> QuestionFile:
    """The questions of val2014, or one chunk of them.

    Raises:
        FileNotFoundError: no question file; says what goes into it.
        ValueError: a malformed file, a wrong chunk.
    """
    path = existing(
        folder / QUESTIONS,
        "LLaVA does not have it; scripts/write_val_questions.py makes it of "
        "v2_OpenEnded_mscoco_val2014_questions.json (visualqa.org).",
    )
    return QuestionFile(path, num_chunks, chunk_idx)


@read_once(the_path)
def load_annotations(path: Path) -> dict[str, Annotation]:
    """The annotations by question id.

    Raises:
        FileNotFoundError: no such file; says where it comes from.
        ValueError: not VQA annotations with ten answers each, or a question is there twice.
    """
    existing_annotations(path, "v2_mscoco_val2014_annotations.json comes from visualqa.org.")
    try:
        content = json_files.check(json_files.read(path), path, {"annotations": list})
        keyed = [
            _read(entry, f"{path}, annotation {number}")
            for number, entry in enumerate(content["annotations"], 1)
        ]
    except ValueError as error:
        raise ValueError(
            f"{error}. Expected a VQA annotation file like v2_mscoco_val2014_annotations.json (the "
            f"file of the questions has no answers)."
        ) from None
    annotations: dict[str, Annotation] = {}
    for key, annotation in keyed:
        if key in annotations:
            raise ValueError(f"{path}: two entries for question {key}.")
        annotations[key] = annotation
    return annotations


def accuracy(text: str, references: Sequence[str]) -> float:
    """Accuracy in [0, 1] of what the model answered, by the two steps above."""
    answer = normalise(text)
    if len(set(references)) > 1:
        answer = normalise_official(answer)
        references = [normalise_official(reference) for reference in references]
    equal = references.count(answer)
    left_out = [min(1, (equal - (reference == answer)) / 3) for reference in references]
    return sum(left_out) / len(left_out)


def score_answers(
    annotations: dict[str, Annotation],
    answers: Iterable[dict[str, Any]],
    *,
    allow_missing: bool = False,
) -> dict[str, Any]:
    """Mean accuracy, in percent, of answers in LLaVA's schema.

    Returns:
        benchmark, samples (answers scored), missing (questions without an answer, which do not
        count), accuracy (None if there is nothing to score), by_answer_type (yes/no, number,
        other) and by_question_type, each group with accuracy and samples.

    Raises:
        ValueError: an answer to a question that is not annotated, two answers to one, or, unless
            `allow_missing`, questions without an answer; names them.
    """
    texts = texts_by_id(answers, annotations)
    missing = [key for key in annotations if key not in texts]
    require_complete(missing, len(annotations), allow_missing=allow_missing)
    gold = [annotations[key] for key in texts]
    scores = [accuracy(text, entry.references) for text, entry in zip(texts.values(), gold)]
    return {
        "benchmark": "vqav2",
        "samples": len(texts),
        "missing": len(missing),
        "accuracy": percentage(scores),
        "by_answer_type": percentages_by_group(zip((g.answer_type for g in gold), scores)),
        "by_question_type": percentages_by_group(zip((g.question_type for g in gold), scores)),
    }


def write_submission(
    path: Path,
    answers: Iterable[dict[str, Any]],
    test_file: Path,
    *,
    question_file: Path | None = None,
    allow_missing: bool = False,
) -> dict[str, int]:
    """Write the file for the test server, [{"question_id", "answer"}].

    The server wants every question of `test_file` (LLaVA's llava_vqav2_mscoco_test2015.jsonl),
    whichever split it scores; those without an answer get an empty one. `question_file` is the
    question file that was answered, say test-dev: none of its questions may then lack an answer.

    Returns:
        questions (in the file written), answered and unanswered.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: an answer to a question that is not in `test_file`, two answers to one, no
            answer at all, or, unless `allow_missing`, a question of `question_file` without one.
    """
    ids = {str(question_id): question_id for question_id in _question_ids(test_file)}
    texts = texts_by_id(answers, ids)
    if not texts:
        raise ValueError("there are no answers to submit.")
    if question_file is not None:
        wanted = [str(question_id) for question_id in _question_ids(question_file)]
        missing = [key for key in wanted if key not in texts]
        require_complete(missing, len(wanted), allow_missing=allow_missing)
    count = write_array(
        path,
        (
            {"question_id": question_id, "answer": normalise(texts[key]) if key in texts else ""}
            for key, question_id in ids.items()
        ),
    )
    return {"questions": count, "answered": len(texts), "unanswered": count - len(texts)}


def score(
    folder: Path, answers: Iterable[dict[str, Any]], *, allow_missing: bool = False
) -> dict[str, Any]:
    """`score_answers` with the annotations in the benchmark's folder."""
    return score_answers(
        load_annotations(folder / ANNOTATIONS), answers, allow_missing=allow_missing
    )


def submit(
    target: Path, folder: Path, question_file: Path, answers: Iterable[dict[str, Any]]
) -> dict[str, int]:
    """`write_submission` of answers to test-dev, with the questions of test in the folder."""
    return write_submission(target, answers, folder / TEST_FILE, question_file=question_file)


def _read(entry: Any, where: str) -> tuple[str, Annotation]:
    """An annotation, behind the id of its question."""
    types = {"answer_type": str, "question_type": str}
    json_files.check(entry, where, {"question_id": (str, int), "answers": list, **types})
    references = tuple(map(_strip, read_references(entry["answers"], where)))
    annotation = Annotation(references, entry["answer_type"], entry["question_type"])
    return str(entry["question_id"]), annotation


def _question_ids(path: Path) -> list[str | int]:
    """The ids in a question file, in its order."""
    existing(path, "it is in vqav2/ of LLaVA's eval.zip.", "Question file ")
    with path.open("rb") as file:
        lines = ((index, line) for index, line in enumerate(file) if line.strip())
        ids = [parse_question(line, index, path).question_id for index, line in lines]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{path}: question ids repeat, and the server takes one answer to each.")
    return ids


def _strip(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


_VAL = Split(
    File(
        QUESTIONS,
        "v2_OpenEnded_mscoco_val2014_questions.json from visualqa.org, of which they are made",
        "questions",
        "python scripts/write_val_questions.py --benchmark vqav2 --dir {folder}",
    ),
    File("val2014", "val2014.zip from cocodataset.org", "images"),
    (File(ANNOTATIONS, "visualqa.org"),),
    scored_as="vqav2",
    names="(^|_)val",
    decided_by=ANNOTATIONS,
    apart=True,
)
_TEST_DEV = Split(
    question_list(
        "vqav2",
        "llava_vqav2_mscoco_test-dev2015.jsonl",
        "To be scored here, not by the server, val2014 needs\n"
        f"{ANNOTATIONS} from visualqa.org in this folder",
    ),
    File("test2015", "test2015.zip from cocodataset.org", "images"),
    (File(TEST_FILE, "vqav2/ of LLaVA's eval.zip", "all questions of the server"),),
    submission=Submission(
        submit,
        "the VQA server",
        "test-dev is scored by the VQA server on eval.ai (challenge 830); it takes {file}",
    ),
    apart=True,
)
BENCHMARK = register(
    Benchmark(
        name="vqav2",
        title="VQAv2 (val2014)",
        folder="vqav2",
        splits=(_VAL, _TEST_DEV),
        metric="accuracy",
        load_questions=load_questions,
        score=score,
        script="vqav2.sh",
    )
)
