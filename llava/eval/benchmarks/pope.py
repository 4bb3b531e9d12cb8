"""POPE (object hallucination on COCO val2014): labels joined to questions, and the score.

Questions: `llava_pope_test.jsonl`, each with a `category`, one of three. Labels: one JSON-lines
file `coco/coco_pope_<category>.json` with `image`, `text` and `label` (yes or no). A question
finds its label by image and text inside its category, never by line: later versions of POPE have
files of the same names with other questions or another order. The published number is the mean of
the three F1 scores, which is 85.9 for LLaVA-1.5-7B.
Rules: haotian-liu/LLaVA, llava/eval/eval_pope.py; labels: AoiDragon/POPE, output/coco. Every rate
is in percent.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.common import json_files

from ..run.questions import Question, QuestionFile, parse_question
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

NAME = "pope"
CATEGORIES = ("random", "popular", "adversarial")

_QUESTIONS = question_list("pope", "llava_pope_test.jsonl")
_LABELS = "coco"
_SOURCE = (
    "LLaVA's questions belong to the label files of AoiDragon/POPE at commit e3e3926 (output/coco)"
)
_LABEL = {"yes": True, "no": False}
_NO = {"No", "no", "not"}
_TYPO = re.compile(r"\bimange\b")  # in the labels of e3e3926, corrected in later ones

Key = tuple[str, str]


@dataclass(frozen=True)
class PopeQuestion:
    """A question with its category and the true answer."""

    question: Question
    category: str
    yes: bool


@dataclass(frozen=True)
class PopeTruth:
    """The questions of the file `source`, and how many labels of a category none of them asks."""

    source: Path
    entries: Sequence[PopeQuestion]
    unasked: Mapping[str, int]


def says_yes(text: str) -> bool:
    """Whether an answer counts as yes: no word before its first full stop is No, no or not.

    Words end at single spaces and commas are dropped, so an empty answer, "NO" and "no!" are yes.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return _NO.isdisjoint(words)


def load_labels(path: Path) -> dict[Key, bool]:
    """Whether the answer is yes, for each (image, normalised question) of a label file.

    Raises:
        FileNotFoundError: no such file; says where it comes from.
        ValueError: a malformed line, a label that is neither yes nor no, two labels to a question.
    """
    labels: dict[Key, bool] = {}
    file = existing(path, f"{_SOURCE}.", "Label file ")
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            entry = json_files.parse(line, where)
            json_files.check(entry, where, {"image": str, "text": str, "label": str})
            if entry["label"] not in _LABEL:
                raise ValueError(f"{where}: label must be yes or no, got {entry['label'][:80]!r}")
        except ValueError as error:
            raise ValueError(f"{error}. {_SOURCE}.") from None
        key, yes = (entry["image"], _normalise(entry["text"])), _LABEL[entry["label"]]
        if labels.setdefault(key, yes) != yes:
            raise ValueError(f"{path}, line {number}: both yes and no to {_name(key)}. {_SOURCE}.")
    return labels


@read_once(lambda questions, labels: (questions, *labels.glob("*.json")))
def load_truth(question_file: Path, label_folder: Path) -> PopeTruth:
    """Join the questions with the labels of their category.

    Raises:
        FileNotFoundError: the question file or one of the three label files is missing.
        ValueError: one of them is malformed, a category is unknown or without questions, or a
            question has no label, as with the label files of another version of POPE.
    """
    questions = _by_category(question_file)
    entries: list[PopeQuestion] = []
    unasked: dict[str, int] = {}
    for category in CATEGORIES:
        path = label_folder / _label_file(category)
        labels = load_labels(path)
        keys = [_key(question) for question in questions[category]]
        if strange := [key for key in keys if key not in labels]:
            raise ValueError(
                f"{path} has no label for {len(strange)} of the {len(keys)} {category} questions "
                f"in {question_file}, such as {_name(strange[0])}. {_SOURCE}; other versions ask "
                f"about other pictures and objects."
            )
        entries += [
            PopeQuestion(q, category, labels[key]) for q, key in zip(questions[category], keys)
        ]
        unasked[category] = len(labels.keys() - set(keys))
    return PopeTruth(question_file, entries, unasked)


def score_answers(
    truth: PopeTruth, answers: Iterable[dict[str, Any]], *, allow_missing: bool = False
) -> dict[str, Any]:
    """Confusion counts and rates of answers in LLaVA's schema.

    An answer finds its question by `metadata.index`, or by `question_id` where it has no index,
    and its prompt must be that question.

    Returns:
        benchmark; samples (answers scored); missing; f1 and accuracy, the means of the three
        categories, None where a category has none; categories, each with samples, missing,
        unasked (labels that no question asks for), tp, fp, tn, fn (yes is the positive class) and
        `rates`.

    Raises:
        ValueError: an answer to no question or to an ambiguous id, two answers to one, an answer
            whose prompt is another question, or, unless `allow_missing`, questions without an
            answer; names them.
    """
    entries = truth.entries
    find = _Finder(truth)
    counts: Counter[tuple[str, bool, bool]] = Counter()  # by category, truth, answer
    seen: set[int] = set()
    for answer in answers:
        position = find(answer)
        entry = entries[position]
        if position in seen:
            raise ValueError(f"two answers to {entry.question}. Remove one of them.")
        seen.add(position)
        counts[entry.category, entry.yes, says_yes(answer["text"])] += 1
    missing = [entry for position, entry in enumerate(entries) if position not in seen]
    require_complete(
        [entry.question for entry in missing], len(entries), allow_missing=allow_missing
    )
    categories: dict[str, dict[str, Any]] = {}
    for category in CATEGORIES:
        cells = {
            "tp": counts[category, True, True],
            "fp": counts[category, False, True],
            "tn": counts[category, False, False],
            "fn": counts[category, True, False],
        }
        categories[category] = {
            "samples": sum(cells.values()),
            "missing": sum(entry.category == category for entry in missing),
            "unasked": truth.unasked[category],
            **cells,
            **rates(**cells),
        }
    return {
        "benchmark": NAME,
        "samples": len(seen),
        "missing": len(missing),
        "f1": _mean([entry["f1"] for entry in categories.values()]),
        "accuracy": _mean([entry["accuracy"] for entry in categories.values()]),
        "categories": categories,
    }


