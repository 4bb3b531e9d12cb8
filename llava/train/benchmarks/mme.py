"""MME in small: two questions about a picture, one to be answered with yes and one with no.

Official files: `llava_mme.jsonl` and, in `MME_Benchmark_release_version/TASK/`, the pictures and a
`.txt` with question, tab and answer for each. Five tasks of perception and one of cognition.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

from llava.train.benchmarks.common import Folder, Pairs, SceneQuestion, scenes
from llava.train.questions import ask
from llava.train.scenes import Scene
from llava.train.turns import SHORT

_RELEASE = "MME_Benchmark_release_version"
_TASKS = {
    "existence": "exists",
    "count": "is count",
    "position": "is side",
    "color": "exists colored",
    "OCR": "says",
    "numerical_calculation": "number",
}
_PICTURES = 26  # a task


def write(folder: Folder) -> None:
    """Write the benchmark."""
    questions, entries = [], []
    pictures = scenes(3)
    for task, kind in _TASKS.items():
        for yes, no in _choose(pictures, kind):
            image = f"{task}/{yes.image}"
            folder.save_picture(yes.scene, f"{_RELEASE}/{image}")
            lines = []
            for entry in (yes, no):
                entries.append(entry)
                text, answer = entry.question.text, entry.question.answer.capitalize()
                lines.append(f"{text} Please answer yes or no.\t{answer}\n")
                questions.append(
                    {
                        "question_id": image,
                        "image": image,
                        "text": text + SHORT,
                        "category": task,
                    }
                )
            folder.write_text(f"{_RELEASE}/{image.removesuffix('.jpg')}.txt", "".join(lines))
    folder.write_lines("llava_mme.jsonl", questions)
    folder.write_metadata(
        e.metadata(q["question_id"]) for q, e in zip(questions, entries, strict=True)
    )


def _choose(pictures: Iterator[Scene], kind: str) -> Iterator[tuple[SceneQuestion, SceneQuestion]]:
    """A yes and a no about each of `_PICTURES` scenes, without those that allow no fair pair."""
    pairs = Pairs(random.Random(f"mme {kind}"))
    taken = ((scene, pairs.take(ask(scene, (kind,)))) for scene in pictures)
    for scene, (yes, no) in islice(((scene, pair) for scene, pair in taken if pair), _PICTURES):
        yield SceneQuestion(scene, yes), SceneQuestion(scene, no)
