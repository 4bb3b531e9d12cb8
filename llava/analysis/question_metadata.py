"""What is known about a benchmark's questions, and finished runs joined with it.

A benchmark's data folder has, beside the official files, `metadata.jsonl`: a line for each
question, in their order, with `index`, `question_id`, `kind`, `hops`, `distractors` and
`target_patches` (both may be null), `answer` (a text, may be left out) and, where questions about
one picture do not name it alike (the rows of MMBench), `image`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llava.common import json_files

from ..eval.benchmarks import BENCHMARKS, Benchmark
from ..eval.benchmarks.answer_normaliser import normalise
from ..eval.run.answers import answered_index
from ..eval.run.linefile import read_lines
from ..eval.run.questions import Question
from ..eval.run.record import COMPLETE, INCOMPLETE, read_record

METADATA = "metadata.jsonl"
_MOST = 10**9  # hops, distractors and patches


class Answered(NamedTuple):
    """A question, the line of its answer, its line of metadata, and the place to name in errors."""

    question: Question
    answer: dict[str, Any]
    known: dict[str, Any]
    where: str

    @property
    def right(self) -> bool | None:
        """Whether the answer is the reference; None where none is known.

        Raises:
            ValueError: the answer has no text.
        """
        reference, text = self.known.get("answer"), self.answer.get("text")
        if not isinstance(text, str):
            got = json_files.shorten(text)
            raise ValueError(f"{self.where}: expected an answer with a text, got {got}.")
        return None if reference is None else is_right(text, reference)


@dataclass(frozen=True)
class AnsweredRun:
    """A finished run of a benchmark: its record, and its answers in the order of their file."""

    benchmark: Benchmark
    record: dict[str, Any]
    answers: list[Answered]


def is_right(text: str, reference: str) -> bool:
    """Whether an answer is the reference, up to case, full stop, articles and spelt-out numbers."""
    if _plain(text) == _plain(reference):
        return True
    # The normaliser takes the option "A" for an article, so what is empty then is no agreement.
    return normalise(text) == normalise(reference) != ""


def read_answered(
    name: str, answers_file: Path, data: Path, *, some_failed: bool = False
) -> AnsweredRun:
    """Join a run with the metadata; `name` is the benchmark's or its folder's, `data` holds these
    folders. `some_failed`: the run may have asked all and have no answer to some.

    Raises:
        FileNotFoundError: no answers, no metadata or no questions.
        ValueError: an unknown benchmark, a run without record or that is not complete, or answers
            and metadata that do not belong to the questions.
    """
    benchmark = _benchmark(name)
    if not answers_file.is_file():
        raise FileNotFoundError(f"Answer file {answers_file} not found.")
    record = read_record(answers_file)
    if record.get("status") not in (COMPLETE, INCOMPLETE if some_failed else COMPLETE):
        raise ValueError(
            f"{answers_file} is {record.get('status')!r}, not {COMPLETE!r}: run the command that "
            f"made it again, it continues."
        )
    source = data / benchmark.folder
    loaded = benchmark.load_questions(source)
    questions = {q.index: q for q in (loaded[i] for i in range(len(loaded)))}
    known = read_metadata(source / METADATA, questions)
    answers, seen = [], set()
    for number, _, answer in read_lines(answers_file):
        where = f"{answers_file}, line {number}"
        index = answered_index(answer)
        question = None if index is None else questions.get(index)
        identity = (answer.get("question_id"), answer.get("prompt"))
        # Older versions logged MMBench's prompts with the instruction.
        if question is None or identity not in (
            (question.question_id, prompt) for prompt in (question.prompt, question.text)
        ):
            raise ValueError(
                f"{where}: no answer to a question of {source}: index {index}, question_id "
                f"{json_files.shorten(identity[0])}, prompt {json_files.shorten(identity[1])}. Was "
                f"the run made with these files?"
            )
        if index in seen:
            raise ValueError(f"{where}: a second answer to {question}. Remove one of them.")
        seen.add(index)
        answers.append(Answered(question, answer, known[index], where))
    # Not all questions: a sweep may be limited to some of them.
    if len(seen) != (answered := (record.get("counts") or {}).get("answered")):
        raise ValueError(
            f"{answers_file} has {len(seen)} answers, but its run record counts {answered}. Give "
            f"the file as it was written."
        )
    return AnsweredRun(benchmark, record, answers)


def read_metadata(path: Path, questions: dict[int, Question]) -> dict[int, dict[str, Any]]:
    """The lines of a metadata file by index, one for each of the questions.

    Raises:
        FileNotFoundError, ValueError: no such file, or lines that are not about these questions.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} not found: expected a line with index, question_id, kind, hops, distractors "
            f"and target_patches for each question, as the mini benchmarks have."
        )
    known: dict[int, dict[str, Any]] = {}
    for number, _, line in read_lines(path):
        index, question_id = line.get("index"), line.get("question_id")
        question = questions.get(index) if json_files.is_one_of(index, int) else None
        if question is None or question.question_id != question_id:
            raise ValueError(
                f"{path}, line {number}: index {json_files.shorten(index)} with question_id "
                f"{json_files.shorten(question_id)} is none of the questions beside it. Write both "
                f"anew."
            )
        if question.index in known:
            raise ValueError(f"{path}, line {number}: a second line about {question}.")
        if not _is_metadata(line):
            raise ValueError(
                f"{path}, line {number}: expected kind (text), hops (1 or more), distractors (a "
                f"whole number or null), target_patches (a number or null) and, if there are any, "
                f"answer and image (texts), got {json_files.shorten(line)}."
            )
        known[question.index] = line
    if missing := [q for i, q in questions.items() if i not in known]:
        raise ValueError(f"{path} has no line about {len(missing)} questions, as {missing[0]}.")
    return known


def _is_metadata(line: dict[str, Any]) -> bool:
    if "distractors" not in line or "target_patches" not in line:
        return False
    distractors, patches, hops = line["distractors"], line["target_patches"], line.get("hops")
    return (
        isinstance(line.get("kind"), str)
        and (type(hops) is int and 1 <= hops <= _MOST)
        and (distractors is None or (type(distractors) is int and 0 <= distractors <= _MOST))
        and (patches is None or (json_files.is_number(patches, _MOST) and patches >= 0))
        and all(isinstance(line.get(key), (str, type(None))) for key in ("answer", "image"))
    )


def _benchmark(name: str) -> Benchmark:
    """The benchmark that is called so or, if none is, the first whose folder is."""
    for benchmark in (BENCHMARKS.get(name), *BENCHMARKS.values()):
        if benchmark is not None and name in (benchmark.name, benchmark.folder):
            return benchmark
    raise ValueError(
        f"{name!r} is no benchmark; known are {', '.join(BENCHMARKS)}. Answers belong in a folder "
        f"of the benchmark's name."
    )


def _plain(text: str) -> str:
    return text.strip().rstrip(".").lower()