def rates(*, tp: int, fp: int, tn: int, fn: int) -> dict[str, float | None]:
    """Accuracy, precision, recall, F1 and share of yes, in percent; None where it is 0 / 0."""
    total = tp + fp + tn + fn
    return {
        "accuracy": _percent(tp + tn, total),
        "precision": _percent(tp, tp + fp),
        "recall": _percent(tp, tp + fn),
        "f1": _percent(2 * tp, 2 * tp + fp + fn),
        "yes_ratio": _percent(tp + fp, total),
    }


def score(
    folder: Path, answers: Iterable[dict[str, Any]], *, allow_missing: bool = False
) -> dict[str, Any]:
    """Score answers against the files in `folder`; see `load_truth` and `score_answers`."""
    truth = load_truth(folder / _QUESTIONS.path, folder / _LABELS)
    return score_answers(truth, answers, allow_missing=allow_missing)


class _Finder:
    """Finds the question that an answer belongs to, as a position in the list of questions."""

    def __init__(self, truth: PopeTruth) -> None:
        self._entries = truth.entries
        self._source = truth.source
        self._by_id: defaultdict[str, list[int]] = defaultdict(list)
        for i, entry in enumerate(truth.entries):
            self._by_id[str(entry.question.question_id)].append(i)

    def __call__(self, answer: dict[str, Any]) -> int:
        require_fields(answer, "question_id", "prompt", "text")
        metadata = answer.get("metadata")
        line = metadata.get("index") if isinstance(metadata, dict) else None
        positions = self._by_id.get(str(answer["question_id"]), [])
        if line is not None:
            positions = [i for i in positions if self._entries[i].question.index == line]
        if not positions:
            at = "" if line is None else f" with metadata index {line!r}"
            raise ValueError(
                f"answer to question {answer['question_id']!r}{at}, which {self._source} does not "
                f"have. Are they answers to this file?"
            )
        if len(positions) > 1:
            raise ValueError(
                f"answer to question {answer['question_id']!r}, an id that {self._source} has "
                f"{len(positions)} times: expected answers with a metadata.index."
            )
        question = self._entries[positions[0]].question
        if _normalise(answer["prompt"]) != _normalise(question.text):
            raise ValueError(
                f"the answer to {question} has the prompt {answer['prompt']!r}, but {self._source} "
                f"asks {question.text!r}. Are they answers to this file?"
            )
        return positions[0]


def _label_file(category: str) -> str:
    return f"coco_pope_{category}.json"


def _by_category(path: Path) -> dict[str, list[Question]]:
    QuestionFile(existing(path, f"it is in {_QUESTIONS.source}."))  # checks every line
    questions: dict[str, list[Question]] = {category: [] for category in CATEGORIES}
    for index, line in enumerate(path.read_bytes().removeprefix(BOM_UTF8).split(b"\n")):
        if not line.strip():
            continue
        question = parse_question(line, index, path)
        where = f"{path}, line {index + 1}"
        category = json_files.parse(line, where).get("category")
        if category not in CATEGORIES:
            raise ValueError(
                f"{where}: expected a category, one of {', '.join(CATEGORIES)}, got "
                f"{json_files.shorten(category)}."
            )
        questions[category].append(question)
    if empty := [category for category, entries in questions.items() if not entries]:
        raise ValueError(f"{path} has no question of the category {', '.join(empty)}.")
    return questions


def _normalise(text: str) -> str:
    """The question without the instruction below it, in lower case and without the known typo."""
    return _TYPO.sub("image", text.strip().split("\n")[0].strip().lower())


def _key(question: Question) -> Key:
    return str(question.image), _normalise(question.text)


def _name(key: Key) -> str:
    return f"image {key[0]}, question {key[1]!r}"


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


BENCHMARK = register(
    Benchmark(
        name=NAME,
        title="POPE",
        folder="pope",
        splits=(
            Split(
                _QUESTIONS,
                File("val2014", "val2014.zip from cocodataset.org", "images"),
                tuple(
                    File(
                        f"{_LABELS}/{_label_file(category)}",
                        "output/coco of AoiDragon/POPE on GitHub, at commit e3e3926",
                    )
                    for category in CATEGORIES
                ),
                scored_as=NAME,
            ),
        ),
        metric="f1",
        load_questions=question_lines(_QUESTIONS),
        score=score,
        script="pope.sh",
    )
)
