"""What a benchmark is: where its questions lie, and how answers to them are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llava.common import json_files

from ..run.answers import QuestionSource
from ..run.questions import Question
from .answer_normaliser import REFERENCES

_NAMED = 5  # how many ids a message names before it only counts

# What an answer has in LLaVA's schema.
_FIELDS: dict[str, json_files.Types] = {"question_id": (str, int), "prompt": str, "text": str}


class LoadQuestions(Protocol):
    """Questions of the benchmark in `folder`, or one of `num_chunks` contiguous chunks of them."""

    def __call__(self, folder: Path, num_chunks: int = 1, chunk_idx: int = 0) -> QuestionSource: ...


class Score(Protocol):
    """Scores answers in LLaVA's schema against the annotations in `folder`.

    Returns a JSON-serialisable dict with at least `benchmark`, `samples` (answers scored),
    `missing` (questions without an answer) and the benchmark's headline metric, None if there is
    nothing to score. Raises FileNotFoundError for a missing annotation file (saying where it comes
    from) and ValueError for an answer to no question, two answers to one, or, unless
    `allow_missing`, questions without an answer (naming them).
    """

    def __call__(
        self, folder: Path, answers: Iterable[dict[str, Any]], *, allow_missing: bool = False
    ) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Benchmark:
    """One benchmark in its official files.

    `folder` is its name under playground/data/eval, `images` the image folder inside it. `metric`
    is the key of the headline number in a score, and `best` the number a perfect model gets, unless
    the score has a `best` of its own. `conv_mode` is the conversation that published scores are
    made with. Questions of the same `group` are scored together.
    Where `scored_here` is False, `score` raises a ValueError that says who scores the answers.
    """

    name: str
    title: str
    folder: str
    images: str
    metric: str
    load_questions: LoadQuestions
    score: Score
    best: float = 100.0
    max_new_tokens: int = 128
    conv_mode: str = "vicuna_v1"
    group: Callable[[Question], object] | None = None
    scored_here: bool = True


def require_complete(
    missing: Sequence[object], total: int, *, allow_missing: bool, name: Callable[[Any], str] = str
) -> None:
    """Raise a ValueError that names the questions without an answer, unless that is allowed."""
    if missing and not allow_missing:
        shown = "; ".join(map(name, missing[:_NAMED]))
        rest = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ValueError(
            f"{len(missing)} of {total} questions have no answer: {shown}{rest}. Run "
            f"the answering command again, or score the others with --allow-missing."
        )


def existing(path: Path, source: str, what: str = "") -> Path:
    """The file `path`; raises a FileNotFoundError that ends in its `source` if there is none.

    `what` it is begins the message, with a space behind it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{what}{path} not found: {source}")
    return path


def existing_annotations(path: Path, source: str) -> Path:
    """`existing`, for a file of annotations."""
    return existing(path, source, "Annotation file ")


def require_fields(answer: dict[str, Any], *names: str) -> None:
    """Raise a ValueError that names the fields which an answer lacks or has of another type."""
    json_files.check(answer, "an answer", {name: _FIELDS[name] for name in names})


def read_references(answers: list[Any], where: str) -> tuple[str, ...]:
    """The texts of the ten reference answers of VQA, `[{"answer": text}, ...]`.

    Raises:
        ValueError: they are not ten, or one has no text; begins with `where`.
    """
    texts = tuple(entry.get("answer") if isinstance(entry, dict) else None for entry in answers)
    if len(texts) != REFERENCES or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"{where}: expected {REFERENCES} answers, each with a text as `answer`, got "
            f"{json_files.shorten(answers)}"
        )
    return texts
