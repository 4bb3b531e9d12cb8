"""ScienceQA (test split): questions from LLaVA's array, truth from the data set's `problems.json`.

`llava_test_CQM-A.json` is an array of `{"id", "image"?, "conversations": [human, gpt]}`. The human
turn holds context, question and lettered choices, `<image>` in front or behind where there is a
picture; 2,017 of the 4,241 questions have one, the others are asked without any.
`pid_splits.json` says which ids are in a split and `problems.json` has `choices`, `answer` (an
index into them), `image`, `subject` and `grade` of each.

Headline is the accuracy on questions with an image (71.6 for LLaVA-1.5 13B), beside it that on all
questions (74.4). LLaVA's scorer takes a question to have an image if its logged prompt says so, and
an unanswered one to be wrong and without image, so a run that broke off shows too high an IMG
accuracy. Here `problems.json` decides about images, and unanswered questions are an error or, where
that is allowed, left out of every number.
Rules: haotian-liu/LLaVA, llava/eval/model_vqa_science.py and llava/eval/eval_science_qa.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.common import json_files
from llava.constants import DEFAULT_IMAGE_TOKEN

from ..run.question_list import QuestionList, file_digest
from ..run.questions import Question
from ..run.watched import read_once, the_path
from .base import (
    Benchmark,
    File,
    Split,
    existing,
    question_list,
    register,
    require_complete,
    require_fields,
)
from .scoring import percentage, percentages_by_group, texts_by_id

NAME = "scienceqa"
QUESTION_FILE = "llava_test_CQM-A.json"
_FILES = ("pid_splits.json", "problems.json", QUESTION_FILE)
INSTRUCTION = "Answer with the option's letter from the given choices directly."
LETTERS = "ABCDE"
FAILED = "FAILED"

# Any character ends the letter, as in LLaVA's program: "The answer is B" at the very end fails.
_SENTENCE = re.compile(r"The answer is ([A-Z]).")
_GRADE = re.compile(r"grade(\d+)")


@dataclass(frozen=True)
class Problem:
    """What scoring needs of a problem; `letter` is the right answer."""

    letter: str
    choices: int
    has_image: bool
    subject: str | None = None
    grade: str | None = None


@dataclass(frozen=True)
class Graded:
    """One answer: `parsed` is a letter or FAILED, `text` and `prompt` are the logged ones."""

    question_id: str
    problem: Problem
    parsed: str
    text: str
    prompt: str

    @property
    def choice(self) -> int:
        """Index of the chosen answer, -1 for none of the problem's choices."""
        return LETTERS[: self.problem.choices].find(self.parsed)

    @property
    def correct(self) -> bool:
        return self.choice == LETTERS.index(self.problem.letter)


def read_questions(
    path: Path, num_chunks: int = 1, chunk_idx: int = 0, *, instruction: str | None = INSTRUCTION
) -> QuestionList:
    """The questions of a file like `llava_test_CQM-A.json`, each followed by `instruction`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, an id twice, an image token without an image, a wrong chunk.
    """
    questions = []
    for index, (question_id, entry) in enumerate(_read_entries(path).items()):
        human, image = entry["conversations"][0]["value"], entry.get("image")
        if DEFAULT_IMAGE_TOKEN in human and not image:
            raise ValueError(f"{path}: {question_id!r} has {DEFAULT_IMAGE_TOKEN} but no `image`.")
        text = human.replace(DEFAULT_IMAGE_TOKEN, "").strip()
        if instruction is not None:
            text = f"{text}\n{instruction}"
        # LLaVA's scorer takes from the logged prompt whether there was an image.
        logged = f"{DEFAULT_IMAGE_TOKEN}\n{text}" if image else None
        questions.append(Question(index, question_id, text, image or None, logged))
    return QuestionList(path, file_digest(path, instruction), questions, num_chunks, chunk_idx)


