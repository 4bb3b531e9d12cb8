"""What LLaVA's programs and lmms-eval's adapter ask of the tokenizer and of LLaVA's modules."""

from __future__ import annotations

import copy
import importlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AddedToken, LlamaTokenizer, StopStringCriteria

from llava.model.hf_tokenizer import HfTokenizer
from llava.model.tokenizer import LlavaTokenizer, load_tokenizer

DEMO = Path(__file__).parents[1] / "playground" / "demo" / "llava-demo"
TEXTS = ["What color is the sign?", "a", "Yes"]


@pytest.fixture
def tokenizer() -> LlavaTokenizer:
    return load_tokenizer(DEMO)


@pytest.fixture(scope="module")
def theirs() -> Any:
    """transformers' tokenizer of the same files."""
    return LlamaTokenizer.from_pretrained(DEMO)


def plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (
            "constants",
            "IGNORE_INDEX IMAGE_TOKEN_INDEX DEFAULT_IMAGE_TOKEN DEFAULT_IMAGE_PATCH_TOKEN "
            "DEFAULT_IM_START_TOKEN DEFAULT_IM_END_TOKEN IMAGE_PLACEHOLDER",
        ),
        ("conversation", "conv_templates default_conversation Conversation SeparatorStyle"),
        (
            "mm_utils",
            "process_images tokenizer_image_token get_model_name_from_path expand2square "
            "load_image_from_base64 select_best_resolution KeywordsStoppingCriteria",
        ),
        ("model", "LlavaLlamaForCausalLM LlavaConfig"),
        ("model.builder", "load_pretrained_model"),
        ("utils", "disable_torch_init"),
    ],
)
def test_names_that_llavas_programs_import(module: str, names: str) -> None:
    there = importlib.import_module(f"llava.{module}")
    assert [name for name in names.split() if not hasattr(there, name)] == []


def test_layers_are_initialised_after_disable_torch_init() -> None:
    importlib.import_module("llava.utils").disable_torch_init()
    torch.manual_seed(0)
    first = torch.nn.Linear(3, 3).weight
    torch.manual_seed(0)
    assert torch.equal(first, torch.nn.Linear(3, 3).weight)


def test_attributes_equal_transformers(tokenizer: LlavaTokenizer, theirs: Any) -> None:
    for name in (
        "padding_side", "model_max_length", "vocab_size", "bos_token", "eos_token", "unk_token",
        "pad_token", "bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id",
        "all_special_ids", "all_special_tokens", "name_or_path",
    ):  # fmt: skip
        mine, other = getattr(tokenizer, name), getattr(theirs, name)
        if name.startswith("all_special"):
            mine, other = sorted(mine), sorted(other)
        assert mine == other or str(mine) == str(other), name
    assert tokenizer.padding_side == "right"
    assert len(tokenizer) == len(theirs)
    assert tokenizer.get_vocab() == theirs.get_vocab()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": True},
        {"padding": "longest", "return_tensors": "pt"},
        {"padding": "max_length", "max_length": 30, "return_tensors": "pt"},
        {"padding": True, "truncation": True, "max_length": 4, "return_tensors": "np"},
        {"padding": "max_length", "truncation": True, "max_length": 4},
        {"padding": "max_length", "truncation": True},
        {"truncation": True, "max_length": 4},
        {"add_special_tokens": False},
        {},
    ],
)
def test_calls_give_what_transformers_gives(
    tokenizer: LlavaTokenizer, theirs: Any, side: str, options: dict[str, Any]
) -> None:
    tokenizer.padding_side, theirs.padding_side = side, side
    for text in (TEXTS, *TEXTS):
        mine, other = tokenizer(text, **options), theirs(text, **options)
        assert set(mine) == {"input_ids", "attention_mask"}
        for key in mine:
            assert type(mine[key]) is type(other[key])
            assert plain(mine[key]) == plain(other[key])


@pytest.mark.parametrize("side", ["right", "left"])
def test_pad_gives_what_transformers_gives(
    tokenizer: LlavaTokenizer, theirs: Any, side: str
) -> None:
    tokenizer.padding_side, theirs.padding_side = side, side
    rows = [tokenizer(text).input_ids for text in TEXTS]
    for batch in ({"input_ids": rows}, [{"input_ids": row} for row in rows], {"input_ids": [5]}):
        mine = tokenizer.pad(copy.deepcopy(batch), return_tensors="pt")
        other = theirs.pad(copy.deepcopy(batch), return_tensors="pt")
        assert all(torch.equal(mine[key], other[key]) for key in other)
    tensors = tokenizer.pad({"input_ids": [torch.tensor(row) for row in rows]})
    assert tensors["input_ids"] == theirs.pad({"input_ids": rows})["input_ids"]
    with pytest.raises(ValueError, match=r"\['labels'\]"):
        tokenizer.pad({"input_ids": rows, "labels": rows})
    with pytest.raises(ValueError, match="padding must be"):
        tokenizer(TEXTS, padding="left")
    with pytest.raises(ValueError, match="padding"):
        tokenizer(TEXTS, return_tensors="pt")


