"""ScienceQA in small: multiple choice, a third of it without a picture.

Official files: `llava_test_CQM-A.json`, `problems.json`, `pid_splits.json`, `images/test/`. The
right letters are spread evenly. Pictures are JPEG files, not PNG as there, to stay small.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from llava.train.benchmarks.common import Folder, SceneQuestion, collect, scenes
from llava.train.lessons import lesson
from llava.train.question import Question
from llava.train.scenes import Scene
from llava.train.turns import choices, lettered

_QUOTAS = {
    "color": 28,
    "shape": 24,
    "pattern": 24,
    "read": 28,
    "count": 24,
    "beside": 24,
    "choose side": 20,
    "twin shape": 24,
    "larger": 12,
}
_WITHOUT_IMAGE = 104
_SUBJECTS = {True: "natural science", False: "language science"}


def write(folder: Folder) -> None:
    """Write the benchmark."""
    rng = random.Random("scienceqa")
    pictured: list[SceneQuestion] = collect(scenes(4), _QUOTAS, per_scene=2, seed=4)
    entries: list[tuple[Question, Scene | None]] = [(a.question, a.scene) for a in pictured]
    entries += [(lesson(rng), None) for _ in range(_WITHOUT_IMAGE)]
    rng.shuffle(entries)
    used: Counter[tuple[str, int]] = Counter()
    questions, problems, metadata = [], {}, []
    for number, (question, scene) in enumerate(entries, 1):
        problem_id = str(number)
        options = spread(question, rng.randint(2, 4), used, rng)
        letter = "ABCDE"[options.index(question.answer)]
        if scene is not None:
            folder.save_picture(scene, f"images/test/{problem_id}/image.jpg")
        questions.append(_question(problem_id, question, options, letter, scene is not None))
        problems[problem_id] = _problem(question, options, scene is not None)
        metadata.append((problem_id, question, scene, letter))
    folder.write_json("llava_test_CQM-A.json", questions)
    folder.write_json("problems.json", problems)
    folder.write_json("pid_splits.json", {"test": list(problems)})
    folder.write_metadata(metadata)


def spread(
    question: Question, count: int, used: Counter[tuple[str, int]], rng: random.Random
) -> list[str]:
    """`count` options with the answer where it was least often for this kind, says `used`."""
    options = choices(question, count, rng)
    options.remove(question.answer)
    place = min(range(len(options) + 1), key=lambda i: (used[question.kind, i], i))
    used[question.kind, place] += 1
    return [*options[:place], question.answer, *options[place:]]


def _question(
    problem_id: str, question: Question, options: list[str], letter: str, image: bool
) -> dict[str, Any]:
    text = lettered(question.text, options)
    entry: dict[str, Any] = {"id": problem_id}
    if image:
        entry["image"] = f"{problem_id}/image.jpg"
        text = f"<image>\n{text}"
    entry["conversations"] = [{"from": "human", "value": text}, {"from": "gpt", "value": letter}]
    return entry


def _problem(question: Question, options: list[str], image: bool) -> dict[str, Any]:
    *context, text = question.text.split("\n")
    return {
        "question": text,
        "choices": options,
        "answer": options.index(question.answer),
        "hint": "".join(context).removeprefix("Context: "),
        "image": "image.jpg" if image else None,
        "task": "closed choice",
        "grade": "grade2",
        "subject": _SUBJECTS[image],
        "topic": question.kind,
        "category": question.kind,
        "skill": question.kind,
        "lecture": "",
        "solution": "",
        "split": "test",
    }