@read_once(lambda folder, split="test": (folder / name for name in _FILES))
def load_problems(folder: Path, split: str = "test") -> dict[str, Problem]:
    """The problems of a split, by id, in the order of `pid_splits.json`.

    Raises:
        FileNotFoundError: one of the two files is missing; says where it comes from.
        ValueError: they are not ScienceQA's, have no such split, or contradict LLaVA's question
            file where that is in the folder too.
    """
    splits, problems = (_read_json(folder / name) for name in _FILES[:2])
    ids = splits.get(split)
    if not isinstance(ids, list) or not all(isinstance(problem_id, str) for problem_id in ids):
        raise ValueError(
            f"{folder / 'pid_splits.json'} has no list of ids for the split {split!r}, only "
            f"{', '.join(map(json_files.shorten, splits))}."
        )
    result: dict[str, Problem] = {}
    for problem_id in ids:
        where = f"{folder / 'problems.json'}, problem {problem_id!r}"
        if problem_id in result:
            raise ValueError(f"{folder / 'pid_splits.json'}: {problem_id!r} is in {split} twice.")
        if problem_id not in problems:
            raise ValueError(f"{where}, which pid_splits.json has in {split}, is not there.")
        result[problem_id] = _problem(problems[problem_id], where)
    question_file = folder / QUESTION_FILE
    if question_file.is_file():
        _require_same_truth(result, question_file)
    return result


def parse_answer(text: str) -> str:
    """The letter that an answer gives, or FAILED.

    It is the whole text if that is one of A to E, else its first character if that is one of them
    and ". " follows, else the letter of the only "The answer is X" with a character behind it.
    """
    if len(text) == 1 and text in LETTERS:
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    letters = _SENTENCE.findall(text)
    return letters[0] if len(letters) == 1 else FAILED


def grade(
    problems: dict[str, Problem], answers: Iterable[dict[str, Any]], *, allow_missing: bool = False
) -> list[Graded]:
    """Answers in LLaVA's schema, joined with their problems by id, in the order of the problems.

    Raises:
        ValueError: an answer to no problem, or one logged with an image to a problem without, two
            answers to one problem, or, unless `allow_missing`, a problem without an answer.
    """
    prompts: dict[str, str] = {}

    def note_prompt(question_id: str, answer: dict[str, Any]) -> None:
        require_fields(answer, "prompt")
        prompt = answer["prompt"]
        if DEFAULT_IMAGE_TOKEN in prompt and not problems[question_id].has_image:
            raise ValueError(f"question {question_id} was asked with an image, but has none.")
        prompts[question_id] = prompt

    texts = texts_by_id(answers, problems, note_prompt)
    missing = [question_id for question_id in problems if question_id not in texts]
    require_complete(missing, len(problems), allow_missing=allow_missing)
    return [
        Graded(question_id, problem, parse_answer(text), text, prompts[question_id])
        for question_id, problem in problems.items()
        if (text := texts.get(question_id)) is not None
    ]


def summarise(graded: list[Graded], total: int) -> dict[str, Any]:
    """The score, in percent, of graded answers to `total` questions.

    Returns:
        benchmark, samples, missing, correct, accuracy, img_samples, img_accuracy, failed (answers
        without a letter, which count as wrong), subjects and grades: for each that the problems
        name, its samples and accuracy. An accuracy without samples is None.
    """
    with_image = [entry for entry in graded if entry.problem.has_image]
    return {
        "benchmark": NAME,
        "samples": len(graded),
        "missing": total - len(graded),
        "correct": sum(entry.correct for entry in graded),
        "accuracy": percentage([entry.correct for entry in graded]),
        "img_samples": len(with_image),
        "img_accuracy": percentage([entry.correct for entry in with_image]),
        "failed": sum(entry.parsed == FAILED for entry in graded),
        "subjects": _by("subject", graded),
        "grades": _by("grade", graded),
    }


def load_questions(folder: Path, num_chunks: int = 1, chunk_idx: int = 0) -> QuestionList:
    """The questions of the benchmark in `folder`, see `read_questions`."""
    return read_questions(folder / QUESTION_FILE, num_chunks, chunk_idx)


