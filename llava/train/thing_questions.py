"""Questions about things: what they look like, whether they are there, how they lie and compare.

One function a kind, which yields all it can ask about a scene. Every yes-question comes with
no-questions in the same words, so that language alone cannot answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import permutations

from llava.train.items import IMAGE_SIZE, Item, Thing
from llava.train.question import Question, a, refer
from llava.train.scenes import Scene
from llava.train.vocabulary import COLOURS, PATTERNS, PLACES, SHAPES, SIZES, UNSEEN_THINGS

_APART = IMAGE_SIZE / 12  # pixels by which two centres must differ to be left and right
_COUNTS = ("0", "1", "2", "3")  # four of a shape are too rare to be an answer like the others
_NUMBERS = ("zero", "one", "two", "three", "four", "five")


def _by_shape(scene: Scene) -> list[tuple[str, Thing]]:
    return [(name, thing) for name, thing in refer(scene) if not name.endswith("object")]


def _pairs(scene: Scene) -> Iterator[tuple[str, Thing, str, Thing]]:
    for (name, thing), (other_name, other) in permutations(refer(scene), 2):
        if thing is not other:
            yield name, thing, other_name, other


def color(scene: Scene) -> Iterable[Question]:
    for name, thing in _by_shape(scene):
        yield Question(
            "color", f"What color is {name}?", thing.colour, (thing,), options=tuple(COLOURS)
        )


def shape(scene: Scene) -> Iterable[Question]:
    for name, thing in refer(scene):
        if name.endswith("object"):
            yield Question(
                "shape", f"What shape is {name}?", thing.shape, (thing,), options=tuple(SHAPES)
            )


def pattern(scene: Scene) -> Iterable[Question]:
    for name, thing in refer(scene):
        text = f"What pattern does {name} have?"
        yield Question("pattern", text, thing.pattern, (thing,), options=PATTERNS)


def size(scene: Scene) -> Iterable[Question]:
    for name, thing in refer(scene):
        text = f"Is {name} small or large?"
        yield Question("size", text, thing.size, (thing,), options=tuple(SIZES))


def place(scene: Scene) -> Iterable[Question]:
    places = tuple(place for row in PLACES for place in row)
    for name, item in (*refer(scene), *((f"the {s.colour} sign", s) for s in scene.signs)):
        yield Question("place", f"Where is {name}?", item.place, (item,), options=places)


def exists(scene: Scene) -> Iterable[Question]:
    for shape in SHAPES:
        things = tuple(thing for thing in scene.things if thing.shape == shape)
        text = f"Is there {a(shape)} in the image?"
        yield Question("exists", text, "yes" if things else "no", things[:1], subject=shape)


def exists_colored(scene: Scene) -> Iterable[Question]:
    there = {(thing.colour, thing.shape): thing for thing in scene.things}
    for coloured in scene.things:
        for shaped in scene.things:
            pair = coloured.colour, shaped.shape
            if pair in UNSEEN_THINGS and not scene.unseen:
                continue  # in training it could only be absent
            text = f"Is there {a(pair[0])} {pair[1]} in the image?"
            targets = (there[pair],) if pair in there else ()
            yield Question("exists colored", text, "yes" if targets else "no", targets)


def is_color(scene: Scene) -> Iterable[Question]:
    for name, thing in _by_shape(scene):
        for colour in COLOURS:
            if (colour, thing.shape) in UNSEEN_THINGS and not scene.unseen:
                continue
            answer = "yes" if colour == thing.colour else "no"
            yield Question("is color", f"Is {name} {colour}?", answer, (thing,))


def _relations(item: Item, other: Item) -> list[tuple[str, str, str]]:
    """(phrase that holds, phrase that does not, what the place word of the first is)."""
    relations = []
    if abs(item.x - other.x) > _APART:
        sides = ("to the left of", "to the right of")
        left = item.x < other.x
        relations.append((sides[not left], sides[left], "left" if left else "right"))
    if abs(item.y - other.y) > _APART:
        above = item.y < other.y
        sides = ("above", "below")
        relations.append((sides[not above], sides[above], sides[not above]))
    return relations


def choose_side(scene: Scene) -> Iterable[Question]:
    for name, thing, other_name, other in _pairs(scene):
        for _, _, word in _relations(thing, other):
            sides = ("left", "right") if word in ("left", "right") else ("above", "below")
            between = "to the left or to the right of" if sides[0] == "left" else "above or below"
            text = f"Is {name} {between} {other_name}?"
            yield Question("choose side", text, word, (thing, other), 2, sides)


def is_side(scene: Scene) -> Iterable[Question]:
    for name, thing, other_name, other in _pairs(scene):
        for true, false, _ in _relations(thing, other):
            for phrase, answer in ((true, "yes"), (false, "no")):
                text = f"Is {name} {phrase} {other_name}?"
                yield Question("is side", text, answer, (thing, other), 2)


def same_color(scene: Scene) -> Iterable[Question]:
    named = _by_shape(scene)
    for (name, thing), (other_name, other) in permutations(named, 2):
        answer = "yes" if thing.colour == other.colour else "no"
        text = f"Do {name} and {other_name} have the same color?"
        yield Question("same color", text, answer, (thing, other), 2)


def _twins(scene: Scene) -> Iterator[tuple[str, Thing, Thing]]:
    """(name of a thing, the thing, the only other one of its colour), told apart by their shape."""
    for name, thing in _by_shape(scene):
        others = [t for t in scene.things if t.colour == thing.colour and t is not thing]
        if len(others) == 1:
            yield name, thing, others[0]


def _others(options: Iterable[str], name: str) -> tuple[str, ...]:
    """The options without the word by which a thing is named, which nothing else in the picture
    is."""
    return tuple(option for option in options if option not in name.split())


def twin_shape(scene: Scene) -> Iterable[Question]:
    for name, thing, twin in _twins(scene):
        text = f"What shape has the same color as {name}?"
        yield Question("twin shape", text, twin.shape, (thing, twin), 2, _others(SHAPES, name))


def twin_pattern(scene: Scene) -> Iterable[Question]:
    for name, thing, twin in _twins(scene):
        text = f"What pattern does the object with the same color as {name} have?"
        yield Question("twin pattern", text, twin.pattern, (thing, twin), 2, PATTERNS)


def twin_side(scene: Scene) -> Iterable[Question]:
    for name, thing, twin in _twins(scene):
        for other_name, other in _by_shape(scene):
            if other in (thing, twin):
                continue
            for true, false, _ in _relations(twin, other):
                for phrase, answer in ((true, "yes"), (false, "no")):
                    text = f"Is the object with the same color as {name} {phrase} {other_name}?"
                    yield Question("twin side", text, answer, (thing, twin, other), 3)


def beside(scene: Scene) -> Iterable[Question]:
    """The only thing in the quarter of the picture that opens from a thing to one side."""
    directions = {
        "to the left of": lambda dx, dy: -dx > max(abs(dy), _APART),
        "to the right of": lambda dx, dy: dx > max(abs(dy), _APART),
        "above": lambda dx, dy: -dy > max(abs(dx), _APART),
        "below": lambda dx, dy: dy > max(abs(dx), _APART),
    }
    for name, thing in refer(scene):
        for phrase, holds in directions.items():
            there = [
                other
                for other in scene.things
                if other is not thing and holds(other.x - thing.x, other.y - thing.y)
            ]
            if len(there) == 1:
                things = (thing, there[0])
                shapes, colours = _others(SHAPES, name), _others(COLOURS, name)
                text = f"What shape is {phrase} {name}?"
                yield Question("beside", text, there[0].shape, things, 2, shapes)
                text = f"What color is the object {phrase} {name}?"
                yield Question("beside", text, there[0].colour, things, 3, colours)


def larger(scene: Scene) -> Iterable[Question]:
    for (name, thing), (other_name, other) in permutations(_by_shape(scene), 2):
        if thing.size != other.size:
            large = thing if thing.size == "large" else other
            text = f"Which is larger, {name} or {other_name}?"
            options = (thing.shape, other.shape)
            yield Question("larger", text, large.shape, (thing, other), 2, options)


def count(scene: Scene) -> Iterable[Question]:
    for shape in SHAPES:
        things = tuple(thing for thing in scene.things if thing.shape == shape)
        answer, hops = str(len(things)), max(1, len(things))
        if answer in _COUNTS:
            text = f"How many {shape}{'es' if shape == 'cross' else 's'} are there in the image?"
            yield Question("count", text, answer, things, hops, _COUNTS, subject=shape)


def is_count(scene: Scene) -> Iterable[Question]:
    counts = Counter(thing.shape for thing in scene.things)
    for shape, count in counts.items():
        for number in {1, 2, 3}:
            plural = shape if number == 1 else shape + ("es" if shape == "cross" else "s")
            is_there = "Is there only" if number == 1 else "Are there"
            text = f"{is_there} {_NUMBERS[number]} {plural} in the image?"
            things = tuple(thing for thing in scene.things if thing.shape == shape)
            answer = "yes" if number == count else "no"
            yield Question("is count", text, answer, things, count, subject=shape)
