"""VizWiz: soft accuracy on the val split, and the file that the server of the test split takes.

Annotations: `val.json` of VizWiz-VQA, an array of `image`, `question`, `answer_type` and ten
`answers[].answer`. LLaVA has questions of the test split only (`llava_test.jsonl`); those of val
are in a file of the same form, `llava_val.jsonl`. Each image has one question.

A question finds its annotation by image. The ids count from 0 in either split, so only its prompt
tells that an answer belongs to the split.
Score: `answer_normaliser`, for references as for answers. Copies of VizWiz's evaluation
differ in whether they normalise the references; this one compares with our TextVQA.
Rules: haotian-liu/LLaVA, scripts/convert_vizwiz_for_submission.py; annotations: vizwiz.org.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.common import json_files

from ..run.questions import Question, QuestionFile
from ..run.watched import read_once
from .answer_normaliser import normalise, soft_accuracies
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
    require_fields,
)
from .scoring import percentage, percentages_by_group, texts_by_id, write_array

NAME = "vizwiz"
QUESTIONS = "llava_val.jsonl"
ANNOTATIONS = "val.json"
UNANSWERABLE = "unanswerable"

_SERVER = (
    "Only the server scores the test split: scripts/convert_vizwiz_for_submission.py writes the "
    "file it takes."
)


@dataclass(frozen=True)
class Annotation:
    """The question about an image and its ten reference answers, as they are written."""

    question: str
    references: tuple[str, ...]
    answer_type: str | None


@dataclass(frozen=True)
class VizWizTruth:
    """The questions of the file `source` by id, each with its annotation."""

    source: Path
    entries: Mapping[str, tuple[Question, Annotation]]


def load_questions(folder: Path, num_chunks: int = 1, chunk_idx: int = 0) -> QuestionFile:
    """The questions of the val split, or one chunk of them.

    Raises:
        FileNotFoundError: no question file; says what makes it.
        ValueError: a malformed file, a wrong chunk.
    """
    return QuestionFile(_existing(folder / QUESTIONS), num_chunks, chunk_idx)


def load_annotations(path: Path) -> dict[str, Annotation]:
    """The annotations by image.

    Raises:
        FileNotFoundError: no such file; says where it comes from.
        ValueError: not VizWiz annotations with ten answers each, or an image is there twice.
    """
    existing_annotations(
        path, f"val.json is in Annotations.zip of VizWiz-VQA (vizwiz.org). {_SERVER}"
    )
    try:
        keyed = [
            _read(entry, f"{path}, entry {number}")
            for number, entry in enumerate(json_files.read(path, list), 1)
        ]
    except ValueError as error:
        raise ValueError(
            f"{error}. Expected a VizWiz annotation file like val.json (test.json has no answers). "
            f"{_SERVER}"
        ) from None
    annotations: dict[str, Annotation] = {}
    for image, annotation in keyed:
        if image in annotations:
            raise ValueError(f"{path}: two entries for the image {image}.")
        annotations[image] = annotation
    return annotations


@read_once(lambda questions, annotations: (questions, annotations))
def load_truth(question_file: Path, annotation_file: Path) -> VizWizTruth:
    """Join the questions with the annotations of their images.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: one of them is malformed, or a question is there twice, has no annotation or is
            not the one that is annotated.
    """
    annotations = load_annotations(annotation_file)
    entries: dict[str, tuple[Question, Annotation]] = {}
    for question in _questions(question_file):
        annotation = annotations.get(str(question.image))
        if annotation is None or not _words(question.text).startswith(_words(annotation.question)):
            raise ValueError(
                f"{annotation_file} does not have {question} of {question_file}, "
                f"{question.text[:120]!r} about the image {question.image}. Are both files of the "
                f"same split?"
            )
        entries[str(question.question_id)] = question, annotation
    return VizWizTruth(question_file, entries)


def score_answers(
    truth: VizWizTruth, answers: Iterable[dict[str, Any]], *, allow_missing: bool = False
) -> dict[str, Any]:
    """Mean soft accuracy, in percent, of answers in LLaVA's schema.

    Returns:
        benchmark, samples (answers scored), missing (questions without an answer, which do not
        count), accuracy (None if there is nothing to score), unanswerable (answers that say so) and
        by_answer_type (other, unanswerable, yes/no, number), each with accuracy and samples.

    Raises:
        ValueError: an answer to no question or to another one than its id says, two answers to one,
            or, unless `allow_missing`, questions without an answer; names them.
    """
    questions = {key: question for key, (question, _) in truth.entries.items()}
    texts = _join(questions, answers, truth.source, allow_missing=allow_missing)
    said = {key: normalise(text) for key, text in texts.items()}
    gold = [truth.entries[key][1] for key in said]
    scores = [
        soft_accuracies(entry.references).get(text, 0.0) for entry, text in zip(gold, said.values())
    ]
    return {
        "benchmark": NAME,
        "samples": len(said),
        "missing": len(questions) - len(said),
        "accuracy": percentage(scores),
        "unanswerable": sum(text == UNANSWERABLE for text in said.values()),
        "by_answer_type": percentages_by_group(
            (entry.answer_type, score)
            for entry, score in zip(gold, scores)
            if entry.answer_type is not None
        ),
    }


def write_submission(path: Path, question_file: Path, answers: Iterable[dict[str, Any]]) -> int:
    """Write the file for the server, [{"image", "answer"}] in the questions' order; how many.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: what `score_answers` raises; the server wants every question answered.
    """
    questions = {str(question.question_id): question for question in _questions(question_file)}
    texts = _join(questions, answers, question_file, allow_missing=False)
    return write_array(
        path,
        (
            {"image": question.image, "answer": normalise(texts[key])}
            for key, question in questions.items()
        ),
    )


def submit(
    target: Path, folder: Path, question_file: Path, answers: Iterable[dict[str, Any]]
) -> dict[str, int]:
    """`write_submission`, counted."""
    return {"answers": write_submission(target, question_file, answers)}


def score(
    folder: Path, answers: Iterable[dict[str, Any]], *, allow_missing: bool = False
) -> dict[str, Any]:
    """`score_answers` with the questions and annotations of val in the benchmark's folder."""
    truth = load_truth(folder / QUESTIONS, folder / ANNOTATIONS)
    return score_answers(truth, answers, allow_missing=allow_missing)


