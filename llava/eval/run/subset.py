"""A part of a benchmark's questions, spread over its whole file.

Files have an order: POPE goes through its three categories and says yes and no in turn. So the
part is neither the beginning of the file nor every k-th question, which could be of one answer:
the file is cut into as many equal stretches as questions are wanted, and within its stretch each
question is chosen by the fractional parts of multiples of the golden ratio, which keep no step with
anything. Nothing is random; the same file and limit always give the same questions.

With a seed they are drawn at random instead, each as likely as any other.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from .answers import QuestionSource
from .questions import Question

if TYPE_CHECKING:
    from PIL import Image

Group = Callable[[Question], object]

_GOLDEN = 0x9E3779B97F4A7C15  # the golden ratio's fractional part, times 2^64


def take(
    questions: QuestionSource,
    limit: int | None,
    group: Group | None = None,
    seed: int | None = None,
) -> QuestionSource:
    """At most `limit` of the questions, or all if there are no more; None for no limit.

    Questions with the same `group` come together or not at all; at least one group always comes.
    `seed`: drawn at random, not spread.

    Raises:
        ValueError: a limit below 1.
    """
    if limit is None or limit >= len(questions):
        return questions
    if limit < 1:
        raise ValueError(f"the limit must be at least 1 question, got {limit}.")
    return Subset(questions, limit, group, seed)


class Subset:
    """The chosen questions, in the file's order and with their own indices; see `take`.

    Attributes: `path` of the file; `images_inside` it or not; `total` questions to choose from;
    `sha256` of what was chosen.
    """

    def __init__(
        self,
        questions: QuestionSource,
        limit: int,
        group: Group | None = None,
        seed: int | None = None,
    ) -> None:
        self._questions = questions
        self.path: Path = questions.path
        self.images_inside = questions.images_inside
        self.total = len(questions)
        self._positions = array("Q", _choose(questions, limit, group, seed))
        chosen = hashlib.sha256(f"{questions.sha256} of {self.total}:".encode())
        chosen.update(" ".join(map(str, self._positions)).encode())
        self.sha256 = chosen.hexdigest()

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, position: int) -> Question:
        if not 0 <= position < len(self):
            raise IndexError(position)
        return self._questions[self._positions[position]]

    def position(self, index: int) -> int | None:
        """Position among the chosen of the question with this index, None if it is not chosen."""
        within = self._questions.position(index)
        if within is None:
            return None
        position = bisect_left(self._positions, within)
        is_here = position < len(self) and self._positions[position] == within
        return position if is_here else None

    def open_image(self, question: Question, folder: Path) -> Image.Image:
        """The question's RGB image; raises what the whole list raises."""
        return self._questions.open_image(question, folder)

    def require_same(self) -> None:
        """Raises what the whole list raises."""
        self._questions.require_same()

    def check_model(self, model: Any) -> None:
        """Raises what the whole list raises."""
        self._questions.check_model(model)


def spread(count: int, total: int) -> list[int]:
    """`count` of the numbers 0 .. `total` - 1, ascending, one from each of as many stretches."""
    chosen = []
    for i in range(count):
        first, end = i * total // count, (i + 1) * total // count
        chosen.append(first + ((i * _GOLDEN % 2**64) * (end - first) >> 64))
    return chosen


def _choose(
    questions: QuestionSource, limit: int, group: Group | None, seed: int | None
) -> list[int]:
    """Positions, ascending."""

    def some(count: int, total: int) -> list[int]:
        return spread(count, total) if seed is None else Random(seed).sample(range(total), count)

    if group is None:
        return sorted(some(limit, len(questions)))
    groups: dict[object, list[int]] = {}
    for position in range(len(questions)):
        groups.setdefault(group(questions[position]), []).append(position)
    members = list(groups.values())
    # As many groups as fit if all were of mean size, and fewer if the chosen are larger.
    count = max(limit * len(members) // len(questions), 1)
    while True:
        chosen = sorted(p for i in some(count, len(members)) for p in members[i])
        if len(chosen) <= limit or count == 1:
            return chosen
        count -= 1
