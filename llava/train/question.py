"""A question about a scene, and the ways to name what it is about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from llava.train.items import Item, Thing
from llava.train.scenes import Scene


@dataclass(frozen=True)
class Question:
    """A question with its one right answer.

    `targets` are the items that must be seen, `hops` how many have to be found one after the other,
    `options` what the answer could be (empty for yes and no), `near` those of them that the picture
    or the context holds, `subject` the shape that a question about its presence or number is about.
    """

    kind: str
    text: str
    answer: str
    targets: tuple[Item, ...] = ()
    hops: int = 1
    options: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    subject: str = ""

    def hardness(self, scene: Scene | None) -> dict[str, int | float | bool | None]:
        """Hops, items that are not asked about, area of the smallest target in patches (None when
        the question is about all or none), and whether the scene has what training never shows.

        `scene` is None for a question without a picture.
        """
        areas = [target.patches for target in self.targets]
        return {
            "hops": self.hops,
            "distractors": len(scene.items) - len(set(self.targets)) if scene else 0,
            "target_patches": round(min(areas), 1) if areas else None,
            "unseen": scene is not None and scene.unseen,
        }


def a(noun: str) -> str:
    """The noun with its article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def refer(scene: Scene) -> Iterator[tuple[str, Thing]]:
    """Every unambiguous short way to name a thing: by its shape, or by its colour."""
    shapes = Counter(thing.shape for thing in scene.things)
    colours = Counter(thing.colour for thing in scene.things)
    for thing in scene.things:
        if shapes[thing.shape] == 1:
            yield f"the {thing.shape}", thing
        if colours[thing.colour] == 1:
            yield f"the {thing.colour} object", thing
