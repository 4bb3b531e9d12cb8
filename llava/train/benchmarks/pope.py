"""POPE in small: is there a shape? Absent ones are drawn in POPE's three ways.

Official files: `llava_pope_test.jsonl`, `coco/coco_pope_{random,popular,adversarial}.json` (JSON
lines), `val2014/`. Random: any absent shape; popular: one of those that are drawn most;
adversarial: one whose usual partner is there. In each category every noun is asked about as often
with yes as with no.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from llava.train.benchmarks.common import Folder, SceneQuestion, scenes
from llava.train.questions import ask
from llava.train.scenes import Scene
from llava.train.turns import SHORT
from llava.train.vocabulary import PARTNERS, SHAPES

CATEGORIES = ("adversarial", "popular", "random")
_PER_CATEGORY = 120
_PER_SCENE = 6
_POPULAR = [shape for shape, weight in SHAPES.items() if weight == max(SHAPES.values())]


def write(folder: Folder) -> None:
    """Write the benchmark."""
    questions, entries = [], []
    for category in CATEGORIES:
        labels = []
        for entry in _choose(category):
            folder.save_picture(entry.scene, f"val2014/{entry.image}")
            entries.append(entry)
            text = entry.question.text
            line = {"question_id": len(labels) + 1, "image": entry.image, "text": text}
            labels.append({**line, "label": entry.question.answer})
            questions.append(
                {
                    "question_id": len(questions) + 1,
                    "image": entry.image,
                    "text": text + SHORT,
                    "category": category,
                }
            )
        folder.write_lines(f"coco/coco_pope_{category}.json", labels)
    folder.write_lines("llava_pope_test.jsonl", questions)
    folder.write_metadata(
        e.metadata(q["question_id"]) for q, e in zip(questions, entries, strict=True)
    )


def _choose(category: str) -> Iterator[SceneQuestion]:
    """Questions of a category, from the same scenes for all of them."""
    nouns = _POPULAR if category == "popular" else list(SHAPES)
    quota = _PER_CATEGORY // (2 * len(nouns))
    left = Counter({(noun, answer): quota for noun in nouns for answer in ("yes", "no")})
    for scene in scenes(2):
        room = _PER_SCENE
        # what is still wanted most comes first
        for question in sorted(ask(scene, ("exists",)), key=lambda q: -left[q.subject, q.answer]):
            wanted = left[question.subject, question.answer] > 0
            if (
                room
                and wanted
                and (question.answer == "yes" or _tempts(category, question.subject, scene))
            ):
                left[question.subject, question.answer] -= 1
                room -= 1
                yield SceneQuestion(scene, question)
        if not +left:
            return


def _tempts(category: str, absent: str, scene: Scene) -> bool:
    """Whether a category asks about this absent shape."""
    if category == "adversarial":
        return PARTNERS[absent] in {thing.shape for thing in scene.things}
    return True
