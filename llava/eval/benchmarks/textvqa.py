"""TextVQA (validation, v0.5.1), with OCR tokens in the prompt or without: questions and score.

Questions: `llava_textvqa_val_v051_ocr.jsonl`, each the question, a line of OCR tokens and the
instruction. The variant without OCR asks those of `llava_textvqa_val_v051.jsonl`, the same lines
without their second one. Annotations of both: `TextVQA_0.5.1_val.json`, `data[]` with `image_id`,
`question` and ten `answers`. The ids of LLaVA's questions are image ids and repeat, so an answer
finds its annotation by image id and lower-cased question, and the question is read off the logged
prompt. With the OCR tokens of the data set in the prompt LLaVA-1.5-7B is published at 58.2, without
them it reaches about 46: every score says which it is, and neither variant takes answers to the
prompts of the other.
Rules: haotian-liu/LLaVA, llava/eval/eval_textvqa.py; score: `answer_normaliser`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llava.common import json_files

from ..run.questions import QuestionFile
from ..run.watched import read_once, the_path
from .answer_normaliser import REFERENCES, normalise, soft_accuracies
from .base import (
    Benchmark,
    File,
    Split,
    existing,
    existing_annotations,
    question_list,
    register,
    require_complete,
    require_fields,
)

NAME = "textvqa"
NAME_NO_OCR = "textvqa-noocr"
QUESTIONS = "llava_textvqa_val_v051_ocr.jsonl"
QUESTIONS_NO_OCR = "llava_textvqa_val_v051.jsonl"
ANNOTATIONS = "TextVQA_0.5.1_val.json"

_M4C_PREFIX = "OCR tokens: "
_M4C_QUESTION = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)
_OCR_LINE = "Reference OCR token: "
_SOURCES = {
    QUESTIONS: "it is in textvqa/ of LLaVA's eval.zip.",
    QUESTIONS_NO_OCR: (
        f"it is the official {QUESTIONS} (textvqa/ of LLaVA's eval.zip) without the OCR lines: in "
        f"each text, without the line that starts with {_OCR_LINE!r}."
    ),
}

# What a score calls the prompts, and which of them each variant of the benchmark takes.
_WITH, _EMPTY, _WITHOUT, _MIXED = (
    "with OCR tokens",
    "with empty OCR lines",
    "without OCR tokens",
    "mixed",
)
_PROMPTS = {NAME: (_WITH, _EMPTY), NAME_NO_OCR: (_WITHOUT,)}

Key = tuple[str, str]


@dataclass(frozen=True)
class Prompt:
    """What a logged prompt tells: the question in lower case, whether it had the line for OCR
    tokens, and whether that line was empty."""

    question: str
    with_ocr: bool
    empty: bool = False


def read_prompt(prompt: str) -> Prompt:
    """Recover the question from a logged prompt.

    Raises:
        ValueError: it has none of the three forms in which LLaVA asks TextVQA questions.
    """
    lines = prompt.split("\n")
    if prompt.startswith(_M4C_PREFIX) and (match := _M4C_QUESTION.search(prompt)):
        return Prompt(match[1].lower(), with_ocr=True)
    if _OCR_LINE in prompt and len(lines) == 3:
        hint, question = lines[:2] if prompt.startswith(_OCR_LINE) else lines[1::-1]
        return Prompt(question.lower(), with_ocr=True, empty=hint.strip() == _OCR_LINE.strip())
    if len(lines) == 2:
        return Prompt(lines[0].lower(), with_ocr=False)
    raise ValueError(
        f"not a TextVQA prompt: {prompt[:200]!r}. Expected the question, {_OCR_LINE!r} with tokens "
        f"(or without that line) and the instruction, a line each."
    )


@read_once(the_path)
def load_annotations(path: Path) -> dict[Key, list[str]]:
    """The ten reference answers of each (image id, lower-cased question).

    Raises:
        FileNotFoundError: no such file; says where it comes from.
        ValueError: not TextVQA annotations with ten answers each, or a question is there twice.
    """
    existing_annotations(path, "TextVQA_0.5.1_val.json comes from textvqa.org.")
    try:
        content = json_files.check(json_files.read(path), path, {"data": list})
        keyed = [
            _read(entry, f"{path}, entry {number}")
            for number, entry in enumerate(content["data"], 1)
        ]
    except ValueError as error:
        raise ValueError(
            f"{error}. Expected a TextVQA annotation file like TextVQA_0.5.1_val.json (the test "
            f"file has no answers)."
        ) from None
    annotations: dict[Key, list[str]] = {}
    for key, answers in keyed:
        if key in annotations:
            raise ValueError(f"{path}: two entries for {_name(key)}.")
        annotations[key] = answers
    return annotations


def score_answers(
    annotations: dict[Key, list[str]],
    answers: Iterable[dict[str, Any]],
    *,
    allow_missing: bool = False,
    name: str = NAME,
) -> dict[str, Any]:
    """Mean soft accuracy, in percent, of answers in LLaVA's schema, whatever their prompts.

    Returns:
        benchmark (`name`), prompts ("with OCR tokens", "with empty OCR lines", "without OCR tokens"
        or "mixed"), samples (answers scored), missing (questions without an answer, which do not
        count), accuracy (None if there is nothing to score).

    Raises:
        ValueError: an answer to a question that is not annotated, two answers to one, or, unless
            `allow_missing`, questions without an answer; names them.
    """
    total = 0.0
    seen: set[Key] = set()
    with_ocr = empty = 0
    for answer in answers:
        require_fields(answer, "question_id", "prompt", "text")
        prompt = read_prompt(answer["prompt"])
        key = (str(answer["question_id"]), prompt.question)
        if key not in annotations:
            raise ValueError(
                f"answer to {_name(key)}, which the annotations do not have. Are both files of "
                f"the same TextVQA version and split?"
            )
        if key in seen:
            raise ValueError(f"two answers to {_name(key)}. Remove one of them.")
        seen.add(key)
        with_ocr += prompt.with_ocr
        empty += prompt.empty
        total += soft_accuracies(annotations[key]).get(normalise(answer["text"]), 0.0)
    missing = [key for key in annotations if key not in seen]
    require_complete(missing, len(annotations), allow_missing=allow_missing, name=_name)
    return {
        "benchmark": name,
        "prompts": _variant(with_ocr, empty, len(seen)),
        "samples": len(seen),
        "missing": len(missing),
        "accuracy": 100 * total / len(seen) if seen else None,
    }


def load_questions(
    folder: Path, num_chunks: int = 1, chunk_idx: int = 0, *, file: str = QUESTIONS
) -> QuestionFile:
    """The questions in one of the two files of the benchmark's folder, or one chunk of them.

    Raises:
        FileNotFoundError: no such question file; says where it comes from.
        ValueError: a malformed file, a wrong chunk.
    """
    path = existing(folder / file, _SOURCES[file])
    return QuestionFile(path, num_chunks, chunk_idx)


def score(
    folder: Path,
    answers: Iterable[dict[str, Any]],
    *,
    allow_missing: bool = False,
    name: str = NAME,
) -> dict[str, Any]:
    """`score_answers` with the annotations in the benchmark's folder, for one of the two variants.

    Raises ValueError also for answers to the prompts of the other variant.
    """
    annotations = load_annotations(folder / ANNOTATIONS)
    result = score_answers(annotations, answers, allow_missing=allow_missing, name=name)
    if result["samples"] and result["prompts"] not in _PROMPTS[name]:
        raise ValueError(
            f"the prompts of these answers are {result['prompts']}, but those of {name} are "
            f"{' or '.join(_PROMPTS[name])}. Scores with and without OCR tokens do not compare: "
            f"{NAME} is the benchmark with them, {NAME_NO_OCR} the one without."
        )
    return result


def _read(entry: Any, where: str) -> tuple[Key, list[str]]:
    """The reference answers of an entry, behind its key."""
    json_files.check(entry, where, {"image_id": (str, int), "question": str, "answers": list})
    answers = entry["answers"]
    if len(answers) != REFERENCES or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(
            f"{where}: expected {REFERENCES} answers, each a text, got "
            f"{json_files.shorten(answers)}"
        )
    return (str(entry["image_id"]), entry["question"].lower()), answers


def _variant(with_ocr: int, empty: int, total: int) -> str:
    if 0 < with_ocr < total:
        return _MIXED
    # Some pictures of the real benchmark have no tokens; a set in which none has any is another.
    if 0 < with_ocr == empty:
        return _EMPTY
    return _WITH if with_ocr else _WITHOUT


def _name(key: Key) -> str:
    return f"image {key[0]}, question {key[1]!r}"


_IMAGES = File("train_images", "train_val_images.zip from textvqa.org", "images")
_TRUTH = (File(ANNOTATIONS, "textvqa.org"),)
_WITH_OCR = Split(question_list("textvqa", QUESTIONS), _IMAGES, _TRUTH, scored_as=NAME)
# Without OCR tokens it is another benchmark, whose scores do not compare.
_WITHOUT_OCR = Split(
    File(QUESTIONS_NO_OCR, f"{QUESTIONS} without the OCR lines", "questions"),
    _IMAGES,
    _TRUTH,
    scored_as=NAME_NO_OCR,
    names=f"^{re.escape(QUESTIONS_NO_OCR)}$",
    apart=True,
)
BENCHMARK = register(
    Benchmark(
        name=NAME,
        title="TextVQA",
        folder="textvqa",
        splits=(_WITHOUT_OCR, _WITH_OCR),
        metric="accuracy",
        load_questions=partial(load_questions, file=QUESTIONS),
        score=partial(score, name=NAME),
        script="textvqa.sh",
    )
)
BENCHMARK_NO_OCR = register(
    Benchmark(
        name=NAME_NO_OCR,
        title="TextVQA (no OCR)",
        folder="textvqa",
        splits=(_WITHOUT_OCR,),
        metric="accuracy",
        load_questions=partial(load_questions, file=QUESTIONS_NO_OCR),
        score=partial(score, name=NAME_NO_OCR),
    )
)
