"""MMBench in small: multiple choice with all circular rotations of the options.

Official file: `mmbench_dev_20230712.tsv`, pictures in base64; a rotation has the index of its
question plus a million, two million, and so on. Six questions have a second picture in front of
the one they are about, and the same answer by both; their metadata tells of the latter.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from llava.train.benchmarks.common import Folder, SceneQuestion, collect, jpeg, scenes
from llava.train.benchmarks.scienceqa import spread
from llava.train.questions import ask
from llava.train.scenes import Scene

_FILE = "mmbench_dev_20230712.tsv"
_ROTATION = 1_000_000
_COLUMNS = (
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "image",
    "source",
    "l2-category",
    "comment",
    "split",
)
_QUOTAS = {
    "color": 12,
    "pattern": 12,
    "read": 12,
    "count": 10,
    "choose side": 10,
    "beside": 14,
    "twin shape": 12,
    "size": 6,
    "place": 12,
}
_TWO_PICTURES = 6  # questions
_PLACELESS = ("color", "pattern", "read", "count", "size")  # kinds that mean two pictures as well
_CATEGORIES = {  # category and its group, in MMBench's names
    "color": ("attribute_recognition", "finegrained_perception (instance-level)"),
    "pattern": ("attribute_recognition", "finegrained_perception (instance-level)"),
    "size": ("attribute_recognition", "finegrained_perception (instance-level)"),
    "place": ("object_localization", "finegrained_perception (instance-level)"),
    "count": ("object_localization", "finegrained_perception (instance-level)"),
    "read": ("ocr", "finegrained_perception (instance-level)"),
    "choose side": ("spatial_relationship", "finegrained_perception (cross-instance)"),
    "beside": ("spatial_relationship", "finegrained_perception (cross-instance)"),
    "twin shape": ("attribute_comparison", "finegrained_perception (cross-instance)"),
}


def write(folder: Folder) -> None:
    """Write the benchmark: all questions first, then their rotations, as the official file."""
    rng = random.Random("mmbench")
    entries = collect(scenes(5), _QUOTAS, per_scene=2, seed=5)
    used: Counter[tuple[str, int]] = Counter()
    base = [spread(entry.question, rng.choice((2, 3, 4, 4, 4)), used, rng) for entry in entries]
    in_front = dict(islice(_in_front(entries), _TWO_PICTURES))
    rows, metadata = [], []
    for turn in range(4):
        for number, (entry, options) in enumerate(zip(entries, base, strict=True)):
            if turn < len(options):
                index = number + turn * _ROTATION
                turned = options[turn:] + options[:turn]
                letter = "ABCD"[turned.index(entry.question.answer)]
                rows.append(_row(index, entry, turned, letter, in_front.get(number)))
                metadata.append((index, entry.question, entry.scene, letter))
    text = io.StringIO()
    table = csv.DictWriter(text, _COLUMNS, delimiter="\t", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    folder.write_text(_FILE, text.getvalue())
    folder.write_metadata(metadata)


def _in_front(entries: list[SceneQuestion]) -> Iterator[tuple[int, Scene]]:
    """From the last on, the questions (by number) that another one's scene leaves as they are,
    and that scene."""
    for number in reversed(range(len(entries))):
        scene, question = entries[number].scene, entries[number].question
        for other in (entry.scene for entry in reversed(entries[:number])):
            both = replace(
                scene, signs=other.signs + scene.signs, things=other.things + scene.things
            )
            alike = ask(both, (question.kind,)) if question.kind in _PLACELESS else []
            if other != scene and (question.text, question.answer) in (
                (q.text, q.answer) for q in alike
            ):
                yield number, other
                break


def _row(
    index: int, entry: SceneQuestion, options: list[str], letter: str, in_front: Scene | None
) -> dict[str, object]:
    category, group = _CATEGORIES[entry.question.kind]
    pictures = [
        base64.b64encode(jpeg(scene)).decode() for scene in (in_front, entry.scene) if scene
    ]
    return {
        "index": index,
        "question": entry.question.text,
        "hint": "",
        **dict(zip("ABCD", options, strict=False)),
        "answer": letter,
        "category": category,
        "image": pictures[0] if len(pictures) == 1 else json.dumps(pictures),
        "source": "mini",
        "l2-category": group,
        "comment": "",
        "split": "dev",
    }
