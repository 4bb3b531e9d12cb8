"""Multiple-choice questions without a picture: facts, and texts that hold the answer."""

from __future__ import annotations

import random

from llava.train.question import Question, a
from llava.train.vocabulary import COLOURS, PATTERNS, SHAPES, WORDS

_CORNERS = {"triangle": "3", "square": "4", "diamond": "4", "circle": "0", "star": "10"}
_MIXED = {("red", "yellow"): "orange", ("blue", "yellow"): "green", ("red", "blue"): "purple"}


def lesson(rng: random.Random) -> Question:
    """A question that language alone answers; half of them carry the answer in a context line."""
    if rng.random() < 0.5:
        return _from_context(rng)
    return rng.choice((_corners, _mixing, _first_letter))(rng)


def _from_context(rng: random.Random) -> Question:
    shapes = rng.sample(list(SHAPES), rng.randint(2, 3))
    colours = rng.sample(list(COLOURS), len(shapes))
    patterns = [rng.choice(PATTERNS) for _ in shapes]
    context = " ".join(
        f"The {shape} is {pattern} and {colour}."
        for shape, pattern, colour in zip(shapes, patterns, colours, strict=True)
    )
    which = rng.randrange(len(shapes))
    text, answer, options = rng.choice(
        (
            (f"What color is the {shapes[which]}?", colours[which], tuple(COLOURS)),
            (f"What pattern does the {shapes[which]} have?", patterns[which], PATTERNS),
            (f"What shape is the {colours[which]} object?", shapes[which], tuple(SHAPES)),
        )
    )
    named = (*colours, *patterns, *shapes)
    return Question("context", f"Context: {context}\n{text}", answer, options=options, near=named)


def _corners(rng: random.Random) -> Question:
    shape = rng.choice(list(_CORNERS))
    text = f"How many corners does {a(shape)} have?"
    return Question("fact", text, _CORNERS[shape], options=("3", "4", "0", "10"))


def _mixing(rng: random.Random) -> Question:
    first, second = rng.sample(pair := rng.choice(list(_MIXED)), 2)
    text = f"Which color do you get by mixing {first} and {second}?"
    return Question("fact", text, _MIXED[pair], options=tuple(COLOURS))


def _first_letter(rng: random.Random) -> Question:
    word = rng.choice(WORDS)
    others = tuple(w.upper() for w in WORDS if w[0] != word[0])
    text = f'Which word begins with the letter "{word[0].upper()}"?'
    return Question("spelling", text, word.upper(), options=others)
