"""GQA (testdev, balanced): exact answers, by type and length of the question.

Annotations: `testdev_balanced_questions.json` of GQA 1.2, an object question id -> `question`,
`answer`, `isBalanced`, `types` {structural, semantic}, `semantic` [{operation, argument}] and
`groups` {global}. A prediction is the answer in lower case without the full stops at its end, and
counts if it equals the annotated answer; nothing else is normalised.
Rules: GQA's eval.py (gqadataset.org); haotian-liu/LLaVA, scripts/convert_gqa_for_eval.py.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.common import json_files

from ..run.watched import read_once, the_path
from .base import (
    Benchmark,
    File,
    Split,
    existing_annotations,
    question_lines,
    question_list,
    register,
    require_complete,
)
from .scoring import percentage, percentages_by_group, texts_by_id, write_array

QUESTIONS = question_list("gqa", "llava_gqa_testdev_balanced.jsonl")
ANNOTATIONS = "data/testdev_balanced_questions.json"

# An operation that has one of these in it does not lengthen the reasoning.
_NO_STEP = ("exist", "query: name", "choose name")
_NOT_SCORED = {
    "consistency": "needs answers to all questions that the balanced ones entail "
    "(testdev_all_questions.json)",
    "validity": "needs testdev_choices.json, which GQA 1.2 does not have",
    "plausibility": "needs testdev_choices.json, which GQA 1.2 does not have",
    "grounding": "needs scene graphs, which testdev does not have, and attention maps",
}


@dataclass(frozen=True)
class Annotation:
    """What scoring needs of a balanced question; `steps` and `words` are its two lengths.

    `group` (such as the answers to "what colour") is where the distribution is compared, None
    where the question belongs to no group.
    """

    answer: str
    structural: str
    semantic: str
    steps: int
    words: int
    group: str | None


@read_once(the_path)
def load_annotations(path: Path) -> dict[str, Annotation]:
    """The balanced questions by id; unbalanced ones do not count and are left out.

    Raises:
        FileNotFoundError: no such file; says where it comes from.
        ValueError: not GQA questions with answers and types, or none of them is balanced.
    """
    existing_annotations(
        path, "testdev_balanced_questions.json is in the questions of GQA 1.2 (gqadataset.org)."
    )
    try:
        read = {
            key: _read(entry, f"{path}, question {json_files.shorten(key)}")
            for key, entry in json_files.read(path).items()
        }
    except ValueError as error:
        raise ValueError(
            f"{error}. Expected a GQA question file with answers like "
            f"testdev_balanced_questions.json (the test and challenge files have no answers)."
        ) from None
    annotations = {key: entry for key, entry in read.items() if entry is not None}
    if not annotations:
        raise ValueError(f"{path} has no balanced question, and only these are scored.")
    return annotations


def predict(text: str) -> str:
    """The prediction in an answer: lower case, without the full stops at its end."""
    return text.rstrip(".").lower()


def score_answers(
    annotations: dict[str, Annotation],
    answers: Iterable[dict[str, Any]],
    *,
    allow_missing: bool = False,
) -> dict[str, Any]:
    """Exact-match accuracies, in percent, of answers in LLaVA's schema.

    Returns:
        benchmark, samples (answers scored), missing (questions without an answer, which do not
        count); accuracy, binary and open ("open" are structural type query), None if there is
        nothing to score; by_structural_type, by_semantic_type, by_steps and by_words, each group
        with accuracy and samples; distribution (see `chi_square`); None and a note for each of
        the metrics that need files which the release lacks.

    Raises:
        ValueError: an answer to a question that is not annotated, two answers to one, or, unless
            `allow_missing`, questions without an answer; names them.
    """
    texts = texts_by_id(answers, annotations)
    missing = [key for key in annotations if key not in texts]
    require_complete(missing, len(annotations), allow_missing=allow_missing)
    predictions = [(annotations[key], predict(text)) for key, text in texts.items()]
    scored = [(gold, float(predicted == gold.answer)) for gold, predicted in predictions]
    return {
        "benchmark": "gqa",
        "samples": len(texts),
        "missing": len(missing),
        "accuracy": percentage([score for _, score in scored]),
        "binary": percentage([score for gold, score in scored if gold.structural != "query"]),
        "open": percentage([score for gold, score in scored if gold.structural == "query"]),
        "distribution": chi_square(predictions),
        "by_structural_type": percentages_by_group((gold.structural, s) for gold, s in scored),
        "by_semantic_type": percentages_by_group((gold.semantic, s) for gold, s in scored),
        "by_steps": percentages_by_group((gold.steps, s) for gold, s in scored),
        "by_words": percentages_by_group((gold.words, s) for gold, s in scored),
        **dict.fromkeys(_NOT_SCORED),
        "notes": _NOT_SCORED,
    }


def chi_square(predictions: Iterable[tuple[Annotation, str]]) -> float | None:
    """How far predicted answers are from the annotated ones as a distribution; 0 is best.

    In each group, the sum over annotated answers of (predicted - annotated)^2 / annotated counts;
    of the groups, the mean weighted by their size; divided by 100. Predicted answers that nobody
    gave in the group do not enter. None if no question belongs to a group.
    """
    annotated: defaultdict[str, Counter[str]] = defaultdict(Counter)
    predicted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for gold, prediction in predictions:
        if gold.group is not None:
            annotated[gold.group][gold.answer] += 1
            predicted[gold.group][prediction] += 1
    weighted = 0.0
    for group, counts in annotated.items():
        distance = sum((predicted[group][answer] - n) ** 2 / n for answer, n in counts.items())
        weighted += distance * counts.total()
    total = sum(counts.total() for counts in annotated.values())
    return weighted / total / 100 if total else None


def write_predictions(path: Path, answers: Iterable[dict[str, Any]]) -> int:
    """Write the file that GQA's eval.py reads, [{"questionId", "prediction"}]; how many there are.

    Raises:
        OSError: it cannot be written.
        ValueError: no answer at all, two to one question, or one without id or text.
    """
    texts = texts_by_id(answers)
    if not texts:
        raise ValueError("there are no answers to write.")
    return write_array(
        path,
        ({"questionId": key, "prediction": predict(text)} for key, text in texts.items()),
    )


def score(
    folder: Path, answers: Iterable[dict[str, Any]], *, allow_missing: bool = False
) -> dict[str, Any]:
    """`score_answers` with the annotations in the benchmark's folder."""
    return score_answers(
        load_annotations(folder / ANNOTATIONS), answers, allow_missing=allow_missing
    )


