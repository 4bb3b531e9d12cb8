"""Questions and turns: every answer follows from the graph, and from nothing else."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from llava.train.items import Sign, Thing
from llava.train.lessons import lesson
from llava.train.question import Question, refer
from llava.train.questions import KINDS, ask, describe, presence
from llava.train.scenes import TRAINING_SEEDS, Scene, make_scene
from llava.train.turns import (
    LETTER,
    View,
    as_choice,
    balanced,
    choices,
    ocr_tokens,
    training_turns,
)
from llava.train.vocabulary import COLOURS, SHAPES, UNSEEN_WORDS, WORDS

SEEDS = st.integers(min_value=0, max_value=2**40 - 1)


def _thing(shape: str, colour: str, x: float, y: float, **changes: str) -> Thing:
    looks = {"pattern": "plain", "size": "small"} | changes
    return Thing(colour, (0, 0, 0), 0.0, x, y, 30, 30, shape, looks["pattern"], looks["size"])


def _sign(text: str, colour: str, x: float, y: float) -> Sign:
    return Sign(colour, (0, 0, 0), 0.0, x, y, 50, 30, text, (255, 255, 255), 20)


def _scene(*items: Thing | Sign) -> Scene:
    signs = tuple(item for item in items if isinstance(item, Sign))
    things = tuple(item for item in items if isinstance(item, Thing))
    return Scene(TRAINING_SEEDS[0], 0, 0, 336, 4, bytes(48), (), signs, things)


#          star (red, striped, large)        sign STOP (green)
#                        moon (blue)
#   circle (red)                             circle (white), sign 42 (black)
EXAMPLE = _scene(
    _thing("star", "red", 60, 40, pattern="striped", size="large"),
    _thing("moon", "blue", 180, 150),
    _thing("circle", "red", 50, 290, pattern="dotted"),
    _thing("circle", "white", 290, 260),
    _sign("stop", "green", 280, 50),
    _sign("42", "black", 200, 300),
)


def _answers(kind: str) -> dict[str, str]:
    return {question.text: question.answer for question in ask(EXAMPLE, (kind,))}


def test_the_questions_of_an_example_worked_by_hand() -> None:
    assert [name for name, _ in refer(EXAMPLE)] == [
        "the star",
        "the moon",
        "the blue object",
        "the white object",
    ]
    assert _answers("color") == {
        "What color is the star?": "red",
        "What color is the moon?": "blue",
    }
    assert _answers("shape") == {
        "What shape is the blue object?": "moon",
        "What shape is the white object?": "circle",
    }
    assert _answers("pattern")["What pattern does the star have?"] == "striped"
    assert _answers("size")["Is the star small or large?"] == "large"
    assert _answers("place")["Where is the green sign?"] == "top right"
    assert _answers("exists")["Is there an arrow in the image?"] == "no"
    assert _answers("exists")["Is there a moon in the image?"] == "yes"
    assert _answers("exists colored")["Is there a white moon in the image?"] == "no"
    assert _answers("exists colored")["Is there a red circle in the image?"] == "yes"
    assert _answers("is color")["Is the moon blue?"] == "yes"
    assert _answers("is color")["Is the moon red?"] == "no"
    side = _answers("choose side")
    assert side["Is the star to the left or to the right of the moon?"] == "left"
    assert side["Is the white object above or below the moon?"] == "below"
    assert _answers("is side")["Is the star to the right of the moon?"] == "no"
    assert _answers("is side")["Is the star above the moon?"] == "yes"
    assert _answers("same color")["Do the star and the moon have the same color?"] == "no"
    assert _answers("twin shape") == {"What shape has the same color as the star?": "circle"}
    assert list(_answers("twin pattern").values()) == ["dotted"]
    twin = "Is the object with the same color as the star to the left of the moon?"
    assert _answers("twin side")[twin] == "yes"
    # below the star, within 45 degrees: the red circle alone; the others are further right
    assert _answers("beside")["What color is the object below the star?"] == "red"
    assert "What shape is to the left of the star?" not in _answers("beside")
    assert _answers("larger")["Which is larger, the moon or the star?"] == "star"
    assert _answers("count")["How many circles are there in the image?"] == "2"
    assert _answers("count")["How many crosses are there in the image?"] == "0"
    assert _answers("is count")["Is there only one star in the image?"] == "yes"
    assert _answers("is count")["Are there two circles in the image?"] == "yes"
    assert _answers("read") == {
        "What word is on the green sign?": "STOP",
        "What number is on the black sign?": "42",
    }
    assert _answers("read place")["What does the sign at the top right say?"] == "STOP"
    assert _answers("sign color")["What color is the sign that says 42?"] == "black"
    assert _answers("says")['Does the black sign say "STOP"?'] == "no"
    assert _answers("number")["Is the number on the black sign larger than 57?"] == "no"
    assert _answers("number")["Is the number on the black sign larger than 27?"] == "yes"


def test_everything_is_listed_in_order() -> None:
    assert describe(EXAMPLE, by_row=True).split(", ") == [
        "large striped red star top left",
        "green sign STOP top right",
        "small plain blue moon middle",
        "small plain white circle bottom right",
        "small dotted red circle bottom left",
        "black sign 42 bottom",
    ]
    assert describe(EXAMPLE, by_row=False).startswith("small dotted red circle bottom left, large")


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_a_question_has_one_answer_and_options_hold_it(seed: int) -> None:
    scene = make_scene(seed)
    answers: dict[str, str] = {}
    for question in ask(scene, KINDS):
        assert answers.setdefault(question.text, question.answer) == question.answer
        assert not question.options or question.answer in question.options
        hardness = question.hardness(scene)
        assert 0 <= hardness["distractors"] <= len(scene.items)
        assert question.hops >= 1


def test_hardness_counts_what_must_and_need_not_be_seen() -> None:
    (question,) = ask(EXAMPLE, ("twin shape",))
    assert question.hardness(EXAMPLE) == {
        "hops": 2,
        "distractors": 4,
        "target_patches": 4.6,  # 30 x 30 pixels, 14 x 14 a patch
        "unseen": False,
    }
    assert question.hardness(None)["distractors"] == 0


def test_yes_and_no_are_asked_equally_often_in_training() -> None:
    answers: Counter[tuple[str, str]] = Counter()
    nouns: Counter[tuple[str, str]] = Counter()
    for seed in TRAINING_SEEDS[:1500]:
        scene = make_scene(seed)
        rng = random.Random(seed)
        for kind in ("exists", "exists colored", "is color", "is side", "same color", "says"):
            questions = ask(scene, (kind,))
            if questions and (question := balanced(kind, questions, rng)):
                answers[kind, question.answer] += 1
                if kind == "exists":
                    nouns[question.subject, question.answer] += 1
    for kind in {kind for kind, _ in answers}:
        share = answers[kind, "yes"] / (answers[kind, "yes"] + answers[kind, "no"])
        assert 0.42 < share < 0.58, (kind, share)
    for shape in SHAPES:
        share = nouns[shape, "yes"] / (nouns[shape, "yes"] + nouns[shape, "no"])
        assert 0.3 < share < 0.7, (shape, share)
    assert 0.1 < min(presence().values()) < max(presence().values()) < 0.6


def test_choices_hold_the_answer_once_anywhere() -> None:
    (question,) = ask(EXAMPLE, ("twin shape",))
    places: Counter[str] = Counter()
    for seed in range(200):
        rng = random.Random(seed)
        options = choices(question, 4, rng)
        assert len(set(options)) == 4 and options.count("circle") == 1
        text, letter = as_choice(question, 4, rng)
        assert text.endswith(LETTER) and f"\n{letter}. circle" in text
        places[letter] += 1
    assert set(places) == set("ABCD") and max(places.values()) < 90
    size = next(q for q in ask(EXAMPLE, ("size",)))
    assert sorted(choices(size, 4, random.Random(0))) == ["large", "small"]


def test_options_do_not_tell_the_answer() -> None:
    """When every answer is equally likely, each option of a choice is."""
    colours = tuple(COLOURS)
    for shown in (0, 3):
        ranks: Counter[int] = Counter()
        for seed in range(2000):
            rng = random.Random(seed)
            near = tuple(rng.sample(colours, shown))
            question = Question("color", "?", rng.choice(near or colours), (), 1, colours, near)
            ranks[sorted(choices(question, 3, rng)).index(question.answer)] += 1
        assert all(abs(count - 2000 / 3) < 85 for count in ranks.values()), ranks


def test_what_a_question_names_is_no_option() -> None:
    for seed in TRAINING_SEEDS[:60]:
        for question in ask(make_scene(seed), ("twin shape", "beside")):
            assert not any(f" the {option}" in question.text for option in question.options)


def test_a_word_that_training_never_shows_is_among_its_like() -> None:
    signs = _sign("boat", "red", 50, 50), _sign("stop", "blue", 50, 200), _sign("xq", "white", 9, 9)
    boat, stop, made_up = ask(_scene(*signs), ("read",))
    assert set(boat.options) == {word.upper() for word in UNSEEN_WORDS}
    assert set(stop.options) == {word.upper() for word in WORDS}
    assert made_up.options == ()


def test_every_number_is_compared_with_larger_and_smaller_ones() -> None:
    answers: dict[str, set[str]] = defaultdict(set)
    for value in range(10, 100):
        for question in ask(_scene(_sign(str(value), "red", 50, 50)), ("number",)):
            answers[question.text].add(question.answer)
            (than,) = re.findall(r"larger than (\d+)|$", question.text)[:1]
            assert not than or question.answer == ("yes" if value > int(than) else "no")
    assert len(answers) == 2 * 60
    assert set(map(frozenset, answers.values())) == {frozenset({"yes", "no"})}


def test_lessons_are_right_and_need_no_picture() -> None:
    kinds = set()
    for seed in range(300):
        question = lesson(random.Random(seed))
        kinds.add(question.kind)
        if question.kind == "context":
            *context, asked = question.text.split("\n")
            subject = asked.split(" the ")[1].split()[0].rstrip("?")
            (sentence,) = [s for s in context[0].split(". ") if f" {subject}" in s.replace(":", "")]
            assert question.answer in sentence
        elif question.kind == "spelling":
            letter = question.text.split('"')[1]
            assert question.answer.startswith(letter)
            assert not any(option.startswith(letter) for option in question.options)
    assert kinds == {"context", "fact", "spelling"}


def test_training_turns_are_drawn_by_the_scene_and_mostly_see_it() -> None:
    turns = [turn for seed in TRAINING_SEEDS[:150] for turn in training_turns(make_scene(seed), 10)]
    assert turns[:5] == training_turns(make_scene(TRAINING_SEEDS[0]), 10)[:5]
    views = Counter(turn.view for turn in turns)
    assert 0.8 < views[View.PICTURE] / len(turns) < 0.95
    assert views[View.HIDDEN] > 20 and views[View.NOTHING] > 20
    assert all(
        turn.text.startswith("List everything from") for turn in turns if len(turn.answer) > 40
    )


def test_ocr_tokens_are_texts_of_the_picture() -> None:
    found = {ocr_tokens(EXAMPLE, random.Random(seed)) for seed in range(40)}
    assert (
        {"STOP, 42", "42, STOP", "42", "STOP"}
        <= found
        <= {"STOP, 42", "42, STOP", "42", "STOP", ""}
    )
