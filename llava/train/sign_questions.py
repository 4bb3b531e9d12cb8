"""Questions about signs: what they say, and which sign says it. One function a kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from llava.train.items import Sign
from llava.train.question import Question
from llava.train.scenes import Scene
from llava.train.vocabulary import COLOURS, UNSEEN_WORDS, WORDS

_NUMBERS = range(10, 100)  # all that signs show
_DIFFERENCE = 15  # between two numbers that are compared
#: Numbers to compare with: signs can show a smaller and a larger one.
_BOUNDS = range(_NUMBERS.start + _DIFFERENCE, _NUMBERS.stop - _DIFFERENCE)


def read(scene: Scene) -> Iterable[Question]:
    for sign in scene.signs:
        noun = "number" if sign.is_number else "word"
        text = f"What {noun} is on the {sign.colour} sign?"
        yield _about_text("read", text, sign, scene)


def read_place(scene: Scene) -> Iterable[Question]:
    places = Counter(sign.place for sign in scene.signs)
    for sign in scene.signs:
        if len(scene.signs) == 1:
            yield _about_text("read place", "What does the sign say?", sign, scene)
        elif places[sign.place] == 1:
            text = f"What does the sign at the {sign.place} say?"
            yield _about_text("read place", text, sign, scene)


def _about_text(kind: str, text: str, sign: Sign, scene: Scene) -> Question:
    # a word that training never shows is among its like; a made-up one has none
    kinds = (tuple(map(str, _NUMBERS)), WORDS, UNSEEN_WORDS)
    alike = next((texts for texts in kinds if sign.text in texts), ())
    options = tuple(word.upper() for word in alike)
    near = tuple(other.text.upper() for other in scene.signs)
    return Question(kind, text, sign.text.upper(), (sign,), options=options, near=near)


def sign_color(scene: Scene) -> Iterable[Question]:
    for sign in scene.signs:
        text = f"What color is the sign that says {sign.text.upper()}?"
        yield Question("sign color", text, sign.colour, (sign,), options=tuple(COLOURS))


def says(scene: Scene) -> Iterable[Question]:
    for sign in scene.signs:
        for other in scene.signs:
            text = f'Does the {sign.colour} sign say "{other.text.upper()}"?'
            yield Question("says", text, "yes" if other is sign else "no", (sign,))


def number(scene: Scene) -> Iterable[Question]:
    for sign in scene.signs:
        if not sign.is_number:
            continue
        value = int(sign.text)
        for than in (value - _DIFFERENCE, value + _DIFFERENCE):
            if than in _BOUNDS:
                for phrase, holds in (("larger", value > than), ("smaller", value < than)):
                    text = f"Is the number on the {sign.colour} sign {phrase} than {than}?"
                    yield Question("number", text, "yes" if holds else "no", (sign,))
