"""What a benchmark is: its files and their sources, how it is asked, and how answers are scored."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llava.common import json_files

from ..run.answers import QuestionSource
from ..run.questions import Question, QuestionFile
from .answer_normaliser import REFERENCES

#: By the checkpoint's name on the hub, the most tokens that its vision tower hands over.
VISUAL_TOKENS = {
    "liuhaotian/llava-v1.5-7b": 576,
    "liuhaotian/llava-v1.5-13b": 576,
    "liuhaotian/llava-v1.6-vicuna-7b": 2880,
    "liuhaotian/llava-v1.6-vicuna-13b": 2880,
}

_NAMED = 5  # how many ids a message names before it only counts

# What an answer has in LLaVA's schema.
_FIELDS: dict[str, json_files.Types] = {"question_id": (str, int), "prompt": str, "text": str}


@dataclass(frozen=True)
class File:
    """A file or folder that a benchmark needs: `path` in its folder, and where it comes from.

    `advice` is a further line for whoever lacks it, {folder} in it the benchmark's folder.
    """

    path: str
    source: str
    kind: str = "annotations"
    advice: str = ""

    def origin(self, folder: Path) -> str:
        """What it is, its source and the advice, in lines."""
        lines = [f"{self.kind}: {self.source}", self.advice.format(folder=folder)]
        return "\n".join(line for line in lines if line)


def question_list(folder: str, name: str, advice: str = "") -> File:
    """A question file that LLaVA's eval.zip has in `folder`."""
    return File(name, f"{folder}/ of LLaVA's eval.zip", "questions", advice)


@dataclass(frozen=True)
class Submission:
    """The file for whoever scores the answers of a split.

    `write(target, folder, question_file, answers)` writes it and returns its counts; it raises what
    is wrong with the answers. `scorer` is who takes it, and `note` what to tell about that, {file}
    in it the file.
    """

    write: Callable[[Path, Path, Path, Iterable[dict[str, Any]]], dict[str, int]]
    scorer: str
    note: str


@dataclass(frozen=True)
class Split:
    """The files of one split, and who scores answers to it.

    `images` None: the pictures are in the question file. `truth` is what else has to be there.
    `scored_as` is the benchmark that scores its answers here; where it is empty, there is a
    `submission`. Of several splits the first is meant whose `names` is found in the name of the
    question file that the user gives, or, without one, whose file `decided_by` is there; else the
    last. The answers of a split that is `apart` have a folder named after its question file.
    """

    questions: File
    images: File | None = None
    truth: tuple[File, ...] = ()
    scored_as: str = ""
    submission: Submission | None = None
    names: str = ""
    decided_by: str = ""
    apart: bool = False


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

    `folder` is its name under playground/data/eval. `metric` is the key of the headline number in a
    score, and `best` the number a perfect model gets, unless the score has a `best` of its own.
    `conv_mode` is the conversation that published scores are made with. Questions of the same
    `group` are scored together.

    `program` answers it, given `flags`, with the `checkpoint` of this name on the hub unless
    another is named; `views` is how many pictures a question has, each with a budget of its own.
    `scoring` is the command behind the answers, with {name}, {folder}, {questions} and {answers};
    `script` is the shell script that does all that. Where answers are not `scored_here`, `score`
    raises a ValueError that says who scores them.
    """

    name: str
    title: str
    folder: str
    splits: tuple[Split, ...]
    metric: str
    load_questions: LoadQuestions
    score: Score
    best: float = 100.0
    max_new_tokens: int = 128
    conv_mode: str = "vicuna_v1"
    group: Callable[[Question], object] | None = None
    program: str = "llava.eval.model_vqa_loader"
    flags: tuple[str, ...] = ()
    checkpoint: str = "liuhaotian/llava-v1.5-7b"
    views: int = 1
    scoring: tuple[str, ...] = (
        "llava.eval.score",
        "--benchmark",
        "{name}",
        "--data",
        "{folder}",
        "{answers}",
    )
    script: str = ""

    @property
    def split(self) -> Split:
        """The split that `load_questions` reads and `score` scores."""
        mine = (split for split in self.splits if split.scored_as == self.name)
        return next(mine, self.splits[0])

    @property
    def images(self) -> str:
        """The image folder inside the benchmark's folder."""
        return self.split.images.path if self.split.images else "."

    @property
    def scored_here(self) -> bool:
        return bool(self.split.scored_as)

    def split_of(self, folder: Path, question_file: Path | None = None) -> Split:
        """The split that is meant, by the question file that the user gives or the folder has."""
        for split in self.splits[:-1]:
            if question_file is not None:
                meant = re.search(split.names, question_file.name) is not None
            else:
                meant = bool(split.decided_by) and (folder / split.decided_by).exists()
            if meant:
                return split
        return self.splits[-1]


#: The benchmarks by name, in the order in which they were registered.
BENCHMARKS: dict[str, Benchmark] = {}


def register(benchmark: Benchmark) -> Benchmark:
    """Let every program know a benchmark from here on; returns it.

    Raises:
        ValueError: another one has its name.
    """
    if BENCHMARKS.setdefault(benchmark.name, benchmark) is not benchmark:
        raise ValueError(f"there is another benchmark {benchmark.name!r}: give it another name")
    return benchmark


def question_lines(file: File) -> LoadQuestions:
    """Reads the questions of a JSON-lines file.

    What it returns raises FileNotFoundError, saying where the file comes from, and ValueError for a
    malformed file or a wrong chunk.
    """

    def load_questions(folder: Path, num_chunks: int = 1, chunk_idx: int = 0) -> QuestionFile:
        path = existing(folder / file.path, f"it is in {file.source}.")
        return QuestionFile(path, num_chunks, chunk_idx)

    return load_questions


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


def existing(path: Path, source: str, kind: str = "") -> Path:
    """The file `path`; raises a FileNotFoundError that ends in its `source` if there is none.

    `kind` begins the message, with a space behind it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{kind}{path} not found: {source}")
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
