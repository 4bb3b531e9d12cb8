"""`generate(stop_strings=...)` ends an answer where cutting its whole text by hand would."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from llava.mm_utils import KeywordsStoppingCriteria
from llava.model.tokenizer import LlavaTokenizer
from tests import checkpoints, tiny
from tests.test_tokenizer_interface import DEMO

NEW = 40


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> LlavaTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    checkpoints.write_tokenizer(folder)
    return LlavaTokenizer(folder)


@pytest.fixture(scope="module")
def model(tokenizer):
    made = tiny.model(11)
    made.generation_config.eos_token_id = 2
    return made


def answers(model, **options) -> Tensor:
    """Three answers (3, new) of many tokens, the same at every call."""
    ids, mask = tiny.batch([tiny.prompt(seed, after=5 + seed) for seed in range(3)])
    torch.manual_seed(5)
    sampling = {"do_sample": True, "temperature": 3.0, "max_new_tokens": NEW}
    return model.generate(
        ids, attention_mask=mask, images=tiny.pixels(1, n=3), **{**sampling, **options}
    )


def cut(tokenizer: LlavaTokenizer, row: list[int], texts: list[str]) -> int:
    """How many ids of `row` there are once one of `texts` is in their text."""
    ends = (n for n in range(1, NEW + 1) if any(t in tokenizer.decode(row[:n]) for t in texts))
    return next(ends, NEW)


@pytest.mark.parametrize(
    "texts", [["a"], ["t"], [" ass"], ["ist", "fu"], ["an", "zzz"], ["US", "67"], ["no such text"]]
)
def test_every_row_of_a_batch_ends_by_itself(model, tokenizer, texts: list[str]) -> None:
    whole = answers(model).tolist()
    assert len({tokenizer.decode(row) for row in whole}) == 3
    ends = [cut(tokenizer, row, texts) for row in whole]
    stopped = answers(model, stop_strings=texts, tokenizer=tokenizer).tolist()
    assert len(stopped[0]) == max(ends)
    for row, short, end in zip(whole, stopped, ends):
        assert short[:end] == row[:end]
        assert set(short[end:]) <= {model.generation_config.pad_token_id}
    if texts != ["no such text"]:
        assert min(ends) < NEW


def test_special_tokens_are_no_text(model, tokenizer) -> None:
    bias = {"sequence_bias": {(1,): 9.0}}  # <s>, which holds an "s"
    whole = answers(model, **bias)
    stopped = answers(model, stop_strings="s", tokenizer=tokenizer, **bias)
    ends = [cut(tokenizer, row, ["s"]) for row in whole.tolist()]
    assert any(1 in row[: end - 1] for row, end in zip(whole.tolist(), ends))
    assert stopped.shape[1] == max(ends)
    assert all(torch.equal(a[:end], b[:end]) for a, b, end in zip(stopped, whole, ends))


@pytest.mark.parametrize("texts", ["is", ["st", "u"]])
def test_beams_end_with_the_text(model, tokenizer, texts) -> None:
    options = {"num_beams": 3, "do_sample": False}
    whole = answers(model, **options)
    stopped = answers(model, stop_strings=texts, tokenizer=tokenizer, **options)
    for row in stopped.tolist():
        end = cut(tokenizer, row, [texts] if isinstance(texts, str) else texts)
        assert set(row[end:]) <= {2}  # what transformers fills beams with
    assert stopped.shape[1] < whole.shape[1]


def test_one_string_alone_and_other_criteria_beside_it(model, tokenizer) -> None:
    listed = answers(model, stop_strings=["e"], tokenizer=tokenizer)
    assert torch.equal(answers(model, stop_strings="e", tokenizer=tokenizer), listed)
    two = answers(model, stop_strings=["e", "s"], tokenizer=tokenizer)
    prompt = torch.empty(3, 0, dtype=torch.long)
    also = [KeywordsStoppingCriteria(["s"], tokenizer, prompt)]
    both = answers(model, stop_strings="e", tokenizer=tokenizer, stopping_criteria=also)
    assert torch.equal(both, two)
    assert also == [also[0]]  # the caller's list is left alone


def test_strings_of_a_generation_config(model, tokenizer) -> None:
    config = GenerationConfig(**{**model.generation_config.to_dict(), "stop_strings": ["e"]})
    stopped = answers(model, generation_config=config, tokenizer=tokenizer)
    assert torch.equal(stopped, answers(model, stop_strings="e", tokenizer=tokenizer))


def test_a_character_made_of_bytes() -> None:
    tokenizer = LlavaTokenizer(DEMO)
    stop = KeywordsStoppingCriteria(["世"], tokenizer, torch.empty(1, 0, dtype=torch.long))
    ids = tokenizer.encode("a世", add_special_tokens=False)
    assert len(ids) > 3
    done = [bool(stop(torch.tensor([ids[:n]]), None)) for n in range(1, len(ids) + 1)]
    assert done == [False] * (len(ids) - 1) + [True]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"stop_strings": ["e"]}, "tokenizer"), ({"stop_strings": ["e", ""]}, "non-empty")],
)
def test_what_is_missing_is_named(model, tokenizer, options, message: str) -> None:
    if message != "tokenizer":
        options = {**options, "tokenizer": tokenizer}
    with pytest.raises(ValueError, match=message):
        answers(model, **options)
