"""LLaVA's question files: one JSON object a line with `question_id`, `text` and `image`.

The file is scanned once to check every line; afterwards a question is read by its byte offset, so
memory stays at a few bytes a question however long the file is. Ids may repeat (the id of a
TextVQA question is its image's), hence the key of an answer is (line index, question_id).
Format: haotian-liu/LLaVA, docs/Evaluation.md and llava/eval/model_vqa_loader.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
from array import array
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llava.common import json_files
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import without_image_tokens

from .watched import ChangedError, WatchedFile, file_status, read_once, the_path

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

_BOM = b"\xef\xbb\xbf"
_NAMED = 5  # how many lines or questions a warning names before it only counts


@dataclass(frozen=True)
class Question:
    """One line. `index` counts the file's lines from 0; `image` is None for text-only questions.

    `logged` is what the answers file has as `prompt`, None for the text. `views` are several images
    whose places the text marks with <image>, `image` being the first; empty for an image that goes
    in front of the text, and `more` behind it. `options` are those of a question whose answer is a
    letter, where the answers file is to have them.
    """

    index: int
    question_id: str | int
    text: str
    image: str | None = None
    logged: str | None = None
    views: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    options: tuple[str, ...] | None = None

    @property
    def images(self) -> tuple[str, ...]:
        """All images, in order."""
        if self.views or self.image is None:
            return self.views
        return (self.image, *self.more)

    @property
    def in_front(self) -> int:
        """How many images go in front of the text."""
        return 0 if self.views else len(self.images)

    @property
    def prompt(self) -> str:
        """The prompt as the answers file has it."""
        return self.text if self.logged is None else self.logged

    @property
    def model_text(self) -> str:
        """The text as the model gets it: without literal image tokens, unless these are `views`."""
        return self.text if self.views else without_image_tokens(self.text)

    def __str__(self) -> str:
        return f"question {self.question_id!r} (line {self.index + 1})"


def parse_question(line: bytes, index: int, path: Path) -> Question:
    """Read one line of the file `path`.

    Raises:
        ValueError: the line is not a JSON object with a string or integer `question_id`, a
            non-empty `text` and, where present, an `image` path; names file and line.
    """

    where = f"{path}, line {index + 1}"
    try:
        entry = json_files.parse(line, where)
        json_files.check(entry, where, {"question_id": (str, int), "text": str}, {"image": str})
        if not entry["text"].strip():
            raise ValueError(f"{where}: text is empty")
        if entry.get("image") == "":
            raise ValueError(f"{where}: image is empty, not a path")
    except ValueError as error:
        raise ValueError(
            f'{error}. Expected an object like {{"question_id": 1, "image": "a.jpg", "text": '
            f'"..."}}: correct or remove the line.'
        ) from None
    return Question(index, entry["question_id"], entry["text"], entry.get("image"))


class QuestionFile:
    """A checked question file, or one contiguous chunk of it: `len`, and `file[i]` to a Question.

    A question is read when it is asked for; ChangedError is raised if its line is another by then.

    Attributes: `path`, `sha256` of the whole file, `total` questions in the whole file,
    `images_inside`: whether the file holds the images too, which JSON lines do not.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed line, two identical lines, no question at all, a wrong chunk.
    """

    images_inside = False

    def __init__(self, path: str | Path, num_chunks: int = 1, chunk_idx: int = 0) -> None:
        self.path = Path(path)
        scan = _scan(self.path)
        self.sha256 = scan.sha256
        self.total = len(scan.lines)
        self._watched = WatchedFile(self.path, scan.status, scan.sha256)
        start, stop = chunk_bounds(self.total, num_chunks, chunk_idx)
        columns = [scan.offsets, scan.lines, scan.contents]
        if stop - start < self.total:
            columns = [column[start:stop] for column in columns]
        self._offsets, self._lines, self._contents = columns

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, position: int) -> Question:
        if not 0 <= position < len(self):
            raise IndexError(position)
        try:
            question = _read(self.path, self._offsets[position], self._lines[position])
        except (ValueError, OSError) as error:
            raise ChangedError(f"{error} It was right when the file was read first.") from error
        if _hash(_content(question)) != self._contents[position]:
            raise ChangedError(f"{self.path}, line {question.index + 1} was another question")
        return question

    def position(self, index: int) -> int | None:
        """Position in this chunk of the question on line `index` of the file, None if elsewhere."""
        position = bisect_left(self._lines, index)
        is_here = position < len(self) and self._lines[position] == index
        return position if is_here else None

    def open_image(self, question: Question, folder: Path) -> Image.Image:
        """The RGB image at `folder` / question.image; raises what `open_in_folder` raises."""
        return open_in_folder(question, folder)

    def require_same(self) -> None:
        """Raise ChangedError if the file is not what was read from it first."""
        self._watched.require_same()

    def check_model(self, model: Any) -> None:
        """Every LLaVA model can be asked."""


@dataclass(frozen=True)
class _Scan:
    """What a file's questions are: where each starts, its line, and a hash of its content."""

    status: tuple[int, ...]
    sha256: str
    offsets: array[int]
    lines: array[int]
    contents: array[int]


