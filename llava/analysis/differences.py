"""Questions that the unpruned and a pruned model answer differently, from the answers of runs.

An answer is right if it is the reference of the benchmark's `metadata.jsonl` (the mini benchmarks
have one); without that file it is not known, nor how hard a question is: "simple" takes one step
("hops"), "complex" more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path
from typing import Any

from llava.analysis.question_metadata import METADATA, is_right, read_metadata
from llava.common import json_files
from llava.eval.compare.comparison import budget, settings_of
from llava.eval.compare.report import budget_text, row_label
from llava.eval.compare.results import Result
from llava.eval.run.answers import QuestionSource
from llava.eval.run.linefile import read_lines
from llava.eval.run.questions import Question

#: What pruning did to an answer. A right answer became wrong, a wrong one right, or neither.
LOST, GAINED, OTHER = "lost", "gained", "other"
UNKNOWN = "unknown"
_LEVELS = ("none", "no-image")  # nothing was chosen there
_COSTS = ("tokens_entering", "prefill_flops", "dense_prefill_flops")


@dataclass(frozen=True)
class Answer:
    """What a run said: its text, whether that is right (None: not known), and, of a pruned run,
    the metadata."""

    text: str
    right: bool | None
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """A question, what was said unpruned and pruned, and by which run."""

    result: Result
    question: Question
    hardness: str
    reference: str | None
    dense: Answer
    pruned: Answer

    @property
    def method(self) -> str:
        """Method and settings of the run, as in the comparison's rows."""
        return method_of(self.result)

    @property
    def budget(self) -> str:
        """Budget of the run; empty without one."""
        return budget_of(self.result)

    @property
    def change(self) -> str:
        """LOST, GAINED or OTHER."""
        before, after = self.dense.right, self.pruned.right
        if before is None or after is None or before == after:
            return OTHER
        return LOST if before else GAINED

    @property
    def distance(self) -> float:
        """How unlike the two texts are, 0 to 1."""
        texts = _plain(self.dense.text), _plain(self.pruned.text)
        return 1 - SequenceMatcher(None, *texts).ratio()


@dataclass(frozen=True)
class Changes:
    """Of one run on one benchmark, by hardness: questions asked, lost, gained, other changes."""

    benchmark: str
    method: str
    budget: str
    hardness: str
    questions: int
    lost: int
    gained: int
    other: int


def method_of(result: Result) -> str:
    """Method and settings of a run."""
    pruner = result.pruner
    return row_label({"method": pruner["method"], "settings": settings_of(pruner)})


def budget_of(result: Result) -> str:
    """Budget of a run; empty without one."""
    return budget_text(budget(result.pruner))


def find(results: Sequence[Result], data: Path) -> tuple[list[Difference], list[Changes]]:
    """Every difference to the unpruned run of the same benchmark, and how many there are.

    A benchmark without an unpruned run has none. Of runs that differ in a seed the first counts.

    Raises:
        ValueError, OSError: answers of an older version or of other questions, or wrong metadata.
    """
    differences, changes = [], []
    for name in dict.fromkeys(result.benchmark.name for result in results):
        runs = [result for result in results if result.benchmark.name == name]
        dense = next((result for result in runs if result.pruner["method"] == "none"), None)
        if dense is None:
            continue
        known = _Known(dense, data)
        first = {}
        for result in runs:
            if result.pruner["method"] not in _LEVELS:
                first.setdefault((method_of(result), budget_of(result)), result)
        # Without the metadata: all answers of a benchmark are held at once.
        before = {i: Answer(answer.text, answer.right, {}) for i, answer in known.answers(dense)}
        for result in first.values():
            counts: Counter[tuple[str, str]] = Counter()
            for index, pruned in known.answers(result):
                hardness = known.hardness(index)
                counts[hardness, ""] += 1
                if index not in before or _plain(before[index].text) == _plain(pruned.text):
                    continue
                question, reference = known.question(index), known.reference(index)
                difference = Difference(
                    result, question, hardness, reference, before[index], pruned
                )
                counts[hardness, difference.change] += 1
                differences.append(difference)
            changes += [
                Changes(
                    name,
                    method_of(result),
                    budget_of(result),
                    hardness,
                    questions,
                    *(counts[hardness, change] for change in (LOST, GAINED, OTHER)),
                )
                for (hardness, change), questions in sorted(counts.items())
                if not change
            ]
    return differences, changes


def most_different(differences: Sequence[Difference], most: int) -> list[Difference]:
    """At most `most` of them, as many of each benchmark, run and hardness as can be.

    Those whose right answer was lost or found come first, then those whose texts differ most.
    """
    groups: dict[tuple[str, ...], list[Difference]] = {}
    for d in differences:
        groups.setdefault((d.result.benchmark.name, d.method, d.budget, d.hardness), []).append(d)
    for group in groups.values():
        group.sort(key=lambda d: (d.change == OTHER, -d.distance, d.question.index))
    rounds = zip_longest(*groups.values())
    chosen = [d for row in rounds for d in row if d is not None][:most]
    order = {id(d): number for number, d in enumerate(differences)}
    return sorted(chosen, key=lambda d: (d.change == OTHER, order[id(d)]))


class _Known:
    """What is known of the questions of a benchmark."""

    def __init__(self, result: Result, data: Path) -> None:
        folder = data / result.benchmark.folder
        self._questions: QuestionSource = result.benchmark.load_questions(folder)
        self._metadata: dict[int, dict[str, Any]] = {}
        if (folder / METADATA).is_file():
            every = (self._questions[i] for i in range(len(self._questions)))
            self._metadata = read_metadata(folder / METADATA, {q.index: q for q in every})

    def question(self, index: int) -> Question:
        position = self._questions.position(index)
        if position is None:
            raise ValueError(f"{self._questions.path} has no question in line {index + 1}")
        return self._questions[position]

    def hardness(self, index: int) -> str:
        known = self._metadata.get(index)
        if known is None:
            return UNKNOWN
        return "simple" if known["hops"] == 1 else "complex"

    def reference(self, index: int) -> str | None:
        return self._metadata.get(index, {}).get("answer")

    def answers(self, result: Result) -> Iterator[tuple[int, Answer]]:
        """The answers to questions about pictures, by the index of the question."""
        for number, _, line in read_lines(result.answers_file):
            where = f"{result.answers_file}, line {number}"
            metadata = json_files.check(line, where, {"text": str}).get("metadata")
            if not isinstance(metadata, dict) or not _is_known(metadata):
                raise ValueError(
                    f"{where}: no index or cost in its metadata. An older version wrote these "
                    "answers: run them again, into another file."
                )
            index, text = metadata["index"], line["text"]
            if self.question(index).image is None:
                continue
            reference = self.reference(index)
            right = None if reference is None else is_right(text, reference)
            yield index, Answer(text, right, metadata)


def _is_known(metadata: Mapping[str, Any]) -> bool:
    """Whether it says which question it is about and has the numbers that a report shows."""
    cost, measured = metadata.get("cost"), metadata.get("complexity") or {}
    if not (isinstance(cost, dict) and isinstance(measured, dict)):
        return False
    # What really ran is not in answers of older versions.
    numbers = all(json_files.is_number(cost.get(name)) for name in _COSTS)
    numbers &= json_files.is_number(cost.get("computed_flops", 0))
    numbers &= all(map(json_files.is_number, measured.values()))
    index = json_files.is_one_of(metadata.get("index"), int)
    return index and numbers and cost["dense_prefill_flops"] > 0


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")
