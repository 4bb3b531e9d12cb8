"""Tokens that config.json calls for and the tokenizer lacks: added where they have rows."""

from __future__ import annotations

import pytest
import torch

from llava.conversation import image_prompt
from llava.mm_utils import tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.tokenizer import load_tokenizer

from .. import checkpoints, tiny
from ..answers import ask

TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def folder(tmp_path, rows: int, **config):
    """An original checkpoint with `rows` more rows than its tokenizer has tokens."""
    state = checkpoints.language_model()
    generator = torch.Generator().manual_seed(4)
    for name in TABLES:
        more = torch.randn(rows, state[name].shape[1], generator=generator).half()
        state[name] = torch.cat([state[name], more])
    made = checkpoints.write_original(tmp_path, vocab_size=tiny.VOCAB + rows, **config)
    for file in made.glob("pytorch_model*"):
        file.unlink()
    checkpoints.write_weights(made, state, "safetensors")
    return made


@pytest.mark.parametrize(
    ("patch", "names"),
    [
        (False, ["<im_start>", "<im_end>"]),
        (True, ["<im_patch>", "<im_start>", "<im_end>"]),
        (..., ["<im_patch>", "<im_start>", "<im_end>"]),  # LLaVA takes a missing key for true
    ],
)
def test_they_get_the_rows_that_training_appended(tmp_path, patch, names):
    made = folder(tmp_path, len(names), mm_use_im_start_end=True, mm_use_im_patch_token=patch)
    assert len(load_tokenizer(made)) == tiny.VOCAB
    tokenizer, model, *_ = loaded = load_pretrained_model(made, device="cpu", dtype="float32")
    assert tokenizer.convert_ids_to_tokens(range(tiny.VOCAB, tiny.VOCAB + len(names))) == names
    assert set(tokenizer.convert_tokens_to_ids(names)) <= tokenizer.all_special_ids
    prompt = image_prompt("A sign?", 1, "vicuna_v1", model.config)
    ids = tokenizer_image_token(prompt, tokenizer)
    start = tokenizer.convert_tokens_to_ids("<im_start>")
    at = ids.index(-200)
    assert (ids[at - 1], ids[at + 1]) == (start, start + 1)
    assert len(ask(loaded).tokens) > 4


def test_a_tokenizer_that_has_them_is_left_alone(tmp_path):
    made = folder(tmp_path, 3, mm_use_im_start_end=True, mm_use_im_patch_token=True)
    names = {"<im_end>": tiny.VOCAB, "<im_start>": tiny.VOCAB + 1, "<im_patch>": tiny.VOCAB + 2}
    checkpoints.write_json(made / "added_tokens.json", names)
    tokenizer = load_pretrained_model(made, device="cpu")[0]
    assert tokenizer.convert_tokens_to_ids(list(names)) == list(names.values())


@pytest.mark.parametrize(("rows", "patch"), [(0, False), (1, False), (2, True)])
def test_without_rows_they_are_refused(tmp_path, rows, patch):
    made = folder(tmp_path, rows, mm_use_im_start_end=True, mm_use_im_patch_token=patch)
    expected = rf"config\.json: .*<im_start> has no row among the {tiny.VOCAB + rows} .*to false"
    with pytest.raises(ValueError, match=expected):
        load_pretrained_model(made, device="cpu")


def test_rows_behind_the_embeddings_are_refused(tmp_path):
    made = folder(tmp_path, 0, mm_use_im_start_end=True, mm_use_im_patch_token=False)
    names = {"<im_start>": tiny.VOCAB, "<im_end>": tiny.VOCAB + 1}
    checkpoints.write_json(made / "added_tokens.json", names)
    with pytest.raises(ValueError, match="<im_start> has no row"):
        load_pretrained_model(made, device="cpu")


@pytest.mark.parametrize("rows", [0, 1])
def test_the_patch_token_is_in_no_prompt(tmp_path, rows):
    made = folder(tmp_path, rows, mm_use_im_patch_token=True)
    tokenizer = load_pretrained_model(made, device="cpu")[0]
    assert ("<im_patch>" in tokenizer.get_vocab()) == (rows == 1)


def test_transformers_tokenizer_is_taken_as_it_is(tmp_path):
    made = folder(tmp_path, 2, mm_use_im_start_end=True, mm_use_im_patch_token=False)
    with pytest.raises(ValueError, match="use processing llava"):
        load_pretrained_model(made, device="cpu", processing="llava-hf")


@pytest.mark.parametrize("i", [tiny.VOCAB, -1, -100, 10**12])
def test_an_id_without_a_row_is_named(i):
    model = tiny.model(2)
    ids = tiny.prompt(1)
    for mask in (torch.ones(1, len(ids)), torch.tensor([[1] * (len(ids) - 1) + [0]])):
        ids[-1] = i
        options = {"attention_mask": mask, "images": tiny.pixels(1), "max_new_tokens": 1}
        if mask.all():
            with pytest.raises(ValueError, match=rf"id {i} has no row among the {tiny.VOCAB}"):
                model.generate(ids[None], **options)
        else:  # what is padding does not matter
            assert model.generate(ids[None], **options).shape == (1, 1)