def test_padding_to_no_limit_is_an_error(tmp_path: Path) -> None:
    shutil.copy(DEMO / "tokenizer.model", tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.model_max_length == int(1e30)
    assert tokenizer(TEXTS, truncation=True).input_ids == tokenizer(TEXTS).input_ids
    with pytest.raises(ValueError, match="needs max_length"):
        tokenizer(TEXTS, padding="max_length")


def test_tokens_ids_and_texts(tokenizer: LlavaTokenizer, theirs: Any) -> None:
    text = "What color is  the sign? é世🙂"
    tokens = tokenizer.tokenize(text)
    assert tokens == theirs.tokenize(text)
    ids = tokenizer.convert_tokens_to_ids(tokens)
    assert ids == theirs.convert_tokens_to_ids(tokens)
    assert tokenizer.convert_ids_to_tokens(ids) == tokens
    assert tokenizer.convert_ids_to_tokens(ids[3]) == tokens[3]
    assert tokenizer.convert_tokens_to_string(tokens) == text


def test_decode_takes_what_transformers_takes(tokenizer: LlavaTokenizer, theirs: Any) -> None:
    ids = tokenizer(TEXTS, padding=True, return_tensors="pt").input_ids
    rows = ids.tolist()
    for sequence in (rows[0], ids[0], ids[0].numpy(), list(ids[0]), rows, ids, list(ids)):
        assert tokenizer.decode(sequence) == theirs.decode(sequence, skip_special_tokens=True)
    assert tokenizer.decode(2, skip_special_tokens=False) == "</s>"
    assert tokenizer.decode(np.int64(rows[0][2])) == theirs.decode(rows[0][2])
    plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    assert tokenizer.batch_decode(ids, **plain) == TEXTS
    with pytest.raises(ValueError, match="clean_up"):
        tokenizer.batch_decode(ids, clean_up_tokenization_spaces=True)


def test_special_tokens_can_be_set(tokenizer: LlavaTokenizer) -> None:
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer.pad_token_id == 2
    assert tokenizer.pad({"input_ids": [[5], [5, 6]]})["input_ids"] == [[5, 2], [5, 6]]
    tokenizer.pad_token_id = 0
    assert tokenizer.pad_token == "<unk>"
    tokenizer.pad_token = "[PAD]"
    with pytest.raises(ValueError, match=r"'\[PAD\]' has no id; give it one with add_tokens"):
        _ = tokenizer.pad_token_id


def test_tokens_can_be_added(tokenizer: LlavaTokenizer, theirs: Any) -> None:
    new = ["<im_start>", AddedToken("<im_end>", special=True), "</s>"]
    theirs = copy.deepcopy(theirs)
    assert tokenizer.add_tokens(new, special_tokens=True) == 2
    assert theirs.add_tokens(new, special_tokens=True) == 2
    assert tokenizer.add_tokens("[SEG]") == theirs.add_tokens("[SEG]") == 1
    assert len(tokenizer) == len(theirs) and tokenizer.get_vocab() == theirs.get_vocab()
    ids = tokenizer("a<im_start><im_end>[SEG]").input_ids
    assert ids[-3:] == theirs("a<im_start><im_end>[SEG]").input_ids[-3:]
    assert tokenizer.decode(ids) == "a[SEG]"
    assert tokenizer.vocab_size == len(tokenizer) - 3


def test_transformers_stop_strings_take_the_tokenizer(
    tokenizer: LlavaTokenizer, theirs: Any
) -> None:
    ids = torch.tensor([tokenizer.encode("the sign")])
    for text in ("ign", "sign", "gn", "is", " the sign", "n", "no"):
        mine, other = (StopStringCriteria(t, [text])(ids, None) for t in (tokenizer, theirs))
        assert torch.equal(mine, other), text


def test_llava_hfs_tokenizer_has_them_too() -> None:
    tokenizer = HfTokenizer(DEMO)
    assert tokenizer.padding_side == "right" and tokenizer.vocab_size == 720
    assert tokenizer.get_vocab()["<image>"] == 720 and tokenizer.model_max_length == 2048
    tokenizer.padding_side = "left"
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert batch.attention_mask[1].tolist()[0] == 0
    assert tokenizer.batch_decode(batch.input_ids, clean_up_tokenization_spaces=False) == TEXTS
    assert copy.deepcopy(tokenizer).encode_prompt("a") == tokenizer.encode_prompt("a")
    with pytest.raises(AttributeError):
        _ = tokenizer.no_such_thing
