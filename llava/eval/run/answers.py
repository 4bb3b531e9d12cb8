"""The answers file of a run: which questions have an answer, and a place for the next.

Schema of a line: haotian-liu/LLaVA, llava/eval/model_vqa_loader.py (`question_id, prompt, text,
answer_id, model_id, metadata`). `metadata["index"]` is the line of the question file, from 0: ids
repeat in TextVQA and MME, so (index, question_id) is what identifies an answer.
"""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llava.common import json_files

from .linefile import LineFile, read_lines
from .questions import Question
from .totals import Totals, check_metadata

if TYPE_CHECKING:
    from PIL import Image

_UNANSWERED = 2**64 - 1


class QuestionSource(Protocol):
    """What a run needs of a list of questions; `QuestionFile` is one.

    Reading a question or its image raises ChangedError where the file no longer holds it.

    `sha256` changes with anything that changes a question; runs of different ones never mix.
    `images_inside` says that the images are not in a folder but in the file itself.
    """

    path: Path
    sha256: str
    images_inside: bool

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> Question: ...

    def position(self, index: int) -> int | None: ...

    def open_image(self, question: Question, folder: Path) -> Image.Image:
        """The decoded RGB image `question.image`; `folder` is --image-folder.

        Raises OSError, naming the image, if there is none or it cannot be read.
        """
        ...

    def require_same(self) -> None:
        """Raise ChangedError if the file is not what the questions were read from any more."""
        ...

    def check_model(self, model: Any) -> None:
        """Raise ValueError if the model is not one that can be asked these questions."""
        ...


def answered_index(answer: dict[str, Any]) -> int | None:
    """`metadata["index"]` of an answer from a file, None if that is no whole number."""
    metadata = answer.get("metadata")
    index = metadata.get("index") if isinstance(metadata, dict) else None
    return index if json_files.is_one_of(index, int) else None


def answered_position(answer: dict[str, Any], questions: QuestionSource, where: str) -> int:
    """Position of the question that a line of an answers file, at `where`, is an answer to.

    Raises:
        ValueError: of none of these, or its metadata are not what this version writes.
    """
    index = answered_index(answer)
    position = None if index is None else questions.position(index)
    question_id = answer.get("question_id")
    if position is None or questions[position].question_id != question_id:
        raise ValueError(
            f"{where}: answers question {json_files.shorten(question_id)} with metadata index "
            f"{index}, which is not in this part of {questions.path}"
        )
    check_metadata(answer["metadata"], f"{where}, metadata")
    return position


class AnswerFile:
    """Answers to `questions`, continued where an earlier run stopped.

    Attributes: `answered`, how many questions have an answer; `totals` over all of them.

    Raises:
        OSError: the file cannot be opened or read.
        ValueError: another process writes to it, or it holds something that is no answer to
            `questions`, or two answers to one; names the line and what to do.
    """

    def __init__(self, path: Path, questions: QuestionSource) -> None:
        self.path = path
        self.answered = 0
        self.totals = Totals()
        self._offsets = array("Q", [_UNANSWERED]) * len(questions)
        self._last = -1
        self._sorted = True
        self._created = not path.exists()
        self._file = LineFile(path)
        try:
            self._restore(questions)
        except BaseException:
            self._file.close()
            raise

    def pending(self) -> array:
        """Positions of the questions without an answer, ascending."""
        return array("Q", (i for i, at in enumerate(self._offsets) if at == _UNANSWERED))

    def append(self, position: int, answer: dict[str, Any]) -> None:
        """Write the answer to the question at `position`.

        Raises:
            WriteError: it could not be written; every earlier answer is safe.
            LostError: something else has changed the file.
        """
        self._note(position, self._file.append(answer), answer["metadata"])

    def sync(self) -> None:
        """Make the answers survive a power cut; raises as `append`."""
        self._file.sync()

    def verify(self) -> None:
        """Raise LostError unless all answers are in the file; see `LineFile.verify`."""
        self._file.verify()

    def at(self, path: Path) -> bool:
        """Whether the path names the file, also once it is closed."""
        return self._file.at(path)

    def discard_if_new(self) -> None:
        """Remove the file if this object made it and nothing was written to it."""
        if self._created and not self.answered and self.at(self.path):
            self.path.unlink(missing_ok=True)

    def put_in_order(self) -> None:
        """Bring the answers into the order of the questions, which retries break; the last step.

        Raises:
            WriteError: no space for the ordered copy; the answers are safe, out of order.
            LostError: something else has changed the file.
        """
        if not self._sorted:
            self._file.reorder(offset for offset in self._offsets if offset != _UNANSWERED)

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def _restore(self, questions: QuestionSource) -> None:
        for number, offset, answer in read_lines(self.path):
            where = f"{self.path}, line {number}"
            try:
                position = answered_position(answer, questions, where)
            except ValueError as error:
                raise ValueError(
                    f"{error}. Give another --answers-file, or remove this one to start over."
                ) from None
            if self._offsets[position] != _UNANSWERED:
                raise ValueError(
                    f"{where}: a second answer to {questions[position]}. Remove one of the two."
                )
            self._note(position, offset, answer["metadata"])

    def _note(self, position: int, offset: int, metadata: dict[str, Any]) -> None:
        self._offsets[position] = offset
        self._sorted &= position > self._last
        self._last = position
        self.answered += 1
        self.totals.add(metadata)


class FailureFile:
    """The questions that a session could not answer; none, no file.

    Attributes: `count` so far. An older file is removed: its questions are tried again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._file: LineFile | None = None
        path.unlink(missing_ok=True)

    def append(self, question: Question, error: str) -> None:
        """Write index, question_id, image and error; raises WriteError and LostError."""
        if self._file is None:
            self._file = LineFile(self.path)
        self._file.append(
            {
                "index": question.index,
                "question_id": question.question_id,
                "image": question.image,
                "error": error,
            }
        )
        self.count += 1

    def verify(self) -> None:
        """Raise LostError unless all of them are in the file; see `LineFile.verify`."""
        if self._file is not None:
            self._file.verify()

    def close(self) -> None:
        """Release the file."""
        if self._file is not None:
            self._file.close()
