"""Question turns for training: which questions are asked about a scene, and in which words.

A turn is one prompt of the evaluation with its answer. Most turns see the picture; some have the
picture hidden, from which the model learns what language alone can say (its blind floor, which
`--method no-image` measures); some have none, as text-only questions of ScienceQA.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import IntEnum

from llava.train.lessons import lesson
from llava.train.pointing import Compared, compared, focus, mentions, via
from llava.train.question import Question
from llava.train.questions import KINDS, ask, describe, presence
from llava.train.scenes import Scene

# LLaVA's prompts (haotian-liu/LLaVA, llava/eval and its question files).
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
OCR_LINE = "\nReference OCR token: "
LIST_BY_ROW = "List everything from top to bottom."
LIST_BY_COLUMN = "List everything from left to right."

_WEIGHTS = {
    "color": 0.5,
    "shape": 0.7,
    "pattern": 0.7,
    "size": 0.4,
    "place": 3,
    "exists": 1.2,
    "exists colored": 1.2,
    "is color": 0.7,
    "count": 4,
    "is count": 3,
    "choose side": 1,
    "is side": 1.5,
    "beside": 1.5,
    "larger": 1,
    "same color": 5,
    "twin shape": 4,
    "twin pattern": 3,
    "twin side": 4,
    "read": 5,
    "read place": 4,
    "sign color": 2,
    "says": 3,
    "number": 5,
}
_CHOICE_SHARE = 0.35  # of the questions with options, asked as multiple choice
_SHORT_SHARE = 0.3  # of the others, with LLaVA's second line; bare questions are shorter to learn
_HINT_SHARE = 0.25  # of the questions about texts, with OCR tokens
_HIDDEN_SHARE = 0.06
_LESSON_SHARE = 0.08


class View(IntEnum):
    """What a turn sees besides itself."""

    PICTURE = 0  # the text before the picture, and the picture
    HIDDEN = 1  # the text before the picture: its prompt, with no visual token in it
    NOTHING = 2  # nothing: a text-only prompt


@dataclass(frozen=True)
class Turn:
    """A prompt's text, its answer and what it sees.

    `mentions` are places in the text after which something has been named, with the indices of the
    items that it names, and `focus` those that the answer is read from (`llava.train.pointing`);
    None where nothing is to be found. `via` is the item that is found before those, and `compared`
    what the question compares.
    """

    text: str
    answer: str
    view: View = View.PICTURE
    mentions: tuple[tuple[int, tuple[int, ...]], ...] = ()
    focus: tuple[int, ...] | None = None
    via: int | None = None
    compared: Compared | None = None


def choices(question: Question, count: int, rng: random.Random) -> list[str]:
    """Up to `count` different options in random order, the right one among them.

    Half of the time those near the answer are preferred, if there are such; else any wrong one is
    as likely as any other, so that the options alone do not tell the answer.
    """
    wrong = [option for option in question.options if option != question.answer]
    near = [option for option in wrong if option in question.near]
    first = rng.sample(near, min(len(near), count - 1)) if rng.random() < 0.5 else []
    rest = [option for option in wrong if option not in first]
    options = [*first, *rng.sample(rest, min(len(rest), count - 1 - len(first))), question.answer]
    rng.shuffle(options)
    return options


def lettered(text: str, options: list[str]) -> str:
    """The question with a line for each option, as ScienceQA and MMBench have them."""
    return text + "".join(
        f"\n{letter}. {option}" for letter, option in zip("ABCDE", options, strict=False)
    )


def as_choice(question: Question, count: int, rng: random.Random) -> tuple[str, str]:
    """The text of a multiple-choice question and the letter that answers it."""
    options = choices(question, count, rng)
    return lettered(question.text, options) + LETTER, "ABCDE"[options.index(question.answer)]


def ocr_tokens(scene: Scene, rng: random.Random) -> str:
    """What a text recogniser might have read: most of the signs, in any order."""
    texts = [sign.text.upper() for sign in scene.signs if rng.random() < 0.85]
    rng.shuffle(texts)
    return ", ".join(texts)


def balanced(kind: str, questions: list[Question], rng: random.Random) -> Question | None:
    """One of the questions of a kind: where the answer is yes or no, each as often as the other
    (None when the scene allows only one of them), where it is a number, each as often as it can."""
    answers = sorted({question.answer for question in questions})
    if kind != "count" and not {"yes", "no"} & set(answers):
        return rng.choice(questions)
    if answers in (["no"], ["yes"]):
        return None
    answer = rng.choice(answers)
    fitting = [question for question in questions if question.answer == answer]
    if kind == "exists" and answer == "no":
        # absent shapes are asked about as often as present ones are, shape by shape
        odds = {shape: p / (1 - p) for shape, p in presence().items()}
        return rng.choices(fitting, [odds[question.subject] for question in fitting])[0]
    return rng.choice(fitting)


def training_turns(scene: Scene, count: int, lists: float = 1.0) -> list[Turn]:
    """`count` questions of a scene, drawn by its seed, after the list of everything in it (the list
    for a share `lists` of the scenes)."""
    rng = random.Random(f"turns {scene.seed}")
    by_row = rng.random() < 0.5
    prompt = LIST_BY_ROW if by_row else LIST_BY_COLUMN
    listed = lists == 1 or rng.random() < lists
    turns = [Turn(prompt, describe(scene, by_row))] if listed else []
    pools = {kind: ask(scene, (kind,)) for kind in KINDS}
    pools = {kind: questions for kind, questions in pools.items() if questions}
    weights = [_WEIGHTS[kind] for kind in pools]
    texts: set[str] = set()
    for _ in range(count):
        if rng.random() < _LESSON_SHARE:
            question = lesson(rng)
            turns.append(Turn(*as_choice(question, rng.randint(2, 4), rng), View.NOTHING))
            continue
        kind = rng.choices(list(pools), weights)[0]
        question = balanced(kind, pools[kind], rng)
        if question is None or question.text in texts:
            continue
        texts.add(question.text)
        hidden = rng.random() < _HIDDEN_SHARE
        text, answer = _phrase(question, scene, rng)
        if hidden:
            turns.append(Turn(text, answer, View.HIDDEN))
        else:
            named = tuple(mentions(question.text, scene))
            seen = focus(question, scene), via(question, scene), compared(question, scene)
            turns.append(Turn(text, answer, View.PICTURE, named, *seen))
    return turns


def _phrase(question: Question, scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Prompt text and answer, in one of the forms that the benchmarks use, or bare."""
    if question.options and rng.random() < _CHOICE_SHARE:
        return as_choice(question, rng.randint(2, 4), rng)
    text = question.text
    if question.kind in ("read", "read place", "sign color") and rng.random() < _HINT_SHARE:
        return text + OCR_LINE + ocr_tokens(scene, rng) + SHORT, question.answer
    return text + (SHORT if rng.random() < _SHORT_SHARE else ""), question.answer


def validation_turns(scene: Scene, count: int = 12) -> list[tuple[str, Turn]]:
    """(kind, turn) of questions in the form of the short-answer benchmarks, seeing the picture."""
    rng = random.Random(f"validation {scene.seed}")
    turns = []
    for kind in rng.sample(list(KINDS), len(KINDS)):
        questions = ask(scene, (kind,))
        if questions and (question := balanced(kind, questions, rng)):
            turns.append((kind, Turn(question.text + SHORT, question.answer)))
            if question.options:
                turns.append(("choice", Turn(*as_choice(question, 4, rng))))
    return turns[:count]
