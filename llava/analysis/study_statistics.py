"""Runs on the same questions, compared with intervals: a bootstrap over questions, drawn once.

Every row is resampled alike, so an interval of a difference is that of pairs: what two runs answer
alike adds nothing to it. Questions are drawn within their benchmark; those that a benchmark scores
together (the rotations of MMBench) are one question.

With `metadata.jsonl` in a benchmark's folder (the mini benchmarks have it) an answer is right if it
is the reference, whatever the benchmark's own metric. Without it the answers are cut into at most
`BLOCKS` stretches of the question file, each scored by the benchmark itself, and stretches are
drawn in place of questions; then nothing is known of kinds, and TextVQA stands for reading.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llava.analysis.question_metadata import METADATA, read_answered
from llava.eval.benchmarks.base import Benchmark
from llava.eval.run.answers import answered_index
from llava.eval.run.linefile import read_lines
from llava.eval.run.record import COMPLETE, INCOMPLETE, read_record

BLOCKS = 100
DRAWS = 2000
#: Of which kinds of the mini benchmarks' questions the two columns are that pruning hurts first.
KINDS = {"reading": ("read", "read place", "says", "number"), "counting": ("count", "is count")}
_READING_BENCHMARKS = ("textvqa", "textvqa-noocr")


class Unit(NamedTuple):
    """What is drawn: its benchmark, its place there, and the kind of its questions."""

    benchmark: str
    place: int
    kind: str


class Mark(NamedTuple):
    """The score of a unit, 0 to 1, and how many answers it is of."""

    score: float
    answers: int


class Estimate(NamedTuple):
    """A number, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def read_unasked(
    answers_file: Path, unpruned: Path, benchmark: Benchmark, data: Path
) -> set[int] | None:
    """Indices of the questions with several pictures that only the unpruned run has answers to: a
    budget for one picture may be less than what the layers before a method's first cut hold of two.

    None for a run that lacks other answers or all, or has not come to its end.
    """
    status = read_record(answers_file).get("status") if answers_file.is_file() else None
    if status != INCOMPLETE:
        return set() if status == COMPLETE else None
    before, after = (
        {answered_index(answer) for _, _, answer in read_lines(file)}
        for file in (unpruned, answers_file)
    )
    questions = benchmark.load_questions(data / benchmark.folder)
    several = {q.index for q in (questions[i] for i in range(len(questions))) if len(q.images) > 1}
    missing = before - after
    return missing if missing <= several and missing != before else None


def read_marks(
    answers_file: Path,
    benchmark: Benchmark,
    data: Path,
    parity: int | None = None,
    left_out: Collection[int] = (),
) -> dict[Unit, Mark]:
    """The marks of a finished run.

    parity: of the pictures, in the order of the question file, only the even (0) or odd (1) ones.
    left_out: indices of questions that do not count.

    Raises:
        ValueError, OSError: no finished run of this benchmark; or half of the pictures of one
            without metadata.
    """
    folder = data / benchmark.folder
    if not (folder / METADATA).is_file():
        if parity is not None:
            raise ValueError(f"{folder} has no {METADATA}: halves of its pictures are not known")
        return _block_marks(answers_file, benchmark, folder, left_out)
    run = read_answered(benchmark.name, answers_file, data, some_failed=True)
    pictures = _pictures(benchmark, folder, run.answers)
    together: dict[object, list[Any]] = {}
    for answered in run.answers:
        question = answered.question
        if question.image is None or answered.right is None or question.index in left_out:
            continue
        if parity is None or pictures[question.index] % 2 == parity:
            group = benchmark.group(question) if benchmark.group else question.index
            together.setdefault(group, []).append(answered)
    marks = {}
    for answers in together.values():
        first = answers[0]
        unit = Unit(benchmark.name, first.question.index, first.known["kind"])
        marks[unit] = Mark(sum(a.right for a in answers) / len(answers), len(answers))
    return marks


def _pictures(benchmark: Benchmark, folder: Path, answers: Sequence[Any]) -> dict[int, int]:
    """The number of each answered question's picture, in the order of the question file."""
    questions = benchmark.load_questions(folder)
    names = {a.question.index: a.known.get("image") for a in answers}
    numbers: dict[Any, int] = {}
    pictures = {}
    for position in range(len(questions)):
        question = questions[position]
        name = names.get(question.index) or question.image
        pictures[question.index] = numbers.setdefault(name, len(numbers))
    return pictures


