"""Methods that choose or merge in the vision tower, in the whole model."""

from __future__ import annotations

import json

import pytest
import torch

from llava import pruning
from llava.constants import IMAGE_TOKEN_INDEX
from llava.pruning.base import Dense
from llava.pruning.cache import PrunedCache
from llava.pruning.cost import DecoderShape, measure
from llava.pruning.layout import TEXT
from llava.pruning.tome import Merging
from tests import tiny
from tests.model.test_oracle import oracle

LAYERS = 3
CHOOSING = [
    ("fastervlm", {"target_token_num": 9}),
    ("hired", {"target_token_num": 9}),
    ("vispruner", {"target_token_num": 9}),
    ("vispruner", {"target_token_num": 7, "important_ratio": 0.75}),
]
# An image of 16 patches cannot be merged below 6 in the 2 layers that run.
MERGING = [
    ("tome", {"target_token_num": 13}),
    ("tome", {"target_token_num": 20}),
    ("tome", {"target_token_num": 12, "proportional_attention": False}),
]
CASES = CHOOSING + MERGING


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return tiny.model(7, layers=LAYERS, attn=request.param)


@pytest.fixture(scope="module")
def samples():
    """Prompts with 1, 2, 0 and 1 images and different lengths of text."""
    return [
        tiny.prompt(1, before=2, after=5),
        tiny.prompt(2, before=6, after=9, images=2),
        tiny.prompt(3, before=3, after=4, images=0),
        tiny.prompt(4, before=9, after=14),
    ]


def images_of(ids: torch.Tensor) -> int:
    return int((ids == IMAGE_TOKEN_INDEX).sum())


def hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@torch.no_grad()
def prefill(model, ids, mask, images, pruner):
    """Logits (batch, n, vocabulary) of what is left, and the trace."""
    images = images if len(images) else None
    prompt = model.embed_prompt(ids, mask, images, pruner=pruner)
    cache = PrunedCache(pruner, prompt.layout)
    logits = model(inputs_embeds=prompt.embeds, past_key_values=cache, use_cache=True).logits
    return logits, cache.trace


@pytest.mark.parametrize(("method", "settings"), CASES)
def test_a_batch_equals_its_samples_and_meets_the_budget(model, samples, method, settings) -> None:
    pruner, images = pruning.build(method, **settings), tiny.pixels(8, 4)
    logits, trace = prefill(model, *tiny.batch(samples), images, pruner)
    again, _ = prefill(model, *tiny.batch(samples), images, pruner)
    assert torch.equal(again, logits), "the same input gave something else"
    first = 0
    for i, ids in enumerate(samples):
        own = images[first : first + images_of(ids)]
        first += images_of(ids)
        own_logits, own_trace = prefill(model, ids[None], None, own, pruner)
        assert own_trace.kept_patches(0) == trace.kept_patches(i)
        length = own_logits.shape[1]
        torch.testing.assert_close(logits[i, -length:], own_logits[0], atol=1e-5, rtol=0)

        sample = trace.samples[i]
        expected = min(settings["target_token_num"], 16 * len(own))
        assert sample.entering == sample.leaving == [expected] * LAYERS
        assert (sample.n_visual, sample.n_text) == (16 * len(own), len(ids) - len(own))
        assert sample.scoring == own_trace.samples[0].scoring
        assert all(len(set(layer)) == expected for layer in trace.kept_patches(i))


@pytest.mark.parametrize(("method", "settings"), CASES)
@torch.no_grad()
def test_text_is_untouched_and_positions_are_contiguous(model, samples, method, settings) -> None:
    ids, mask = tiny.batch(samples)
    pruner = pruning.build(method, **settings)
    made = model.embed_prompt(ids, mask, tiny.pixels(8, 4), pruner=pruner)
    assert pruner.start(made.layout, DecoderShape.from_config(model.config)).positions == "original"
    for i, prompt in enumerate(samples):
        start = made.layout.n - made.layout.lengths[i]
        image, position = made.layout.image[i, start:], made.layout.position[i, start:]
        assert position.tolist() == list(range(made.layout.lengths[i]))
        text = model.model.embed_tokens(prompt[prompt != IMAGE_TOKEN_INDEX])
        assert torch.equal(made.embeds[i, start:][image == TEXT], text)
        # In order: the first image's tokens stand where its placeholder stood.
        found = torch.unique_consecutive(image).tolist()
        slots = (prompt == IMAGE_TOKEN_INDEX).nonzero()[:, 0].tolist()
        assert [i for i in found if i != TEXT] == list(range(len(slots)))
        if slots:
            assert (image[: slots[0]] == TEXT).all() and image[slots[0]] == 0


