"""Pruned runs against the oracle: a full-length run in which dropped tokens are masked.

The oracle knows nothing of caches, selections or per-layer lengths. It keeps all tokens in all
layers and gives each layer a mask: the tokens dropped before it are invisible as keys. For the
compact position policy each layer gets the rotary positions that the tokens left have in it.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llava import pruning
from llava.pruning.cache import PrunedCache
from tests import tiny

STEPS = 4


def pruner(positions: str, **settings):
    return pruning.build(
        "autoprune",
        **{
            "target_token_num": 6,
            "x0": 3.0,
            "k0": 0.5,
            "recycle_ratio": 0.0,
            "positions": positions,
            **settings,
        },
    )


def oracle(model, embeds: Tensor, kept: list[set[int]], positions: str) -> Tensor:
    """Hidden states (n, d) after the norm, with `kept[l]` the sequence indices seen in layer l."""
    n = embeds.shape[1]
    hidden = embeds
    for layer, alive in zip(model.model.layers, kept):
        here = torch.tensor([i in alive for i in range(n)])
        position = torch.arange(n) if positions == "original" else here.long().cumsum(0) - 1
        rope = model.model.rotary_emb(hidden, position.clamp(min=0)[None])
        visible = torch.ones(n, n).tril().bool() & (here[None] | torch.eye(n).bool())
        mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None, None]
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rope)
    return model.model.norm(hidden)[0]


@pytest.fixture(scope="module")
def model():
    return tiny.model(0, attn="eager")


@torch.no_grad()
def check_against_the_oracle(model, chosen: pruning.Pruner, positions: str, images: int):
    """Compare a prefill and some steps of decoding under `chosen`; returns the prefill's counts."""
    ids, pixels = tiny.prompt(2, images=images), tiny.pixels(2, images)
    prompt = model.embed_prompt(ids[None], None, pixels, pruner=chosen)
    cache = PrunedCache(chosen, prompt.layout)
    out = model(inputs_embeds=prompt.embeds, past_key_values=cache, use_cache=True)

    # Which positions of the sequence each layer saw, from the patches in the trace.
    patch = prompt.layout.patch[0].tolist()
    text = {i for i, p in enumerate(patch) if p == pruning.layout.TEXT}
    seen = [text | {patch.index(p) for p in patches} for patches in cache.trace.kept_patches(0)]

    full = oracle(model, prompt.embeds, seen, positions)
    last = sorted(seen[-1])
    pruned = out.logits[0]
    torch.testing.assert_close(pruned, model.lm_head(full[last]), atol=1e-5, rtol=0)

    # Decode: every step against an oracle run over the whole sequence so far.
    embeds = prompt.embeds
    token = pruned[-1].argmax()
    for _ in range(STEPS):
        step = model(token[None, None], past_key_values=cache)
        new = embeds.shape[1]
        embeds = torch.cat([embeds, model.model.embed_tokens(token[None, None])], 1)
        seen = [alive | {new} for alive in seen]
        full = oracle(model, embeds, seen, positions)
        torch.testing.assert_close(step.logits[0, -1], model.lm_head(full[-1]), atol=1e-5, rtol=0)
        token = step.logits[0, -1].argmax()
    return cache.trace.samples[0]


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("preselect", [2.5, 1.5, None])
@pytest.mark.parametrize("images", [1, 3])
def test_prefill_and_decode_equal_the_oracle(model, positions, preselect, images) -> None:
    chosen = pruner(positions, preselect_ratio=preselect)
    counts = check_against_the_oracle(model, chosen, positions, images).entering
    assert counts[0] == 16 * images and counts[-1] < counts[1] <= counts[0]


ABLATIONS = [
    *({"indicator": name} for name in ("mean_attention", "cosine_similarity", "static")),
    *({"curve": name} for name in ("linear", "tanh", "exponential")),
    {"indicator": "cosine_similarity", "curve": "exponential", "preselect_ratio": None},
    {"preset": "paper", "indicator": "static", "curve": "linear"},
    {"mi_layer": 3},
    {"normalise_rows": True, "preselect_ratio": None},
]


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("settings", ABLATIONS, ids=str)
def test_ablations_equal_the_oracle(model, positions, settings) -> None:
    counts = check_against_the_oracle(model, pruner(positions, **settings), positions, 2)
    assert counts.entering[0] == 32
    assert counts.entering[-1] < counts.entering[1] <= 32


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("method", ["random", "uniform-grid"])
@pytest.mark.parametrize("images", [1, 3])
def test_a_choice_before_layer_0_equals_the_oracle(model, method, positions, images) -> None:
    chosen = pruning.build(method, target_token_num=7, positions=positions)
    trace = check_against_the_oracle(model, chosen, positions, images)
    assert trace.entering == trace.leaving == [7] * 6


@pytest.mark.parametrize("images", [1, 3])
def test_no_visual_token_at_all_equals_the_oracle(model, images) -> None:
    trace = check_against_the_oracle(model, pruning.build("no-image"), "compact", images)
    assert trace.entering == trace.leaving == [0] * 6


@torch.no_grad()
def test_the_two_position_policies_differ(model) -> None:
    ids, pixels = tiny.prompt(2)[None], tiny.pixels(2)
    logits = [
        model(ids, images=pixels, pruner=pruner(policy)).logits[0, -1]
        for policy in ("original", "compact")
    ]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


@torch.no_grad()
def test_backends_agree_under_pruning(model) -> None:
    other = tiny.model(0, attn="sdpa")
    prompts = [tiny.prompt(i, before=i, after=4 + i) for i in range(4)]
    ids, mask = tiny.batch(prompts)
    for recycle in (0.0, 0.3):
        chosen = pruner("compact", recycle_ratio=recycle)
        a, b = (
            m(ids, images=tiny.pixels(3, 4), attention_mask=mask, pruner=chosen).logits
            for m in (model, other)
        )
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)
