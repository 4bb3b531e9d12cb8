"""Choices before layer 0 in the whole model: no image is no image. What all do: `test_methods`."""

from __future__ import annotations

import pytest
import torch

from llava import pruning
from llava.constants import IMAGE_TOKEN_INDEX
from llava.pruning.cost import DecoderShape, measure
from tests import tiny

NEW = 8


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return tiny.model(7, attn=request.param)


@pytest.fixture(scope="module")
def samples():
    """Prompts with 1, 2, 0 and 1 images and different lengths of text."""
    return [
        tiny.prompt(1, before=2, after=5),
        tiny.prompt(2, before=6, after=9, images=2),
        tiny.prompt(3, before=3, after=4, images=0),
        tiny.prompt(4, before=9, after=14),
    ]


def text_of(ids: torch.Tensor) -> torch.Tensor:
    return ids[ids != IMAGE_TOKEN_INDEX]


def generate(model, ids, mask=None, images=None, pruner=None, **options):
    out = model.generate(
        ids,
        images=images if images is not None and len(images) else None,
        attention_mask=mask,
        pruner=pruner,
        max_new_tokens=NEW,
        return_dict_in_generate=True,
        output_logits=True,
        **{"do_sample": False, **options},
    )
    return out, torch.stack(out.logits, 1)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_no_image_is_the_prompt_without_its_image_tokens(model, samples, options) -> None:
    pruner, images = pruning.build("no-image"), tiny.pixels(8, 4)
    ids, mask = tiny.batch(samples)
    without, logits = generate(model, ids, mask, images, pruner, **options)
    text, expected = generate(model, *tiny.batch([text_of(i) for i in samples]), **options)
    assert torch.equal(without.sequences, text.sequences)
    assert torch.equal(logits, expected)
    alone, logits = generate(model, samples[0][None], None, images[:1], pruner, **options)
    text, expected = generate(model, text_of(samples[0])[None], **options)
    assert torch.equal(alone.sequences, text.sequences)
    assert torch.equal(logits, expected)


def test_seeds_differ_and_repeat(model, samples) -> None:
    def logits(seed: int) -> torch.Tensor:
        pruner = pruning.build("random", target_token_num=6, seed=seed)
        return generate(model, samples[0][None], None, tiny.pixels(8), pruner)[1]

    assert torch.equal(logits(0), logits(0))
    assert (logits(0)[:, 0] - logits(1)[:, 0]).abs().max() > 1e-3


def test_what_no_image_costs(model, samples) -> None:
    shape = DecoderShape.from_config(model.config)
    ids = samples[0]
    out, _ = generate(model, ids[None], None, tiny.pixels(8), pruning.build("no-image"))
    text, _ = generate(model, text_of(ids)[None])
    trace, bare = (o.past_key_values.trace.samples[0] for o in (out, text))
    assert (trace.n_visual, trace.n_text) == (16, len(ids) - 1)
    cost, expected = (measure(t, shape, new_tokens=NEW) for t in (trace, bare))
    assert (cost.tokens_entering, cost.tokens_leaving, cost.scoring_flops) == (0, 0, 0)
    assert cost.prefill_flops == expected.prefill_flops == expected.dense_prefill_flops
    assert cost.decode_flops == expected.decode_flops
    assert cost.kv_bytes == expected.kv_bytes < cost.dense_kv_bytes
    keys = out.past_key_values.layers[0].keys
    assert keys.shape[2] == len(ids) - 1 + NEW - 1


def test_a_conversation_goes_on_without_the_image(model, samples) -> None:
    pruner, ids = pruning.build("no-image"), samples[0]
    first, _ = generate(model, ids[None], None, tiny.pixels(8), pruner)
    more = torch.cat([ids, first.sequences[0], torch.tensor([11, 12, 13])])
    cache = first.past_key_values
    _, logits = generate(model, more[None], None, tiny.pixels(8), past_key_values=cache)
    _, expected = generate(model, text_of(more)[None])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