def _read(entry: Any, where: str) -> tuple[str, Annotation]:
    """An annotation, behind its image."""
    fields = {"image": str, "question": str, "answers": list}
    json_files.check(entry, where, fields, optional={"answer_type": str})
    references = read_references(entry["answers"], where)
    return entry["image"], Annotation(entry["question"], references, entry.get("answer_type"))


def _existing(path: Path) -> Path:
    source = (
        "scripts/write_val_questions.py --benchmark vizwiz makes it from val.json"
        if path.name == QUESTIONS
        else "llava_test.jsonl is in vizwiz/ of LLaVA's eval.zip"
    )
    return existing(path, f"{source}. {_SERVER}", "Question file ")


def _questions(path: Path) -> Sequence[Question]:
    """The questions of a file, each about an image and with an id of its own."""
    file = QuestionFile(_existing(path))
    questions = [file[position] for position in range(len(file))]
    ids: set[str] = set()
    for question in questions:
        if str(question.question_id) in ids or question.image is None:
            raise ValueError(
                f"{path}: {question} has no image, or its id is that of another question. Expected "
                f"a file like llava_test.jsonl in LLaVA's eval.zip."
            )
        ids.add(str(question.question_id))
    return questions


def _join(
    questions: Mapping[str, Question],
    answers: Iterable[dict[str, Any]],
    source: Path,
    *,
    allow_missing: bool,
) -> dict[str, str]:
    """The text of each answer by question id."""

    def check_prompt(key: str, answer: dict[str, Any]) -> None:
        require_fields(answer, "prompt")
        question = questions[key]
        if _words(answer["prompt"]) != _words(question.text):
            raise ValueError(
                f"the answer to {question} has the prompt {answer['prompt'][:120]!r}, but "
                f"{source} asks {question.text[:120]!r}. Are they answers to the other split?"
            )

    texts = texts_by_id(answers, questions, check_prompt)
    missing = [key for key in questions if key not in texts]
    require_complete(missing, len(questions), allow_missing=allow_missing)
    return texts


def _words(text: str) -> str:
    return " ".join(text.split())


_VAL = Split(
    File(
        QUESTIONS,
        "made from val.json",
        "questions",
        "python scripts/write_val_questions.py --benchmark vizwiz --dir {folder}",
    ),
    File("val", "val.zip of VizWiz-VQA from vizwiz.org", "images"),
    (File(ANNOTATIONS, "Annotations.zip of VizWiz-VQA from vizwiz.org"),),
    scored_as=NAME,
    names="(^|_)val",
    decided_by=ANNOTATIONS,
    apart=True,
)
_TEST = Split(
    question_list(
        "vizwiz",
        "llava_test.jsonl",
        "To be scored here, not by the server, the val split needs\n"
        f"{ANNOTATIONS} of VizWiz-VQA from vizwiz.org in this folder",
    ),
    File("test", "test.zip of VizWiz-VQA from vizwiz.org", "images"),
    submission=Submission(
        submit,
        "the VizWiz server",
        "The test split is scored by the VizWiz server on eval.ai (challenge 1911); it takes "
        "{file}",
    ),
    apart=True,
)
BENCHMARK = register(
    Benchmark(
        name=NAME,
        title="VizWiz (val)",
        folder="vizwiz",
        splits=(_VAL, _TEST),
        metric="accuracy",
        load_questions=load_questions,
        score=score,
        script="vizwiz.sh",
    )
)
