"""LLaVA-1.6 with nothing pruned is transformers' own LLaVA-NeXT, bit for bit."""

from __future__ import annotations

import pytest
import torch
from transformers import MistralConfig

from llava import pruning
from tests import tiny, tiny_next

#: Ratios on each canvas; the last two are below one tile, where the two readings differ.
SIZES = [(200, 100), (80, 100), (300, 90), (60, 170), (112, 112), (97, 103), (40, 20), (30, 50)]

#: LLaVA's reading for transformers: pairs turned round, order kept.
TURNED = [pair[::-1] for pair in tiny_next.PINPOINTS]


def logits(ours, stock, prompt, images, sizes, pruner=None):
    """Of both models for one prompt."""
    with torch.no_grad():
        made = ours.encode_images(images, sizes)
        ids = tiny_next.expanded(prompt, [len(one.embeds) for one in made])
        mine = ours(prompt[None], images=images, image_sizes=sizes, pruner=pruner).logits
        theirs = stock(
            input_ids=ids[None],
            pixel_values=torch.cat(images),
            image_sizes=torch.tensor([size[::-1] for size in sizes]),
        ).logits
    return mine, theirs


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def pair(request):
    ours = tiny_next.model(0, attn=request.param)
    return ours, tiny_next.stock(ours, request.param, TURNED)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_one_picture(pair, size, tmp_path):
    images = tiny_next.pixels([size], pair[0].config, tiny_next.processor(tmp_path))
    mine, theirs = logits(*pair, tiny.prompt(1), images, [size])
    if size in tiny_next.COUNTS:
        assert mine.shape[1] == tiny_next.COUNTS[size] + len(tiny.prompt(1)) - 1
    assert torch.equal(mine, theirs)


def test_several_pictures_with_text_between(pair):
    ours, stock = pair
    sizes = [(300, 90), (40, 20), (112, 112)]
    images = tiny_next.views(sizes, ours.config)
    prompt = tiny.prompt(2, images=3)
    mine, theirs = logits(ours, stock, prompt, images, sizes, pruning.build("none"))
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_reading_of_llava_hf(size):
    ours = tiny_next.model(0, anyres_reading="llava-hf")
    stock = tiny_next.stock(ours)
    images = tiny_next.views([size], ours.config)
    mine, theirs = logits(ours, stock, tiny.prompt(1), images, [size])
    assert torch.equal(mine, theirs)


def test_a_mistral_decoder():
    ours = tiny_next.model(1, kv_heads=2)
    stock = tiny_next.stock(
        ours, pinpoints=TURNED, text=lambda **sizes: MistralConfig(sliding_window=None, **sizes)
    )
    images = tiny_next.views([(200, 100)], ours.config)
    mine, theirs = logits(ours, stock, tiny.prompt(1), images, [(200, 100)])
    assert torch.equal(mine, theirs)


def test_forty_layers():
    """LLaVA-13B's depth."""
    ours = tiny_next.model(2, layers=40)
    stock = tiny_next.stock(ours, pinpoints=TURNED)
    images = tiny_next.views([(80, 100)], ours.config)
    mine, theirs = logits(ours, stock, tiny.prompt(1), images, [(80, 100)])
    assert torch.equal(mine, theirs)


def test_generation_of_a_left_padded_batch(pair):
    ours, stock = pair
    sizes = [(200, 100), (40, 20), (80, 100)]
    prompts = [tiny.prompt(i, before=i, after=5 + i) for i in range(3)]
    images = tiny_next.views(sizes, ours.config)
    ids, mask = tiny.batch(prompts)
    counts = [tiny_next.COUNTS[size] for size in sizes]
    stock_ids, stock_mask = tiny.batch(
        [tiny_next.expanded(p, [n]) for p, n in zip(prompts, counts)]
    )
    options = {"do_sample": False, "max_new_tokens": 8}
    mine = ours.generate(ids, images=images, image_sizes=sizes, attention_mask=mask, **options)
    theirs = stock.generate(
        stock_ids,
        pixel_values=torch.cat(images),
        image_sizes=torch.tensor([size[::-1] for size in sizes]),
        attention_mask=stock_mask,
        **options,
    )
    assert torch.equal(mine, theirs[:, stock_ids.shape[1] :])