def score(
    folder: Path, answers: Iterable[dict[str, Any]], *, allow_missing: bool = False
) -> dict[str, Any]:
    """Score answers, also those of LLaVA's own files, on the test split: see `summarise`.

    Raises what `load_problems` and `grade` raise.
    """
    problems = load_problems(folder)
    return summarise(grade(problems, answers, allow_missing=allow_missing), len(problems))


_DATA_SET = "data/scienceqa of lupantech/ScienceQA on GitHub"
BENCHMARK = register(
    Benchmark(
        name=NAME,
        title="ScienceQA",
        folder="scienceqa",
        splits=(
            Split(
                question_list("scienceqa", QUESTION_FILE),
                File("images/test", "test.zip of ScienceQA, unpacked in images/", "images"),
                (File("problems.json", _DATA_SET), File("pid_splits.json", _DATA_SET)),
                scored_as=NAME,
            ),
        ),
        metric="img_accuracy",
        load_questions=load_questions,
        score=score,
        max_new_tokens=1024,
        program="llava.eval.model_vqa_science",
        flags=("--single-pred-prompt",),
        script="sqa.sh",
    )
)


def _read_json(path: Path, expected: json_files.Types = dict) -> Any:
    source = "LLaVA's eval.zip" if path.name == QUESTION_FILE else "lupantech/ScienceQA"
    return json_files.read(existing(path, f"it comes from {source}."), expected)


@read_once(the_path)
def _read_entries(path: Path) -> dict[str, dict[str, Any]]:
    """The array's entries by id."""
    result: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(_read_json(path, list), start=1):
        where = f"{path}, entry {number}"
        json_files.check(entry, where, {"id": (str, int), "conversations": list}, {"image": str})
        for turn in entry["conversations"]:
            json_files.check(turn, f"{where}, conversations", {"value": str})
        if not entry["conversations"] or not entry["conversations"][0]["value"].strip():
            raise ValueError(f"{where}: expected a question in conversations, the human's first")
        if entry["id"] in result:
            raise ValueError(f"{where}: a second question {entry['id']!r}.")
        result[entry["id"]] = entry
    return result


def _problem(entry: Any, where: str) -> Problem:
    fields = {"choices": list, "answer": int}
    json_files.check(entry, where, fields, {"image": str, "subject": str, "grade": str})
    if not all(isinstance(choice, str) for choice in entry["choices"]):
        shown = json_files.shorten(entry["choices"])
        raise ValueError(f"{where}: choices must be texts, got {shown}")
    choices, answer = len(entry["choices"]), entry["answer"]
    if not (2 <= choices <= len(LETTERS) and answer in range(choices)):
        raise ValueError(
            f"{where}: expected `choices`, 2 to {len(LETTERS)} of them, and `answer`, an index "
            f"into them, got {choices} and {answer}"
        )
    grade_found = _GRADE.fullmatch(str(entry.get("grade")))
    band = None if grade_found is None else "G1-6" if int(grade_found[1]) <= 6 else "G7-12"
    return Problem(LETTERS[answer], choices, bool(entry.get("image")), entry.get("subject"), band)


def _require_same_truth(problems: dict[str, Problem], question_file: Path) -> None:
    for question_id, entry in _read_entries(question_file).items():
        problem = problems.get(question_id)
        letter, has_image = entry["conversations"][-1]["value"], bool(entry.get("image"))
        if problem and (letter, has_image) != (problem.letter, problem.has_image):
            raise ValueError(
                f"question {question_id!r}: answer {letter!r} and image {has_image} in "
                f"{question_file}, but {problem.letter!r} and {problem.has_image} in problems.json "
                f"beside it. The files are not of the same data set."
            )


def _by(field: str, graded: list[Graded]) -> dict[str, dict[str, Any]]:
    named = [entry for entry in graded if getattr(entry.problem, field) is not None]
    return percentages_by_group((getattr(entry.problem, field), entry.correct) for entry in named)