def _read(entry: Any, where: str) -> Annotation | None:
    """What scoring needs of a question; None of an unbalanced one."""
    if not json_files.check(entry, where, {"isBalanced": bool})["isBalanced"]:
        return None
    fields = {"question": str, "answer": str, "types": dict, "semantic": list}
    json_files.check(entry, where, fields, optional={"groups": dict})
    json_files.check(entry["types"], f"{where}, types", {"structural": str, "semantic": str})
    json_files.check(entry.get("groups") or {}, f"{where}, groups", {}, optional={"global": str})
    for step in entry["semantic"]:
        json_files.check(step, f"{where}, semantic", {"operation": str, "argument": str})
    steps = [f"{step['operation']}: {step['argument']}" for step in entry["semantic"]]
    return Annotation(
        answer=entry["answer"],
        structural=entry["types"]["structural"],
        semantic=entry["types"]["semantic"],
        steps=sum(not any(part in step for part in _NO_STEP) for step in steps),
        words=len(entry["question"].split()),
        group=(entry.get("groups") or {}).get("global"),
    )


BENCHMARK = register(
    Benchmark(
        name="gqa",
        title="GQA (testdev, balanced)",
        folder="gqa",
        splits=(
            Split(
                QUESTIONS,
                File("data/images", "images of GQA from gqadataset.org", "images"),
                (File(ANNOTATIONS, "questions of GQA 1.2 from gqadataset.org"),),
                scored_as="gqa",
            ),
        ),
        metric="accuracy",
        load_questions=question_lines(QUESTIONS),
        score=score,
        script="gqa.sh",
    )
)
