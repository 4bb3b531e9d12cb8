"""The context of a model: prompts beyond it are refused, answers end with it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from llava import pruning
from llava.model.builder import load_pretrained_model
from llava.model.context import context_length
from llava.pruning.checks import PromptError
from tests import checkpoints, tiny

ROOM = 40  # tokens; a prompt of `tiny` has 11 of text and 16 patches


@pytest.fixture(scope="module")
def model():
    made = tiny.model(5, layers=3)
    made.config.max_position_embeddings = ROOM
    return made


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"max_position_embeddings": 4096, "tokenizer_model_max_length": None}, 4096),
        ({"max_position_embeddings": 4096, "tokenizer_model_max_length": 2048}, 2048),
        ({"max_position_embeddings": 4096, "tokenizer_model_max_length": 8192}, 8192),
        ({"max_position_embeddings": 4096, "max_sequence_length": 512}, 512),
        ({}, None),
    ],
)
def test_what_states_it(config, length) -> None:
    assert context_length(SimpleNamespace(**config)) == length


@pytest.mark.parametrize("write", [checkpoints.write_original, checkpoints.write_hf])
def test_a_checkpoint_without_a_length_of_its_own_has_its_decoders(tmp_path, write) -> None:
    folder = write(tmp_path)
    _, model, _, length = load_pretrained_model(folder, device="cpu", dtype="float32")
    assert length == model.config.max_position_embeddings == 4096
    with pytest.raises(PromptError, match=r"4100 tokens, 16 of them visual.* is 4096 \(max_pos"):
        model.generate(
            torch.cat([tiny.prompt(0, after=0), torch.full((4080,), 5)])[None],
            images=tiny.pixels(0),
            max_new_tokens=1,
        )


def test_a_text_beyond_it_is_not_even_embedded(model, monkeypatch) -> None:
    def refuse(*_):
        raise AssertionError("a text of any length would need any amount of memory")

    monkeypatch.setattr(model.model.embed_tokens, "forward", refuse)
    ids = tiny.prompt(0, after=60, images=0)
    with pytest.raises(PromptError, match=f"64 tokens, 0 of them .* is {ROOM} .*shorten the text$"):
        model.generate(ids[None], max_new_tokens=1)


def generate(model, ids, images, mask=None, **more):
    options = {"do_sample": False, "max_new_tokens": 50, **more}
    return model.generate(ids, images=images, attention_mask=mask, **options)


@pytest.mark.parametrize("beams", [1, 3])
def test_an_answer_ends_with_the_context(model, beams) -> None:
    for after in (7, 19, 20):
        ids = tiny.prompt(1, after=after)[None]
        room = max(ROOM - (4 + after + 16), 1)  # a prompt that fills it has one token, too
        out = generate(model, ids, tiny.pixels(1), num_beams=beams)
        assert out.shape[1] == room
        less = generate(model, ids, tiny.pixels(1), num_beams=beams, max_new_tokens=1)
        assert less.shape[1] == 1


def test_each_sample_of_a_batch_ends_by_itself(model, monkeypatch) -> None:
    prompts = [tiny.prompt(1), tiny.prompt(2, after=15), tiny.prompt(3, after=11)]
    ids, mask = tiny.batch(prompts)
    images = tiny.pixels(1, 3)
    first, *others = generate(model, ids, images, mask).tolist()
    end = next(token for other in others for token in other[:5] if token not in first)
    monkeypatch.setattr(model.generation_config, "eos_token_id", end)
    together = generate(model, ids, images, mask)
    assert together.shape[1] == ROOM - (4 + 7 + 16)
    for i, prompt in enumerate(prompts):
        alone = generate(model, prompt[None], images[i : i + 1])[0].tolist()
        assert together[i, : len(alone)].tolist() == alone
        assert not together[i, len(alone) :].any()  # padding


def test_what_the_tower_drops_takes_no_room(model) -> None:
    pruner = pruning.build("visionzip", target_token_num=6)
    ids = tiny.prompt(1, after=25)[None]
    with pytest.raises(PromptError, match="45 tokens, 16 of them visual"):
        generate(model, ids, tiny.pixels(1))
    assert generate(model, ids, tiny.pixels(1), pruner=pruner).shape[1] == ROOM - (29 + 6)


def test_a_conversation_ends_with_the_context(model) -> None:
    ids, images = tiny.prompt(1)[None], tiny.pixels(1)
    pruner = pruning.build("fastv", target_token_num=8)
    first = generate(
        model, ids, images, pruner=pruner, max_new_tokens=4, return_dict_in_generate=True
    )
    said = torch.cat([ids, first.sequences], 1)
    cache = first.past_key_values
    with pytest.raises(PromptError, match=f"{27 + 4 + 10} tokens, 16 of them visual"):
        generate(model, torch.cat([said, torch.full((1, 10), 7)], 1), None, past_key_values=cache)
    out = generate(model, torch.cat([said, torch.tensor([[7, 8]])], 1), None, past_key_values=cache)
    assert out.shape[1] == ROOM - (27 + 4 + 2)
