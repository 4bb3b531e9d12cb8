"""The EvalAI normaliser: published examples, its odd cases, and soft accuracy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.eval.benchmarks.answer_normaliser import (
    CONTRACTIONS,
    normalise,
    normalise_official,
    soft_accuracies,
)


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("Yes.", "yes"),
        ("The U.S.A.", "usa"),
        ("1,000", "1000"),
        ("ten o'clock", "10 o'clock"),
        ("What's", "what 's"),
        ("half-full", "half full"),
        ("$5.00", "$5.00"),
        ("none", "0"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("y'alld've", "y'all'd've"),
        ("somebody'd", "somebodyd"),
        ("Im", "im"),  # its key has a capital and never matches
        ("an apple and the tree", "apple and tree"),
        ("zero\tfour\nnine", "0 4 9"),
        ("3.5", "3.5"),
        ("half- full-time", "half fulltime"),  # beside a space once, a mark goes everywhere
        ("a/b [c]", "b c"),
        ("50%", "50%"),
        ("coca cola: #1 & *", "coca cola: #1 & *"),
        ("  many   spaces  ", "many spaces"),
        ("?!", ""),
        ("." * 40, "." * 8),  # only 32 full stops are removed
    ],
)
def test_examples(answer, normal):
    assert normalise(answer) == normal


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The U.S.A.", "usa"),
        ("Ten dont", "10 don't"),
        ("half-full", "half full"),
        # The first step of the other would have touched these.
        ("men's", "men's"),
        ("red,white", "red white"),
        ("1,000", "1000"),
        ("who?me", "who me"),
    ],
)
def test_the_half_that_the_official_evaluation_does_itself(answer, normal):
    assert normalise_official(answer) == normal


def test_the_contraction_table_is_the_published_one():
    assert len(CONTRACTIONS) == 120
    published = {"aint": "ain't", "hed've": "he'd've", "he'dve": "he'd've", "twas": "'twas"}
    published |= {"ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at"}
    published |= {"Id've": "I'd've", "I'dve": "I'd've", "Ive": "I've", "youve": "you've"}
    assert published.items() <= CONTRACTIONS.items()
    assert "somebodyd" not in CONTRACTIONS and "shell" not in CONTRACTIONS


@pytest.mark.parametrize(
    ("equal", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (7, 1), (10, 1)]
)
def test_soft_accuracy(equal, score):
    references = ["Blue."] * equal + [f"other {i}" for i in range(10 - equal)]
    assert soft_accuracies(references).get("blue", 0) == pytest.approx(score)


@given(st.lists(st.sampled_from("abcd"), min_size=10, max_size=10))
def test_soft_accuracy_is_the_leave_one_out_mean(references):
    references = [f"word {letter * 3}" for letter in references]
    for answer, score in soft_accuracies(references).items():
        matches = [
            sum(other == answer for j, other in enumerate(references) if j != i) for i in range(10)
        ]
        assert score == pytest.approx(sum(min(1, m / 3) for m in matches) / 10)


@pytest.mark.parametrize("count", [0, 9, 11])
def test_other_than_ten_references_is_an_error(count):
    with pytest.raises(ValueError, match=f"expected 10 reference answers, got {count}"):
        soft_accuracies(["yes"] * count)
