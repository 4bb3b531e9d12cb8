"""What is particular to methods in the decoder: no image at all, whose attention ranks, and costs.

What all methods do: `test_methods`.
"""

from __future__ import annotations

import pytest
import torch

from llava import pruning
from llava.pruning.cost import DecoderShape, measure
from tests import tiny
from tests.closeness import FLOAT32, assert_close

from .prompts import SAMPLES, generate, one, text_of


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return tiny.model(7, attn=request.param)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_no_image_is_the_prompt_without_its_image_tokens(model, options) -> None:
    pruner, images = pruning.build("no-image"), tiny.pixels(8, 4)
    ids, mask = tiny.batch(SAMPLES)
    without, logits = generate(model, ids, mask, images, pruner, **options)
    text, expected = generate(model, *tiny.batch([text_of(i) for i in SAMPLES]), **options)
    assert torch.equal(without.sequences, text.sequences)
    # In the last layer only the last token runs, and the text's run has all.
    assert_close(logits, expected, FLOAT32)
    alone, logits = generate(model, SAMPLES[0][None], None, images[:1], pruner, **options)
    text, expected = generate(model, text_of(SAMPLES[0])[None], **options)
    assert torch.equal(alone.sequences, text.sequences)
    assert_close(logits, expected, FLOAT32)


def test_what_no_image_costs(model) -> None:
    shape = DecoderShape.from_config(model.config)
    ids = SAMPLES[0]
    out, _ = one(model, pruning.build("no-image"), new=8)
    text, _ = generate(model, text_of(ids)[None], new=8)
    trace, bare = (o.past_key_values.trace.samples[0] for o in (out, text))
    assert (trace.n_visual, trace.n_text) == (16, len(ids) - 1)
    cost, expected = (measure(t, shape, new_tokens=8) for t in (trace, bare))
    assert (cost.tokens_entering, cost.tokens_leaving, cost.scoring_flops) == (0, 0, 0)
    assert cost.prefill_flops == expected.prefill_flops == expected.dense_prefill_flops
    assert cost.decode_flops == expected.decode_flops
    assert cost.kv_bytes == expected.kv_bytes < cost.dense_kv_bytes
    keys = out.past_key_values.layers[0].keys
    assert keys.shape[2] == len(ids) - 1 + 7


def test_a_conversation_goes_on_without_the_image(model) -> None:
    first, _ = one(model, pruning.build("no-image"))
    more = torch.cat([SAMPLES[0], first.sequences[0], torch.tensor([11, 12, 13])])
    cache = first.past_key_values
    _, logits = generate(model, more[None], None, tiny.pixels(8), past_key_values=cache)
    _, expected = generate(model, text_of(more)[None])
    assert_close(logits, expected, FLOAT32)


@pytest.mark.parametrize(
    ("method", "settings", "layer", "kept"),
    [
        ("fastv", {"target_token_num": 5}, 1, 5),
        ("pdrop", {"stages": (2,), "ratios": (0.25,), "positions": "original"}, 2, 4),
        # 3 x 16 + 3 x 14 = 6 x 15.
        ("vscan", {"target_token_num": 15, "layer": 3, "first_ratio": 2}, 3, 14),
    ],
)
@torch.no_grad()
def test_the_last_token_of_a_layer_ranks(model, method, settings, layer, kept) -> None:
    """FastV: of the layer before the cut; PyramidDrop and VScan: of the one behind it. The rows are
    those that an unpruned model with eager attention has."""
    ids, pixels, caught = tiny.prompt(2)[None], tiny.pixels(2), []
    eager = tiny.model(7, attn="eager")
    eager.model.layers[layer].self_attn.register_forward_hook(
        lambda module, inputs, output: caught.append(output[1])
    )
    visual = eager.embed_prompt(ids, None, pixels).layout.is_visual[0]
    eager(ids, images=pixels)
    row = caught[0][0, :, -1].mean(0)[visual]
    out, _ = generate(model, ids, None, pixels, pruning.build(method, **settings), new=1)
    expected = sorted(row.topk(kept).indices.tolist())
    assert out.past_key_values.trace.kept_patches(0)[-1] == expected


def test_costs_of_scoring(model) -> None:
    """Tokens and scores of one sample, to the FLOP: 16 visual tokens and 8 of text, d = 64."""
    shape = DecoderShape.from_config(model.config)
    d, n, text, tail = 64, 16, len(SAMPLES[0]) - 1, 5

    def scoring(method: str, **settings) -> int:
        out, _ = one(model, pruning.build(method, **settings), new=1)
        return measure(out.past_key_values.trace.samples[0], shape).scoring_flops

    row = 2 * d * (d + n + text)
    assert scoring("fastv", target_token_num=8) == row
    assert scoring("fastv", target_token_num=8, query="all") == (n + text) * row
    assert scoring("dart", target_token_num=8) == 2 * 8 * n * d + (n + tail) * d
    # The next layer's key projection of all tokens, and one row.
    assert scoring("pdrop", stages=(2,), ratios=(0.5,)) == 2 * (n + text) * d * d + row
    # The same: all 16 tokens go on in the first stage.
    vscan = {"target_token_num": 15, "layer": 3, "first_ratio": 2}
    assert scoring("vscan", **vscan) == 2 * (n + text) * d * d + row
    # Similarity of 16 x 5 pairs and 5 rows at each of the three cuts.
    version = {"version": "plus", "stages": (1, 3, 4), "target_token_num": 8}
    counts = pruning.build("sparsevlm", **version).cuts(n, shape)
    sizes = [n, *(cut.keep for cut in counts[:2])]
    rows = sum(2 * tail * d * (d + size + text) for size in sizes)
    gravity = sum(2 * tail * (size + text) * 16 for size in sizes)
    assert scoring("sparsevlm", **version) == 2 * n * tail * d + rows + gravity


@torch.no_grad()
def test_the_rotary_base_reaches_the_gravity_correction() -> None:
    assert DecoderShape.from_config(tiny.config()).rope_theta == 10000.0
    config = tiny.config(rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    assert DecoderShape.from_config(config).rope_theta == 500.0
