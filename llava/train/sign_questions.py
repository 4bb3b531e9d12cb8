"""Questions about signs: what they say, and which sign says it. One function a kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from llava.train.items import Sign
from llava.train.question import Question
from llava.train.scenes import Scene
from llava.train.vocabulary import COLOURS, WORDS


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
    texts = [other.text for other in scene.signs if other.is_number == sign.is_number]
    more = tuple(str(number) for number in range(10, 100)) if sign.is_number else WORDS
    options = tuple(dict.fromkeys(word.upper() for word in (*texts, *more)))
    return Question(kind, text, sign.text.upper(), (sign,), options=options)


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
        if sign.is_number:
            value = int(sign.text)
            for than, answer in ((value - 15, "yes"), (value + 15, "no")):
                if 10 <= than <= 99:
                    text = f"Is the number on the {sign.colour} sign larger than {than}?"
                    yield Question("number", text, answer, (sign,))
