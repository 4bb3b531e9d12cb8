"""The answer normaliser and soft accuracy that VQA-style benchmarks share.

Five steps, kept exactly as the EvalAI servers and facebookresearch/mmf (`EvalAIAnswerProcessor`,
M4C evaluators) apply them, oddities included, since published scores depend on them:
- after the first step no comma is left, so the digit-comma-digit rule can no longer fire;
- the pattern for full stops has a malformed look-behind that excludes nothing, and a flag is passed
  where the number of substitutions belongs, which limits them to 32;
- contraction keys with capitals can never match, because the answer is lower case by then.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

REFERENCES = 10  # human answers to a question

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_MOST_STOPS = 32
_FULL_STOP = re.compile(r"\.(?!\d)")
_DIGITS_WITH_COMMA = re.compile(r"\d,\d")
_ARTICLES = {"a", "an", "the"}
_FROM_ZERO = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(i) for i, word in enumerate(_FROM_ZERO.split())}

# Data of the VQA evaluation: an answer that lost one apostrophe of these gets it back.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am
    mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't
    she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll
    who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've
    you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


# The last three are in the published table too: two change nothing, one is the wrong way round.
CONTRACTIONS = {
    lost: word for word in _CONTRACTED.split() for lost in _without_one_apostrophe(word)
} | {
    "let's": "let's",
    "she's": "she's",
    "somebody'd": "somebodyd",
}


def normalise(answer: str) -> str:
    """Bring an answer into the form in which answers are compared: all five steps."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalise_official(text.replace("\n", " ").replace("\t", " ").strip())


@lru_cache(maxsize=1 << 16)  # a few answers make up most of the two million references of VQAv2
def normalise_official(answer: str) -> str:
    """The steps after the first: punctuation, number words, articles, contractions.

    They are what the official VQA evaluation does itself, to references as to answers; the first
    step is the answer processor's own.
    """
    words = [_NUMBERS.get(word, word) for word in _without_punctuation(answer).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def soft_accuracies(references: Sequence[str]) -> dict[str, float]:
    """Score in [0, 1] of each answer that a reference gives; any other answer scores 0.

    The mean over the ten ways to leave one reference out of min(1, matches / 3), so 1, 2, 3, 4 or
    more equal references give 0.3, 0.6, 0.9, 1. References are normalised here.

    Raises:
        ValueError: not ten references.
    """
    if len(references) != REFERENCES:
        raise ValueError(f"expected {REFERENCES} reference answers, got {len(references)}")
    counts = Counter(map(normalise, references))
    return {answer: _soft_accuracy(count) for answer, count in counts.items()}


def _soft_accuracy(equal: int) -> float:
    left_out_equal = equal * min(1.0, (equal - 1) / 3)
    left_out_other = (REFERENCES - equal) * min(1.0, equal / 3)
    return (left_out_equal + left_out_other) / REFERENCES


def _without_punctuation(text: str) -> str:
    result = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        removed = beside_space or _DIGITS_WITH_COMMA.search(text) is not None
        result = result.replace(mark, "" if removed else " ")
    return _FULL_STOP.sub("", result, count=_MOST_STOPS)
