"""Pictures are counted as pictures: not as runs of placeholders, tiles or frames."""

from __future__ import annotations

import pytest
import torch

from llava import hf

from . import zoo

SIZES = {name: (architecture.tokens,) * 2 for name, architecture in zoo.ZOO.items()}


def sizes(name: str, samples: list[str], generating: bool) -> list[tuple[int, ...]]:
    model, batch = zoo.shared(name), zoo.inputs(name, samples)
    cache = hf.cache(model, "none")
    if generating:
        model.generate(**batch, past_key_values=cache, max_new_tokens=1)
    else:
        with torch.no_grad():
            model(**batch, past_key_values=cache)
    return list(cache.trace.first.sizes)


@pytest.mark.parametrize("generating", [False, True])
@pytest.mark.parametrize("name", zoo.ZOO)
def test_two_pictures_are_two(name: str, generating: bool) -> None:
    samples = ["q", "iiq"] if name == "paligemma" else ["q", "titiq"]
    assert sizes(name, samples, generating) == [(), SIZES[name]]


@pytest.mark.parametrize("generating", [False, True])
@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_vl", "idefics3", "mistral3"])
def test_pictures_side_by_side_are_two(name: str, generating: bool) -> None:
    assert sizes(name, ["tiiq", "tq"], generating) == [SIZES[name], ()]


@pytest.mark.parametrize("generating", [False, True])
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_video_is_one_whatever_stands_between_its_frames(name: str, generating: bool) -> None:
    assert sizes(name, ["tivtiq", "tvq"], generating) == [(16, 24, 16), (24,)]


def test_a_budget_for_each_picture() -> None:
    model, batch = zoo.shared("idefics3"), zoo.inputs("idefics3", ["tiq", "titiq"])
    with hf.pruning(model, "random", target_token_num=6, budget_per="image") as pruned:
        model.generate(**batch, max_new_tokens=1)
    image = pruned.trace.last.image
    assert [[int((row == i).sum()) for i in range(2)] for row in image] == [[6, 0], [6, 6]]


def test_prompts_that_do_not_fit_are_refused() -> None:
    model, batch = zoo.shared("qwen2_vl"), zoo.inputs("qwen2_vl", ["tiq", "tq"])

    def run(**changed: torch.Tensor) -> None:
        with torch.no_grad():
            model(**{**batch, **changed}, past_key_values=hf.cache(model, "none"))

    with pytest.raises(ValueError, match="padding must be on the left"):
        run(attention_mask=batch["attention_mask"].flip(1))
    ids = batch["input_ids"]
    with pytest.raises(ValueError, match=r"images have 32 tokens, and the ids 16"):
        run(image_grid_thw=torch.tensor([[1, 8, 16]]))
    with pytest.raises(ValueError, match=r"ends with a visual token.*prefill_chunk_size"):
        run(input_ids=torch.cat([ids[:, :-1], torch.full_like(ids[:, :1], zoo.IMAGE)], 1))