@read_once(the_path)
def _scan(path: Path) -> _Scan:
    """Check every line, and note where each question starts; raises as `QuestionFile`."""
    if not path.is_file():
        raise FileNotFoundError(
            f"Question file {path} not found: expected a JSON-lines file. Those of "
            f"LLaVA's benchmarks are in its eval.zip; EVAL.md says where they go."
        )
    status, digest, ids = file_status(path), hashlib.sha256(), array("Q")
    offsets, lines, contents = array("Q"), array("Q"), array("Q")
    blank, sanitised = _Mentions(), _Mentions()
    offset = 0
    with path.open("rb") as file:
        for index, line in enumerate(file):
            digest.update(line)
            skip = len(_BOM) if index == 0 and line.startswith(_BOM) else 0
            if line[skip:].strip():
                question = parse_question(line[skip:], index, path)
                offsets.append(offset + skip)
                lines.append(index)
                contents.append(_hash(_content(question)))
                ids.append(_hash(question.question_id))
                if question.model_text != question.text:
                    sanitised.add(question)
            else:
                blank.add(index + 1)
            offset += len(line)
    if not lines:
        raise ValueError(f"{path} holds no question: expected one JSON object a line.")
    scan = _Scan(status, digest.hexdigest(), offsets, lines, contents)
    _refuse_identical(scan, path)
    distinct = len(np.unique(np.frombuffer(ids, np.uint64)))
    if distinct < len(ids):
        logger.warning(
            "%s: question ids repeat (%d distinct in %d questions); answers are told apart by "
            "line.",
            path,
            distinct,
            len(ids),
        )
    if blank.count:
        logger.warning("%s: skipped %d blank, line %s.", path, blank.count, blank)
    if sanitised.count:
        logger.warning(
            "%s: a literal %s was removed from what the model reads in %d: %s.",
            path,
            DEFAULT_IMAGE_TOKEN,
            sanitised.count,
            sanitised,
        )
    return scan


def _refuse_identical(scan: _Scan, path: Path) -> None:
    """Raise for two lines that ask the same thing under the same id."""
    hashes = np.array(scan.contents, np.uint64)
    values, counts = np.unique(hashes, return_counts=True)
    first: dict[str, int] = {}
    for position in np.flatnonzero(np.isin(hashes, values[counts > 1])):
        index = scan.lines[position]
        content = _content(_read(path, scan.offsets[position], index))
        if content in first:
            raise ValueError(
                f"{path}, lines {first[content] + 1} and {index + 1} are the same "
                f"question (question_id, image and text): {json_files.shorten(content)}. "
                f"Remove one of them."
            )
        first[content] = index


def _read(path: Path, offset: int, index: int) -> Question:
    """The question that starts at this byte of the file, on line `index`."""
    with path.open("rb") as file:
        file.seek(offset)
        return parse_question(file.readline(), index, path)


def open_in_folder(question: Question, folder: Path) -> Image.Image:
    """The RGB image that a question names as a path under `folder`.

    Raises:
        ValueError: a text-only question.
        OSError: no such file, or one that cannot be read; names it.
    """
    # Imported here because it brings Pillow, for which reading questions must not wait.
    from llava.common.images import read_file

    if question.image is None:
        raise ValueError(f"{question} has no image.")
    return read_file(folder / question.image)


def chunk_bounds(total: int, num_chunks: int, chunk_idx: int) -> tuple[int, int]:
    """Start and stop of one of `num_chunks` contiguous chunks of `total` questions.

    The chunks are disjoint, complete, in order and differ by one question at most; with more
    chunks than questions some are empty.

    Raises:
        ValueError: `num_chunks` below 1, or `chunk_idx` outside 0 .. num_chunks - 1.
    """
    if num_chunks < 1:
        raise ValueError(f"--num-chunks must be at least 1, got {num_chunks}.")
    if not 0 <= chunk_idx < num_chunks:
        raise ValueError(
            f"--chunk-idx must be from 0 to {num_chunks - 1} with --num-chunks {num_chunks}, "
            f"got {chunk_idx}."
        )
    return total * chunk_idx // num_chunks, total * (chunk_idx + 1) // num_chunks


class _Mentions:
    """Counts things and remembers the first few, for one warning instead of thousands."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []

    def add(self, thing: object) -> None:
        self.count += 1
        if len(self._first) < _NAMED:
            self._first.append(str(thing))

    def __str__(self) -> str:
        rest = self.count - len(self._first)
        return ", ".join(self._first) + (f" and {rest} more" if rest else "")


def _content(question: Question) -> str:
    return json.dumps([question.question_id, question.image, question.text])


def _hash(value: str | int) -> int:
    digest = hashlib.blake2b(json.dumps(value).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")
