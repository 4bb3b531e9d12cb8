"""Questions that do not come from JSON lines: held in memory, images in a folder or in a table.

ScienceQA's file is one JSON array, MMBench's a tab-separated table with the images inside it.
"""

from __future__ import annotations

import csv
import hashlib
import io
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .picture_cells import Place, decode
from .questions import Question, chunk_bounds, open_in_folder
from .watched import ChangedError, WatchedFile, file_sha256, file_status

if TYPE_CHECKING:
    from PIL import Image

_LARGEST_CELL = 2**31 - 1


class QuestionList:
    """Checked questions, or one contiguous chunk of them: `len`, and `list[i]` to a Question.

    `questions` are those of the whole file, by ascending index. `total` is how many these are,
    `images_inside` whether the file holds the images too.

    Raises:
        ValueError: no question at all, or a wrong chunk.
    """

    images_inside = False

    def __init__(
        self,
        path: Path,
        sha256: str,
        questions: Sequence[Question],
        num_chunks: int = 1,
        chunk_idx: int = 0,
    ) -> None:
        if not questions:
            raise ValueError(f"{path} holds no question.")
        self._watched = WatchedFile(path, file_status(path))
        self.path = path
        self.sha256 = sha256
        self.total = len(questions)
        start, stop = chunk_bounds(self.total, num_chunks, chunk_idx)
        self._questions = list(questions[start:stop])

    def __len__(self) -> int:
        return len(self._questions)

    def __getitem__(self, position: int) -> Question:
        if not 0 <= position < len(self):
            raise IndexError(position)
        return self._questions[position]

    def position(self, index: int) -> int | None:
        """Position in this chunk of the question with this index, None if it is elsewhere."""
        position = bisect_left(self._questions, index, key=lambda question: question.index)
        is_here = position < len(self) and self._questions[position].index == index
        return position if is_here else None

    def open_image(self, question: Question, folder: Path) -> Image.Image:
        """The RGB image at `folder` / question.image; raises what `open_in_folder` raises."""
        return open_in_folder(question, folder)

    def require_same(self) -> None:
        """Raise ChangedError if the file is not what was read from it first."""
        self._watched.require_same()

    def check_model(self, model: Any) -> None:
        """Every LLaVA model can be asked."""


class Table:
    """A tab-separated UTF-8 file with a header, whose cells may be quoted and very long.

    Iterating gives (byte offset, cells by column) for each row; `row` reads one again by its
    offset, so that images need not be kept in memory. Blank lines are skipped.

    Attributes: `path`, `columns`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, no header, a column twice, or a row of another width; names the line.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"Question file {path} not found: expected a TSV file.")
        self.path = path
        self._digests: dict[int, bytes] = {}  # of the rows that were iterated over, by offset
        header = next(self._read(0), None)
        if header is None:
            raise ValueError(f"{path} is empty: expected a TSV file with a header.")
        self.columns = [name.removeprefix("\ufeff") for name in header[1]]
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"{path}: a column is there twice in the header {self.columns}.")

    def __iter__(self) -> Iterator[tuple[int, dict[str, str]]]:
        rows = self._read(0)
        next(rows)
        for offset, cells in rows:
            self._digests[offset] = _digest(cells)
            yield offset, self._by_column(cells, offset)

    def row(self, offset: int) -> dict[str, str]:
        """The row that started at this byte of the file when it was iterated over.

        Raises:
            ChangedError: another one does by now.
        """
        try:
            _, cells = next(self._read(offset), (offset, []))
        except (ValueError, OSError) as error:
            raise ChangedError(str(error)) from error
        if _digest(cells) != self._digests[offset]:
            raise ChangedError(f"{self.path}, row at byte {offset} was another")
        return self._by_column(cells, offset)

    def _read(self, start: int) -> Iterator[tuple[int, list[str]]]:
        # The limit of the module, 128 KiB a cell, is less than an image takes.
        csv.field_size_limit(_LARGEST_CELL)
        with self.path.open("rb") as file:
            file.seek(start)
            reader = csv.reader((line.decode("utf-8") for line in file), delimiter="\t")
            while True:
                # The reader takes only the lines it needs, so this is where its next row starts.
                offset = file.tell()
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except (csv.Error, UnicodeDecodeError) as error:
                    raise ValueError(
                        f"{self.path}, row at byte {offset}: not a UTF-8 TSV ({error})."
                    ) from None
                if cells:
                    yield offset, cells

    def _by_column(self, cells: list[str], offset: int) -> dict[str, str]:
        if len(cells) != len(self.columns):
            raise ValueError(
                f"{self.path}, row at byte {offset}: {len(cells)} cells, but the header has "
                f"{len(self.columns)}. The file may be cut off: fetch it again."
            )
        return dict(zip(self.columns, cells))


class TableQuestions(QuestionList):
    """Questions whose images are in the cells of a table's column `image`; see `picture_cells`.

    `places` are, for every question of the whole file, those of its images, or why there are none.
    """

    images_inside = True

    def __init__(
        self,
        table: Table,
        sha256: str,
        questions: Sequence[Question],
        places: Sequence[list[Place] | str],
        num_chunks: int = 1,
        chunk_idx: int = 0,
    ) -> None:
        super().__init__(table.path, sha256, questions, num_chunks, chunk_idx)
        start, stop = chunk_bounds(self.total, num_chunks, chunk_idx)
        self._table = table
        self._places = places[start:stop]

    def open_image(self, question: Question, folder: Path) -> Image.Image:
        """The RGB image in the row that has it; `folder` does not matter."""
        from llava.common.images import read

        position = self.position(question.index)
        if position is None:
            raise ValueError(f"{question} is not in this part of {self.path}.")
        if isinstance(places := self._places[position], str):
            raise OSError(f"cannot read {question.image}: {places}")
        place = places[self[position].images.index(question.image)]
        cell = self._table.row(place.offset)["image"]
        try:
            return read(io.BytesIO(decode(cell, place.entry)))
        # Pillow's decoders raise SyntaxError, ValueError, EOFError, struct.error... on damaged data
        except Exception as error:
            raise OSError(f"cannot read {question.image}: {error}") from error


def _digest(cells: list[str]) -> bytes:
    return hashlib.blake2b("\t".join(cells).encode(), digest_size=8).digest()


def file_digest(path: Path, instruction: str | None = None) -> str:
    """SHA-256 of a question file and of what the program appends to each of its questions."""
    digest = file_sha256(path)
    digest.update((instruction or "").encode())
    return digest.hexdigest()
