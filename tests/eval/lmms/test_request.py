"""What a task of lmms-eval hands over, as this package's words."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from llava.eval.lmms.request import MAX_NEW_TOKENS, cut, generation_of, pictures_of

RED = Image.new("RGB", (3, 2), (255, 0, 0))


@pytest.mark.parametrize(
    ("visuals", "count"),
    [(None, 0), ([], 0), ([None], 0), (RED, 1), ([RED], 1), ([[RED], [RED, RED]], 3)],
)
def test_pictures_come_in_lists_or_not_at_all(visuals, count):
    assert len(pictures_of(visuals)) == count


def test_pictures_are_rgb_and_nothing_else_passes_for_one():
    assert pictures_of(Image.new("L", (3, 2), 7))[0].getpixel((0, 0)) == (7, 7, 7)
    for other in ("video.mp4", np.zeros((2, 2, 3))):
        with pytest.raises(ValueError, match="only pictures"):
            pictures_of([other])


@pytest.mark.parametrize(
    ("task", "temperature", "top_p"),
    [
        ({}, 0, None),
        ({"temperature": 0, "top_p": 1.0}, 0, None),
        ({"temperature": 0.7, "do_sample": False, "top_p": 0.9}, 0, None),
        ({"temperature": 0.7, "top_p": 0}, 0.7, None),
        ({"temperature": 0.7, "do_sample": True, "top_p": 0.9}, 0.7, 0.9),
    ],
)
def test_answers_are_greedy_unless_a_task_samples(task, temperature, top_p):
    generation = generation_of(task)
    assert (generation["temperature"], generation["top_p"]) == (temperature, top_p)
    assert generation["max_new_tokens"] == MAX_NEW_TOKENS and generation["num_beams"] == 1


def test_an_answer_ends_where_its_task_says():
    answer = "red\n\nor ASSISTANT: blue"
    assert cut(answer, ["ASSISTANT:"]) == "red\n\nor"
    assert cut(answer, "or") == "red"
    assert cut(answer, ["\n\n", ""]) == answer and cut(answer, None) == answer
