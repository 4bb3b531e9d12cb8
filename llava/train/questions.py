"""Every kind of question about a scene, by name, and the list of everything in it.

To add a kind, write a function from scene to questions in `thing_questions` or `sign_questions` and
enter it in `KINDS`; give it a weight in `llava.train.turns` and a place in a benchmark of
`llava.train.benchmarks`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache

from llava.train import sign_questions as signs
from llava.train import thing_questions as things
from llava.train.items import Sign, Thing
from llava.train.question import Question
from llava.train.scenes import TRAINING_SEEDS, Scene, make_scene
from llava.train.vocabulary import SHAPES

KINDS: dict[str, Callable[[Scene], Iterable[Question]]] = {
    "color": things.color,
    "shape": things.shape,
    "pattern": things.pattern,
    "size": things.size,
    "place": things.place,
    "exists": things.exists,
    "exists colored": things.exists_colored,
    "is color": things.is_color,
    "choose side": things.choose_side,
    "is side": things.is_side,
    "same color": things.same_color,
    "twin shape": things.twin_shape,
    "twin pattern": things.twin_pattern,
    "twin side": things.twin_side,
    "beside": things.beside,
    "larger": things.larger,
    "count": things.count,
    "is count": things.is_count,
    "read": signs.read,
    "read place": signs.read_place,
    "sign color": signs.sign_color,
    "says": signs.says,
    "number": signs.number,
}


def ask(scene: Scene, kinds: Iterable[str]) -> list[Question]:
    """All questions of the given kinds about a scene, kind by kind."""
    return [question for kind in kinds for question in KINDS[kind](scene)]


def describe(scene: Scene, by_row: bool) -> str:
    """Every item of the scene, from top to bottom or (not `by_row`) from left to right."""
    words = []
    for item in sorted(scene.items, key=lambda i: i.y if by_row else i.x):
        if isinstance(item, Sign):
            words.append(f"{item.colour} sign {item.text.upper()} {item.place}")
        elif isinstance(item, Thing):
            words.append(f"{item.size} {item.pattern} {item.colour} {item.shape} {item.place}")
    return ", ".join(words)


@cache
def presence() -> dict[str, float]:
    """Share of the training scenes in which each shape occurs."""
    scenes = [make_scene(seed) for seed in TRAINING_SEEDS[:1000]]
    counts = Counter(shape for scene in scenes for shape in {t.shape for t in scene.things})
    return {shape: counts[shape] / len(scenes) for shape in SHAPES}
