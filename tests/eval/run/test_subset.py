"""A part of the questions: spread, whole groups, original indices, a digest of its own."""

from __future__ import annotations

import json

import pytest

from llava.eval.benchmarks import BENCHMARKS
from llava.eval.run.questions import Question, QuestionFile
from llava.eval.run.subset import spread, take


@pytest.fixture
def questions(tmp_path):
    """Twelve questions, three about each of four images, with a blank line before the last."""
    lines = [
        json.dumps({"question_id": i, "image": f"{i // 3}.jpg", "text": "why?"}) + "\n"
        for i in range(12)
    ]
    lines.insert(11, "\n")
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(lines))
    return QuestionFile(path)


def ids(questions) -> list[int]:
    return [questions[i].question_id for i in range(len(questions))]


@pytest.mark.parametrize(("count", "total"), [(1, 1), (3, 10), (7, 8), (10, 10), (100, 9000)])
def test_one_of_each_stretch(count, total):
    chosen = spread(count, total)
    stretches = [(i * total // count, (i + 1) * total // count) for i in range(count)]
    assert all(first <= n < end for n, (first, end) in zip(chosen, stretches, strict=True))


@pytest.mark.parametrize("period", [2, 3, 6, 10])
def test_no_step_with_what_repeats_in_the_file(period):
    """Every tenth of 600 would always be the same of 2, 5 or 10 kinds that take turns."""
    kinds = [n % period for n in spread(60, 600)]
    counts = [kinds.count(kind) for kind in range(period)]
    assert min(counts) >= 0.6 * 60 / period and max(counts) <= 1.5 * 60 / period


def test_questions_keep_their_place_in_the_file(questions):
    part = take(questions, 4)
    assert len(part) == 4 and part.total == 12 and part.path == questions.path
    chosen = ids(part)
    assert chosen == sorted(set(chosen)) == ids(take(questions, 4))
    for i in range(4):
        assert part.position(part[i].index) == i
        assert questions[questions.position(part[i].index)] == part[i]
    left_out = next(q for q in range(11) if q not in chosen)
    assert part.position(left_out) is None and part.position(99) is None
    with pytest.raises(IndexError):
        part[4]


def test_groups_come_whole(questions):
    part = take(questions, 7, group=lambda question: question.image)
    images = [part[i].image for i in range(len(part))]
    # Two images of three questions each; a third would make nine.
    assert len(part) == 6 and [images.count(image) for image in images] == [3] * 6
    alone = take(questions, 2, group=lambda question: question.image)
    assert len(alone) == 3  # one group always comes


def test_groups_of_different_sizes_stay_within_the_limit(questions):
    """Question 0 alone, all others together."""
    part = take(questions, 8, group=lambda question: question.question_id == 0)
    assert ids(part) == [0]


def test_scattered_groups_come_in_the_order_of_the_file(questions):
    part = take(questions, 6, group=lambda question: question.question_id % 4)
    assert len(part) == 6 and ids(part) == sorted(ids(part))
    assert len({i % 4 for i in ids(part)}) == 2


def test_the_digest_tells_parts_apart(questions):
    parts = [take(questions, n) for n in (3, 4, 6)]
    assert len({part.sha256 for part in [questions, *parts]}) == 4
    assert take(questions, 4).sha256 == parts[1].sha256


def test_no_limit_or_a_large_one_is_everything(questions):
    assert take(questions, None) is take(questions, 12) is take(questions, 99) is questions
    with pytest.raises(ValueError, match="at least 1 question, got 0"):
        take(questions, 0)


def test_pictures_of_mme_and_rotations_of_mmbench_are_groups():
    pair = [Question(i, "color/1.jpg", f"{i}?", "color/1.jpg") for i in range(2)]
    assert BENCHMARKS["mme"].group(pair[0]) == BENCHMARKS["mme"].group(pair[1])
    rotations = [Question(i, 7 + i * 1_000_000, "?", f"image of {i}") for i in range(4)]
    for name in ("mmbench", "mmbench_cn"):
        assert {BENCHMARKS[name].group(row) for row in rotations} == {7}


def test_a_seed_draws_at_random_and_always_the_same(questions):
    draws = {tuple(ids(take(questions, 4, seed=seed))) for seed in range(40)}
    assert tuple(ids(take(questions, 4, seed=7))) in draws and len(draws) > 20
    assert all(list(draw) == sorted(set(draw)) and len(draw) == 4 for draw in draws)
    # Each question about as often as any other: 40 x 4 / 12 is 13.
    counts = [sum(i in draw for draw in draws) for i in ids(questions)]
    assert min(counts) >= 4 and max(counts) <= 24
    assert take(questions, 4, seed=1).sha256 != take(questions, 4, seed=2).sha256
    images = {i // 3 for i in ids(take(questions, 6, lambda question: question.image, seed=3))}
    assert len(images) == 2
