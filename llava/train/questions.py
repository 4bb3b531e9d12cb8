"""Questions about a scene, derived from its graph: one function a kind, returning all it can ask.

To add a kind, write a function from scene to questions and enter it in `KINDS`; give it a weight in
the trainer's mix or a place in a benchmark.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llava.train.scenes import PATCH_SIZE, Scene, Sign

# TextVQA's three-line question in LLaVA's evaluation; the OCR hint stays empty, as in 115 rows of
# the real file, so that the answer has to be read from the picture.
TEXTVQA_PROMPT = (
    "{question}\nReference OCR token: \nAnswer the question using a single word or phrase."
)
LIST_PROMPT = "list every sign."


@dataclass(frozen=True)
class Question:
    """A question with its one right answer; `sign` is the sign it is about."""

    kind: str
    text: str
    answer: str
    sign: Sign

    def hardness(self, scene: Scene) -> dict[str, int | float]:
        """How hard it is: signs in the picture and the size of the target's letters in patches."""
        return {
            "signs": len(scene.signs),
            "letter_height_patches": round(self.sign.letter_height / PATCH_SIZE, 2),
        }


def _read(scene: Scene) -> list[Question]:
    questions = []
    for sign in scene.signs:
        noun = "number" if sign.is_number else "word"
        text = f"what {noun} is on the {sign.colour} sign?"
        questions.append(Question("read", text, sign.text, sign))
    return questions


def _colour(scene: Scene) -> list[Question]:
    return [
        Question("colour", f"what colour is the sign that says {s.text}?", s.colour, s)
        for s in scene.signs
    ]


def _place(scene: Scene) -> list[Question]:
    return [
        Question("place", f"where is the {sign.colour} sign?", sign.place, sign)
        for sign in scene.signs
    ]


KINDS: dict[str, Callable[[Scene], list[Question]]] = {
    "read": _read,
    "colour": _colour,
    "place": _place,
}


def ask(scene: Scene, kinds: tuple[str, ...]) -> list[Question]:
    """All questions of the given kinds about a scene, kind by kind, sign by sign."""
    return [question for kind in kinds for question in KINDS[kind](scene)]


def describe(scene: Scene) -> str:
    """Colour, text and place of every sign, from top to bottom: the answer to `LIST_PROMPT`."""
    signs = sorted(scene.signs, key=lambda sign: (sign.y, sign.x))
    return ", ".join(f"{sign.colour} {sign.text} {sign.place}" for sign in signs)
