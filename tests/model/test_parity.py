"""With nothing pruned, the owned loop is transformers' own LLaVA, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llava import pruning
from llava.constants import IMAGE_TOKEN_INDEX
from tests import tiny
from tests.closeness import FLOAT32, assert_close


def expanded(prompt: Tensor, visual: int = 16) -> Tensor:
    """The prompt as transformers wants it: one image id for every visual token."""
    image = torch.full((visual,), tiny.STOCK_IMAGE_ID)
    return torch.cat([image if t == IMAGE_TOKEN_INDEX else t[None] for t in prompt])


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def pair(request):
    ours = tiny.model(0, attn=request.param)
    return ours, tiny.stock(ours, request.param)


@pytest.fixture(scope="module")
def grouped_pair():
    ours = tiny.model(3, kv_heads=2)
    return ours, tiny.stock(ours)


def assert_same_logits(ours, stock, pruner=None) -> None:
    prompt, images = tiny.prompt(1), tiny.pixels(1)
    with torch.no_grad():
        mine = ours(prompt[None], images=images, pruner=pruner).logits
        theirs = stock(input_ids=expanded(prompt)[None], pixel_values=images).logits
    assert mine.shape == theirs.shape == (1, 27, tiny.VOCAB)
    assert torch.equal(mine, theirs)


def test_logits_are_bitwise_equal(pair) -> None:
    assert_same_logits(*pair)


def test_logits_are_bitwise_equal_with_grouped_keys(grouped_pair) -> None:
    assert_same_logits(*grouped_pair)


def test_the_dense_method_is_the_model_without_a_pruner(pair) -> None:
    assert_same_logits(*pair, pruner=pruning.build("none"))


@pytest.mark.parametrize("visual", [1, 2])
def test_several_images(pair, visual: int) -> None:
    ours, stock = pair
    prompt, images = tiny.prompt(4, images=visual), tiny.pixels(4, visual)
    with torch.no_grad():
        mine = ours(prompt[None], images=images).logits
        theirs = stock(input_ids=expanded(prompt)[None], pixel_values=images).logits
    assert torch.equal(mine, theirs)


def test_text_only_prompts(pair) -> None:
    ours, stock = pair
    prompt = tiny.prompt(5, images=0)[None]
    with torch.no_grad():
        assert torch.equal(ours(prompt).logits, stock(input_ids=prompt).logits)
    mine = ours.generate(prompt, do_sample=False, max_new_tokens=10)
    theirs = stock.generate(prompt, do_sample=False, max_new_tokens=10)[:, prompt.shape[1] :]
    assert torch.equal(mine, theirs)


def generate_both(pair, **options) -> tuple[Tensor, Tensor]:
    """A batch of four prompts of different lengths through both models; new tokens only."""
    ours, stock = pair
    prompts = [tiny.prompt(i, before=i, after=5 + i) for i in range(4)]
    images = tiny.pixels(2, 4)
    ids, mask = tiny.batch(prompts)
    stock_ids, stock_mask = tiny.batch([expanded(p) for p in prompts])
    torch.manual_seed(0)
    mine = ours.generate(ids, images=images, attention_mask=mask, max_new_tokens=12, **options)
    torch.manual_seed(0)
    theirs = stock.generate(
        stock_ids, pixel_values=images, attention_mask=stock_mask, max_new_tokens=12, **options
    )
    return mine, theirs[:, stock_ids.shape[1] :]


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.8, "top_p": 0.9},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": True, "num_return_sequences": 2},
    ],
    ids=["greedy", "sampled", "beams", "several returns"],
)
def test_generation_of_a_left_padded_batch(pair, options) -> None:
    mine, theirs = generate_both(pair, **options)
    assert torch.equal(mine, theirs)


def test_single_generation(pair) -> None:
    ours, stock = pair
    prompt, images = tiny.prompt(9), tiny.pixels(9)
    mine = ours.generate(prompt[None], images=images, do_sample=False, max_new_tokens=20)
    theirs = stock.generate(
        expanded(prompt)[None], pixel_values=images, do_sample=False, max_new_tokens=20
    )
    assert torch.equal(mine, theirs[:, len(expanded(prompt)) :])


def test_loss_and_gradients_are_those_of_transformers() -> None:
    ours = tiny.model(6).train()
    stock = tiny.stock(ours).train()
    prompt, images = tiny.prompt(6), tiny.pixels(6)
    labels = prompt.clone()
    labels[:6] = -100
    loss = ours(prompt[None], images=images, labels=labels[None]).loss
    stock_ids = expanded(prompt)
    stock_labels = torch.full_like(stock_ids, -100)
    tail = len(prompt) - 6
    stock_labels[-tail:] = prompt[-tail:]
    theirs = stock(input_ids=stock_ids[None], pixel_values=images, labels=stock_labels[None]).loss
    assert_close(loss, theirs, FLOAT32)
    loss.backward()
    theirs.backward()
    assert_close(
        ours.model.mm_projector[0].weight.grad,
        stock.model.multi_modal_projector.linear_1.weight.grad,
        FLOAT32,
    )
