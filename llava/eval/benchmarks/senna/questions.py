"""Senna's question file: one JSON list, of which the questions about the plan are asked.

An entry has `token` (the nuScenes sample), `image` (the front view), `images` (six paths, in the
order of `plan.CAMERAS`) and `conversations`, [{"from": "human", "value": ...}, {"from": "gpt",
"value": ...}]; upstream's files have more keys, which nothing here reads. The human's text marks
the place of each image with <image>. Entries that do not ask for a plan are left out, as upstream's
scoring leaves them out. Format: hustvl/Senna at cddce26.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.common import json_files
from llava.constants import DEFAULT_IMAGE_TOKEN

from ...run.question_list import QuestionList, file_digest
from ...run.questions import Question
from ...run.watched import read_once, the_path
from .plan import MARK, Plan, annotated_plan


@dataclass(frozen=True)
class Entry:
    """One question about a plan; `index` is its place in the file, from 0."""

    index: int
    token: str
    images: tuple[str, ...]
    question: str
    plan: Plan


class SennaQuestions(QuestionList):
    """The plan questions of a file, or one contiguous chunk of them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed entry, two entries of one token, no plan question, a wrong chunk.
    """

    def __init__(self, path: Path, num_chunks: int = 1, chunk_idx: int = 0) -> None:
        entries = read_entries(path)
        questions = [
            Question(e.index, e.token, e.question, e.images[0], views=e.images) for e in entries
        ]
        super().__init__(path, file_digest(path), questions, num_chunks, chunk_idx)

    def check_model(self, model: Any) -> None:
        """Raise ValueError unless the model has Senna's token adapter."""
        if model.get_model().img_adapter is None:
            raise ValueError(
                f"{self.path.name} asks about six views, for which Senna's adapter makes 128 "
                "tokens each, but this checkpoint has no adapter (model.img_adapter.adapter.*): "
                "give a Senna checkpoint, such as rb93dett/Senna on the Hugging Face hub"
            )


@read_once(the_path)
def read_entries(path: Path) -> list[Entry]:
    """The plan questions of a file, in its order.

    Raises:
        FileNotFoundError: no such file; says where it comes from.
        ValueError: not Senna's format; names the entry. Two entries of one token, or none at all.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"Question file {path} not found: Senna's authors have not published theirs "
            "(eval_plan_qa.json); python -m llava.eval.benchmarks.senna.build writes one from "
            "trajectories."
        )
    entries = list(_plans(json_files.read(path, list), path))
    seen: dict[str, int] = {}
    for entry in entries:
        if entry.token in seen:
            raise ValueError(
                f"{path}: entries {seen[entry.token]} and {entry.index} both ask for the plan of "
                f"{entry.token}. Remove one of them."
            )
        seen[entry.token] = entry.index
    if not entries:
        raise ValueError(f"{path} has no question with {MARK!r}, and only these are asked.")
    return entries


def _plans(content: list[Any], path: Path) -> Iterator[Entry]:
    for index, item in enumerate(content):
        where = f"{path}, entry {index}"
        turns = json_files.check(item, where, {"conversations": list})["conversations"][:2]
        if len(turns) < 2:
            raise ValueError(f"{where}: conversations must have two turns, of human and gpt")
        human, gpt = (
            json_files.check(turn, f"{where}, conversations", {"value": str})["value"]
            for turn in turns
        )
        if MARK not in human:
            continue
        json_files.check(item, where, {"token": (str, int), "images": list})
        images = item["images"]
        if not images or not all(isinstance(image, str) for image in images):
            raise ValueError(f"{where}: images must be paths, got {json_files.shorten(images)}")
        places = human.count(DEFAULT_IMAGE_TOKEN)
        if places != len(images):
            raise ValueError(
                f"{where}: {places} {DEFAULT_IMAGE_TOKEN} in the text, {len(images)} images"
            )
        try:
            plan = annotated_plan(gpt)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        yield Entry(index, str(item["token"]), tuple(images), human, plan)