def _block_marks(
    answers_file: Path, benchmark: Benchmark, folder: Path, left_out: Collection[int]
) -> dict[Unit, Mark]:
    questions = benchmark.load_questions(folder)
    groups: dict[object, list[int]] = {}
    answers = {}
    for _, _, answer in read_lines(answers_file):
        index = answer["metadata"]["index"]
        if index in left_out:
            continue
        position = questions.position(index)
        assert position is not None, "the runner answers no other questions"
        question = questions[position]
        answers[index] = answer
        groups.setdefault(benchmark.group(question) if benchmark.group else index, []).append(index)
    members, marks = list(groups.values()), {}
    blocks = min(BLOCKS, len(members))
    kind = "read" if benchmark.name in _READING_BENCHMARKS else ""
    for block in range(blocks):
        chosen = members[block * len(members) // blocks : (block + 1) * len(members) // blocks]
        part = [answers[index] for group in chosen for index in group]
        score = benchmark.score(folder, part, allow_missing=True)
        if score[benchmark.metric] is not None:
            best = score.get("best", benchmark.best)
            marks[Unit(benchmark.name, block, kind)] = Mark(
                score[benchmark.metric] / best, len(part)
            )
    return marks


@dataclass(frozen=True)
class Comparison:
    """Rows on the same units: shares of right answers, and their bootstrap.

    units: all of them; scores: (rows, units); weights: (units,); draws: (draws, units), how often
    each unit was drawn, the first of them once each: the estimate itself.
    """

    units: Sequence[Unit]
    scores: np.ndarray
    weights: np.ndarray
    draws: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Mapping[Unit, Mark]], seed: int = 0) -> Comparison:
        """Raises ValueError for rows that answered different questions."""
        units = sorted(rows[0])
        for row in rows:
            if row.keys() != rows[0].keys():
                raise ValueError("rows that answered different questions cannot be paired")
        random = np.random.default_rng(seed)
        names = np.array([unit.benchmark for unit in units])
        draws = np.ones((1 + DRAWS, len(units)))
        for name in sorted(set(names)):
            mine = np.flatnonzero(names == name)
            draws[1:, mine] = random.multinomial(len(mine), [1 / len(mine)] * len(mine), DRAWS)
        scores = np.array([[row[unit].score for unit in units] for row in rows])
        weights = np.array([rows[0][unit].answers for unit in units], dtype=float)
        return cls(units, scores, weights, draws)

    @property
    def benchmarks(self) -> list[str]:
        """Their names, in the order of the units."""
        return list(dict.fromkeys(unit.benchmark for unit in self.units))

    def shares(self, chosen: np.ndarray) -> np.ndarray:
        """Right answers to the chosen units, in percent: (draws, rows)."""
        drawn = self.draws[:, chosen] * self.weights[chosen]
        return 100 * drawn @ self.scores[:, chosen].T / drawn.sum(1, keepdims=True).clip(1e-9)

    def of_benchmark(self, name: str) -> np.ndarray:
        """Right answers to a benchmark, in percent: (draws, rows)."""
        return self.shares(np.array([unit.benchmark == name for unit in self.units]))

    def of_kind(self, name: str) -> np.ndarray | None:
        """Right answers to the kinds of that column of `KINDS`; None where nobody asks them."""
        chosen = np.array([unit.kind in KINDS[name] for unit in self.units])
        return self.shares(chosen) if chosen.any() else None

    def relative(self, whole: int) -> np.ndarray:
        """Mean over benchmarks of score / that of row `whole`, in percent: (draws, rows)."""
        parts = [self.of_benchmark(name) for name in self.benchmarks]
        return np.mean([100 * part / part[:, [whole]].clip(1e-9) for part in parts], axis=0)


def estimate(draws: np.ndarray) -> Estimate:
    """(draws,) of a number, the first the estimate itself, with the percentiles of the others."""
    low, high = np.percentile(draws[1:], [2.5, 97.5])
    return Estimate(float(draws[0]), float(low), float(high))
