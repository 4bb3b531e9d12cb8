"""Nothing of a call is on the model: threads share it, and so do stock models its layers."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import LlamaModel

from llava import pruning
from llava.pruning import prefill
from llava.pruning.cache import PrunedCache
from tests import tiny
from tests.closeness import FLOAT32, assert_close

from .prompts import SAMPLES, generate, images_of, one

PRUNERS = [
    ("autoprune", {"target_token_num": 8, "x0": 3.0}),
    ("zipvl", {"target_token_num": 7}),
    ("fastv", {"target_token_num": 7, "positions": "compact"}),
    ("none", {}),
]


@pytest.mark.parametrize("many", [2.0, 0.1])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_threads_with_different_methods_share_a_model(attn: str, many: float, monkeypatch) -> None:
    """Every layer waits for all threads before it runs and behind, so that all prefills are under
    way and all layers have shown their queries before any is looked at."""
    monkeypatch.setattr(prefill, "MANY", many)
    monkeypatch.setattr(prefill, "LEAST", 0)
    model = tiny.model(7, attn=attn)
    pruners = [pruning.build(method, **settings) for method, settings in PRUNERS]
    ids, mask = tiny.batch(SAMPLES)
    pixels = tiny.pixels(8, sum(map(images_of, SAMPLES)))

    def answer(pruner):
        out, logits = generate(model, ids, mask, pixels, pruner)
        return out.sequences, logits, out.past_key_values.trace.to_json()

    alone = [answer(pruner) for pruner in pruners]
    assert len({str(trace) for _, _, trace in alone}) == len(pruners)
    barrier = threading.Barrier(len(pruners), timeout=60)

    def wait(*_) -> None:
        barrier.wait()

    layers = model.model.layers
    hooks = [layer.register_forward_pre_hook(wait) for layer in layers]
    hooks += [layer.register_forward_hook(wait) for layer in layers]
    with ThreadPoolExecutor(len(pruners)) as pool:
        together = list(pool.map(answer, pruners))
    for hook in hooks:
        hook.remove()
    for (ids, logits, trace), (own_ids, own_logits, own_trace) in zip(together, alone):
        assert torch.equal(ids, own_ids)
        assert_close(logits, own_logits, FLOAT32)
        assert trace == own_trace


def test_the_backend_is_the_users_before_and_after() -> None:
    model = tiny.model(7)
    pruner = pruning.build("autoprune", target_token_num=8, x0=3.0)
    one(model, pruner)
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
    for chosen in (pruner, None):
        out, logits = one(model, chosen)
        expected, theirs = one(tiny.model(7, attn="eager"), chosen)
        assert torch.equal(logits, theirs) and torch.equal(out.sequences, expected.sequences)
    assert model.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    assert torch.equal(one(model, None)[1], one(tiny.model(7), None)[1])


def test_a_backend_whose_masks_are_unknown_is_refused() -> None:
    model = tiny.model(7)
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="must be one of sdpa, eager, flash_attention_2"):
        one(model, None)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@torch.no_grad()
def test_a_stock_model_that_borrows_the_layers_is_stock(attn: str, padded: bool) -> None:
    ours = tiny.model(7, attn=attn).model
    config = copy.deepcopy(ours.config)
    stock = LlamaModel(config).eval()
    stock.load_state_dict(ours.state_dict(), strict=False)
    borrowing = LlamaModel(copy.deepcopy(config)).eval()
    borrowing.embed_tokens, borrowing.norm = ours.embed_tokens, ours.norm
    borrowing.layers = ours.layers
    ids = torch.randint(3, 80, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = not padded
    first, second = (m(input_ids=ids, attention_mask=mask) for m in (stock, borrowing))
    # A padding token's state is nobody's.
    assert torch.equal(first.last_hidden_state[mask == 1], second.last_hidden_state[mask == 1])
    steps = [
        m(
            input_ids=ids[:, :1],
            attention_mask=torch.cat([mask, mask[:, -1:]], 1),
            past_key_values=out.past_key_values,
        ).last_hidden_state
        for m, out in ((stock, first), (borrowing, second))
    ]
    assert torch.equal(*steps)


@pytest.mark.parametrize("many", [2.0, 0.1])
def test_an_attention_that_shows_no_queries_is_refused(many: float, monkeypatch) -> None:
    """Where the choice comes first the layer's weights are enough; behind a layer it has to show
    its queries."""
    monkeypatch.setattr(prefill, "MANY", many)
    monkeypatch.setattr(prefill, "LEAST", 0)
    model = tiny.model(7)
    pruner = pruning.build("fastv", target_token_num=7)
    expected = one(model, pruner)[1]
    attention = model.model.layers[1].self_attn
    attention.config = copy.copy(attention.config)
    attention.config._attn_implementation = "sdpa"
    if many < 1:
        assert torch.equal(one(model, pruner)[1], expected)
        return
    with pytest.raises(ValueError, match="shows no queries: it has to be one of"):
        one(model, pruner)


@torch.no_grad()
def test_a_prefill_that_failed_leaves_the_model_as_it_was() -> None:
    model = tiny.model(7)
    pruner = pruning.build("autoprune", target_token_num=8, x0=3.0)
    expected = one(model, pruner)[1]
    prompt = model.embed_prompt(SAMPLES[0][None], None, tiny.pixels(8), pruner=pruner)
    broken = prompt.embeds[:, :-1]
    with pytest.raises(ValueError, match="make a new PrunedCache"):
        model(inputs_embeds=broken, past_key_values=PrunedCache(pruner, prompt.layout))
    assert torch.equal(one(model, pruner)[1], expected)
