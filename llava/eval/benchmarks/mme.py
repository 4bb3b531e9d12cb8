"""MME (perception and cognition, yes or no): true answers joined to questions, and the score.

Questions: `llava_mme.jsonl`, two for each picture, with `question_id` `<task>/<file>` or
`<task>/images/<file>`. True answers: `MME_Benchmark_release_version/<task>/*.txt`, or
`<task>/questions_answers_YN/*.txt` beside `<task>/images`; a file for each picture, a line for each
question, with the answer after a tab. Both files add an instruction of their own to the question.
A task is worth 200 points: the percentage of questions answered right (accuracy) and of pictures
with both right (accuracy+). LLaVA-1.5-7B is published at 1510.7 in perception, of 2000; the total
here adds cognition, of 800.
Rules: haotian-liu/LLaVA, playground/data/eval/MME/convert_answer_to_mme.py, and MME's own
eval_tool/calculation.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..run.questions import Question, QuestionFile
from ..run.watched import read_once
from .base import (
    Benchmark,
    File,
    Split,
    existing,
    question_lines,
    question_list,
    register,
    require_complete,
    require_fields,
)

NAME = "mme"
PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TASKS = PERCEPTION + COGNITION
POINTS = 200.0  # that a task is worth

_QUESTIONS = question_list("MME", "llava_mme.jsonl")
_RELEASE = "MME_Benchmark_release_version"
_AUTHORS = "authors of MME (BradyFU/Awesome-Multimodal-Large-Language-Models)"
_SOURCE = f"The {_AUTHORS} hand it out"
_INSTRUCTIONS = ("Answer the question using a single word or phrase.", "Please answer yes or no.")

Picture = tuple[str, str]  # task, file name without its ending
Key = tuple[Picture, str]  # picture, question without instruction


@dataclass(frozen=True)
class MmeQuestion:
    """A question with its picture and the true answer."""

    question: Question
    picture: Picture
    yes: bool


@dataclass(frozen=True)
class MmeTruth:
    """The questions of the file `source`, and how many true answers none of them asks for."""

    source: Path
    entries: Sequence[MmeQuestion]
    unasked: int

    @property
    def tasks(self) -> list[str]:
        """The tasks that have questions, in MME's order."""
        present = {entry.picture[0] for entry in self.entries}
        return [task for task in TASKS if task in present]


def read_answer(text: str) -> bool | None:
    """Whether an answer says yes; None if it says neither yes nor no in its first four characters.

    Case does not count, and yes comes first. "Not" and "know" are no.
    """
    start = text.lower()[:4]
    if "yes" in start:
        return True
    return False if "no" in start else None


def load_answers(release: Path) -> dict[Key, bool]:
    """Whether the answer is yes, for every question of the tasks in MME's release folder.

    Raises:
        FileNotFoundError: no such folder; says where it comes from.
        ValueError: a malformed line, or a question with both answers; names file and line.
    """
    if not release.is_dir():
        raise FileNotFoundError(f"Folder {release} not found. {_SOURCE}.")
    answers: dict[Key, bool] = {}
    for task in TASKS:
        beside = release / task / "questions_answers_YN"
        for path in sorted((beside if beside.is_dir() else release / task).glob("*.txt")):
            if path.name.startswith("."):  # what macOS leaves in archives
                continue
            for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
                if not line.strip():
                    continue
                key, yes = _parse(line, task, path, number)
                if answers.setdefault(key, yes) != yes:
                    raise ValueError(f"{path}, line {number}: both yes and no to {key[1]!r}.")
    return answers


@read_once(lambda questions, release: (questions, *release.rglob("*.txt")))
def load_truth(question_file: Path, release: Path) -> MmeTruth:
    """Join the questions with their true answers.

    Raises:
        FileNotFoundError: the question file, the release folder or one of its tasks is missing.
        ValueError: one of them is malformed, a question is none of MME's, is there twice or has no
            true answer, or a picture has not two questions.
    """
    answers = load_answers(release)
    released = {task for (task, _), _ in answers}
    entries: dict[Key, MmeQuestion] = {}
    pictures: defaultdict[Picture, list[Question]] = defaultdict(list)
    for question in QuestionFile(existing(question_file, f"it is in {_QUESTIONS.source}.")):
        picture = _picture(question, question_file)
        key = (picture, _strip(question.text))
        if picture[0] not in released:
            raise FileNotFoundError(
                f"{release} has no answers for the task {picture[0]!r}, which {question_file} "
                f"asks about: expected {picture[0]}/*.txt or {picture[0]}/questions_answers_YN/"
                f"*.txt in it. {_SOURCE}."
            )
        if key not in answers:
            raise ValueError(
                f"{release} has no answer for {question} of {question_file}: expected a line with "
                f"{key[1]!r} in {picture[1]}.txt of the task {picture[0]}. Are both of the same "
                f"version of MME?"
            )
        if key in entries:
            raise ValueError(
                f"{question_file}: {entries[key].question} and {question} ask the same about the "
                f"same picture. Remove one of them."
            )
        entries[key] = MmeQuestion(question, picture, answers[key])
        pictures[picture].append(question)
    for (task, name), questions in pictures.items():
        if len(questions) != 2:
            raise ValueError(
                f"{question_file}: expected two questions about the picture {name} of the task "
                f"{task}, got {len(questions)}: {', '.join(map(str, questions))}."
            )
    return MmeTruth(question_file, list(entries.values()), len(answers) - len(entries))