@pytest.mark.parametrize(("method", "settings"), CHOOSING)
@torch.no_grad()
def test_a_choice_equals_the_oracle(model, samples, method, settings) -> None:
    """A batch gives what each unpruned sample gives with the other patches masked everywhere."""
    ids, mask = tiny.batch(samples)
    images, pruner = tiny.pixels(8, 4), pruning.build(method, **settings)
    logits, trace = prefill(model, ids, mask, images, pruner)
    first = 0
    for i, sample in enumerate(samples):
        own = images[first : first + images_of(sample)]
        first += len(own)
        whole = model.embed_prompt(sample[None], None, own if len(own) else None)
        patch = whole.layout.patch[0].tolist()
        kept = trace.kept_patches(i)[0]
        assert kept == sorted(kept), "the choice is in spatial order"
        seen = {at for at, p in enumerate(patch) if p == TEXT or p in kept}
        expected = oracle(model, whole.embeds, [seen] * LAYERS, "compact")[sorted(seen)]
        torch.testing.assert_close(
            logits[i, -len(expected) :], model.lm_head(expected), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize(("method", "settings"), CASES)
def test_the_model_and_the_process_are_left_as_they_were(model, samples, method, settings) -> None:
    ids, mask = tiny.batch(samples)
    images, pruner = tiny.pixels(8, 4), pruning.build(method, **settings)
    before = prefill(model, ids, mask, images, Dense())[0]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    hooked = hooks(model)
    kept = model.config.to_dict(), torch.get_rng_state(), torch.get_default_dtype()
    pruned = prefill(model, ids, mask, images, pruner)[0]
    assert model.config.to_dict() == kept[0] and torch.get_default_dtype() == kept[2]
    assert torch.equal(torch.get_rng_state(), kept[1])
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert hooks(model) == hooked
    assert torch.equal(prefill(model, ids, mask, images, Dense())[0], before)
    assert (pruned[:, -1] - before[:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize(("method", "settings"), CASES)
def test_settings_go_through_json_and_both_budget_modes_are_one(method, settings) -> None:
    pruner = pruning.build(method, **settings, budget_mode="strict")
    assert pruning.build(**json.loads(json.dumps(pruner.to_dict()))) == pruner
    model, ids, images = tiny.model(7, layers=2), tiny.prompt(1)[None], tiny.pixels(8)
    strict = prefill(model, ids, None, images, pruner)
    published = prefill(model, ids, None, images, pruning.build(method, **settings))
    assert torch.equal(strict[0], published[0])
    assert strict[1].to_json() == published[1].to_json()


@torch.no_grad()
def test_a_target_at_or_above_the_patches_is_the_unpruned_model(model, samples) -> None:
    ids, mask = tiny.batch(samples)
    images = tiny.pixels(8, 4)
    expected = model(ids, images=images, attention_mask=mask).logits
    for method in ("fastervlm", "hired", "vispruner", "tome"):
        pruner = pruning.build(method, target_token_num=32)
        got = model(ids, images=images, attention_mask=mask, pruner=pruner).logits
        assert torch.equal(got, expected)


@torch.no_grad()
def test_proportional_attention_is_what_separates_the_two_tomes(model, samples) -> None:
    def features(proportional: bool) -> torch.Tensor:
        pruner = pruning.build("tome", target_token_num=12, proportional_attention=proportional)
        (made,) = model.encode_images(tiny.pixels(8), pruner=pruner)
        return made.embeds

    assert (features(True) - features(False)).abs().max() > 1e-4


def test_tome_names_its_floor(model, samples) -> None:
    pruner = pruning.build("tome", target_token_num=9)
    with pytest.raises(ValueError, match=r"into 5 in 2 layers.*: 6 is the least"):
        prefill(model, samples[1][None], None, tiny.pixels(8, 2), pruner)


def test_sizes_cannot_weigh_in_flash_attention(monkeypatch) -> None:
    tower, tokens = tiny.model(7, layers=2).get_vision_tower(), torch.zeros(1, 7, 2)
    monkeypatch.setattr(tower.config, "_attn_implementation", "flash_attention_2")
    run = Merging([2], True)
    run.after_attention(0, tokens, tokens[:, None])
    with pytest.raises(ValueError, match="flash_attention_2 cannot do"):
        tower.merge(tiny.pixels(8), run)


@pytest.mark.parametrize(
    ("method", "scoring"),
    [
        ("fastervlm", 0),
        ("hired", 0),
        ("vispruner", 2 * 11**2 * 32),  # int(0.5 x 10) patches by attention, 11 are compared
        ("tome", 2 * (9 * 8 + 7 * 7) * 8),  # 17 and then 14 tokens, keys 8 wide
    ],
)
def test_what_a_prefill_costs(model, samples, method, scoring) -> None:
    pruner, ids = pruning.build(method, target_token_num=10), samples[0]
    shape = DecoderShape.from_config(model.config)
    _, trace = prefill(model, ids[None], None, tiny.pixels(8), pruner)
    cost = measure(trace.samples[0], shape)
    assert cost.scoring_flops == scoring and cost.merging_flops == 0
    assert (cost.tokens_entering, cost.tokens_leaving) == (10, 10)
    text = len(ids) - 1
    assert cost.prefill_flops == LAYERS * shape.layer_flops(text + 10, text + 10)
    assert cost.dense_prefill_flops == LAYERS * shape.layer_flops(text + 16, text + 16)