def score_answers(
    truth: MmeTruth, answers: Iterable[dict[str, Any]], *, allow_missing: bool = False
) -> dict[str, Any]:
    """Points for answers in LLaVA's schema, which find their questions by `question_id` and prompt.

    Returns:
        benchmark; samples (answers scored); missing; unasked (true answers that no question asks
        for); best (200 for each task with questions); perception, cognition and total, the points
        of their tasks, None if they have no tasks or one of these has no points; tasks, each with
        samples, missing, other (answers that say neither yes nor no, which are wrong), accuracy
        and accuracy_plus in percent, and score, their sum. A picture with only one answer does not
        count in accuracy_plus.

    Raises:
        ValueError: an answer to no question, two answers to one, or, unless `allow_missing`,
            questions without an answer; names them.
    """
    by_prompt = {
        (str(entry.question.question_id), _strip(entry.question.text)): entry
        for entry in truth.entries
    }
    said: dict[int, bool | None] = {}  # by line of the question file
    for answer in answers:
        require_fields(answer, "question_id", "prompt", "text")
        entry = by_prompt.get((str(answer["question_id"]), _strip(answer["prompt"])))
        if entry is None:
            raise ValueError(
                f"answer to question {answer['question_id']!r} with the prompt "
                f"{answer['prompt']!r}, which {truth.source} does not have. Are they answers to "
                f"this file?"
            )
        if entry.question.index in said:
            raise ValueError(f"two answers to {entry.question}. Remove one of them.")
        said[entry.question.index] = read_answer(answer["text"])
    missing = [e.question for e in truth.entries if e.question.index not in said]
    require_complete(missing, len(truth.entries), allow_missing=allow_missing)
    tasks = {
        task: _score_task([e for e in truth.entries if e.picture[0] == task], said)
        for task in truth.tasks
    }
    points = {task: entry["score"] for task, entry in tasks.items()}
    return {
        "benchmark": NAME,
        "samples": len(said),
        "missing": len(missing),
        "unasked": truth.unasked,
        "best": POINTS * len(tasks),
        "total": _add(points.values()),
        "perception": _add(points[task] for task in PERCEPTION if task in points),
        "cognition": _add(points[task] for task in COGNITION if task in points),
        "tasks": tasks,
    }


def score(
    folder: Path, answers: Iterable[dict[str, Any]], *, allow_missing: bool = False
) -> dict[str, Any]:
    """Score answers against the files in `folder`; see `load_truth` and `score_answers`."""
    truth = load_truth(folder / _QUESTIONS.path, folder / _RELEASE)
    return score_answers(truth, answers, allow_missing=allow_missing)


def _score_task(entries: Sequence[MmeQuestion], said: Mapping[int, bool | None]) -> dict[str, Any]:
    answered = [entry for entry in entries if entry.question.index in said]
    right: defaultdict[Picture, list[bool]] = defaultdict(list)
    for entry in answered:
        right[entry.picture].append(said[entry.question.index] is entry.yes)
    pairs = [both for both in right.values() if len(both) == 2]
    accuracy = _percent(sum(map(sum, right.values())), len(answered))
    plus = _percent(sum(map(all, pairs)), len(pairs))
    return {
        "samples": len(answered),
        "missing": len(entries) - len(answered),
        "other": sum(said[entry.question.index] is None for entry in answered),
        "accuracy": accuracy,
        "accuracy_plus": plus,
        "score": _add([accuracy, plus]),
    }


def _parse(line: bytes, task: str, path: Path, number: int) -> tuple[Key, bool]:
    """The question of a line of true answers, and whether the answer is yes."""
    text = line.decode("utf-8-sig", "replace").strip()
    question, _, answer = text.rpartition("\t")
    if answer.lower() not in ("yes", "no") or not _strip(question):
        raise ValueError(
            f"{path}, line {number}: expected a question, a tab and Yes or No, got {text[:200]!r}."
        )
    return ((task, path.stem), _strip(question)), answer.lower() == "yes"


def _picture(question: Question, source: Path) -> Picture:
    parts = PurePosixPath(str(question.question_id)).parts
    if len(parts) < 2 or parts[0] not in TASKS:
        raise ValueError(
            f"{source}: {question} has no id of MME: expected <task>/<file> with one of the tasks "
            f"{', '.join(TASKS)}."
        )
    return parts[0], PurePosixPath(parts[-1]).stem


def _strip(text: str) -> str:
    """The question without the instructions of either file, and with single spaces."""
    for instruction in _INSTRUCTIONS:
        text = text.replace(instruction, " ")
    return " ".join(text.split())


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _add(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known or not known else sum(known)


BENCHMARK = register(
    Benchmark(
        name=NAME,
        title="MME",
        folder="MME",
        splits=(
            Split(
                _QUESTIONS,
                File(_RELEASE, f"with the annotations from the {_AUTHORS}", "images"),
                scored_as=NAME,
            ),
        ),
        metric="total",
        best=POINTS * len(TASKS),
        load_questions=question_lines(_QUESTIONS),
        score=score,
        group=lambda question: question.image,
        script="mme.sh",
    )
)
