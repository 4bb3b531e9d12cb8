"""Choosing before a layer runs gives what choosing behind it gives, for less.

The order is forced through the share of tokens from which on it turns: above 1 no layer chooses
first, at 0 every layer does that can and loses a token.
"""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from llava import pruning
from llava.model.language_model.attention import watch_attention
from llava.pruning import prefill
from llava.pruning.cache import PrunedCache
from llava.pruning.cost import DecoderShape, measure
from llava.pruning.trace import PruneTrace
from tests import tiny
from tests.closeness import assert_close

from .method_cases import CASES, LAYERS
from .prompts import SAMPLES, generate, images_of

pytestmark = pytest.mark.usefixtures("wide_softmax")

NEVER, ALWAYS = 2.0, 0.0
#: A sample alone, one with two images, and a ragged batch with one without.
BATCHES = (SAMPLES[:1], SAMPLES[1:2], SAMPLES)
FIRST = ("autoprune", "fastv", "sparsevlm", "zipvl")


def with_norms(model):
    """Llama's attention replaced by Qwen3's, which norms each head of queries and keys."""
    config = Qwen3Config(**{k: v for k, v in model.config.to_dict().items() if k in SHARED})
    config._attn_implementation = model.config._attn_implementation
    generator = torch.Generator().manual_seed(9)
    for index, layer in enumerate(model.model.layers):
        attention = Qwen3Attention(config, index).double()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(attention, name, getattr(layer.self_attn, name))
        for name in ("q_norm", "k_norm"):
            norm = nn.RMSNorm(config.head_dim, 1e-6, dtype=torch.double)
            nn.init.uniform_(norm.weight, 0.5, 3.0, generator=generator)
            setattr(attention, name, norm)
        layer.self_attn = attention
    watch_attention(model.model.layers)
    return model


SHARED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
MODELS = {
    "sdpa": {},
    "eager": {"attn": "eager"},
    "grouped": {"kv_heads": 2},
    "norms": {"kv_heads": 2},
}


@pytest.fixture(scope="module")
def models():
    made = {
        name: tiny.double(tiny.model(7, layers=LAYERS, image_size=84, **settings))
        for name, settings in MODELS.items()
    }
    with_norms(made["norms"])
    return made


@pytest.fixture(scope="module")
def small():
    return tiny.double(tiny.model(7, layers=LAYERS))


@torch.no_grad()
def run(
    model, pruner, samples: list[Tensor], many: float, patch
) -> tuple[list[Tensor], PruneTrace]:
    """What a prefill and two steps of decoding give: states, keys, values; and the trace."""
    patch.setattr(prefill, "MANY", many)
    patch.setattr(prefill, "LEAST", 0)
    ids, mask = tiny.batch(samples)
    size = model.config.mm_vision_config["image_size"]
    pixels = tiny.pixels(8, sum(map(images_of, samples)), size=size)
    prompt = model.embed_prompt(ids, mask, pixels, pruner=pruner)
    cache = PrunedCache(pruner, prompt.layout)
    out = model.model(inputs_embeds=prompt.embeds, past_key_values=cache, use_cache=True)
    states = out.last_hidden_state
    valid = [cache.trace.last.valid, *(layout.valid for layout in cache.trace.entered)]
    tensors = [states[valid[0]]]
    # What padding holds is nobody's.
    for layer, there in zip(cache.layers, valid[1:]):
        tensors += [kept.transpose(1, 2)[there] for kept in (layer.keys, layer.values)]
    token = model.lm_head(states[:, -1:]).argmax(-1)
    for _ in range(2):
        step = model(token, past_key_values=cache)
        tensors.append(step.logits)
        token = step.logits[:, -1:].argmax(-1)
    return tensors, cache.trace


def check(model, pruner, samples: list[Tensor], patch) -> PruneTrace:
    """Compare the two orders; returns the trace of choosing first."""
    expected, behind = run(model, pruner, samples, NEVER, patch)
    actual, first = run(model, pruner, samples, ALWAYS, patch)
    assert len(actual) == len(expected)
    for mine, theirs in zip(actual, expected):
        assert_close(mine, theirs)
    for i, (here, there) in enumerate(zip(first.samples, behind.samples)):
        assert there.projected == [0] * LAYERS
        assert there.ran == [n + there.n_text for n in there.entering]
        left_out = {"ran": [], "projected": [], "complexity": {}}
        assert replace(here, **left_out) == replace(there, **left_out)
        assert here.complexity == pytest.approx(there.complexity, rel=1e-9)
        assert first.kept_patches(i) == behind.kept_patches(i)
        merged = (
            [{c: sorted(m) for c, m in layer.items()} for layer in trace.merged_patches(i)]
            for trace in (first, behind)
        )
        assert next(merged) == next(merged)
    return first


def assert_ran_less(trace: PruneTrace) -> None:
    """Where a layer chose first, it ran for what stayed and for what was to be merged."""
    turned = 0
    for i, sample in enumerate(trace.samples):
        merged = trace.merged_patches(i)
        for layer, projected in enumerate(sample.projected):
            total = sample.entering[layer] + sample.n_text
            if not projected:
                assert sample.ran[layer] == total
                continue
            assert projected == total
            left = sample.n_text + sample.leaving[layer] - len(merged[layer])
            assert sample.ran[layer] == left + sample.pools[layer]
            turned += sample.ran[layer] < total
    assert turned


@pytest.mark.parametrize("samples", BATCHES, ids=["alone", "two", "ragged"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_method_gives_the_same_either_way(case, samples, small, monkeypatch) -> None:
    trace = check(small, case.pruner, samples, monkeypatch)
    chooses = case.method in FIRST and not case.settings.get("tau")
    assert any(trace.projected) == chooses
    if chooses:
        assert_ran_less(trace)


#: Pools that become several tokens, one, and none; a choice at the mutual information's layer.
SETTINGS = [
    ("autoprune", {"target_token_num": 16, "x0": 3.0, "recycle_ratio": 0.5}),
    ("autoprune", {"target_token_num": 16, "x0": 3.0, "preset": "paper"}),
    ("autoprune", {"target_token_num": 12, "x0": 3.0, "budget_per": "image"}),
    ("zipvl", {"target_token_num": 16}),
    ("sparsevlm", {"target_token_num": 16, "stages": (1, 3, 4)}),
    ("fastv", {"target_token_num": 16, "query": "all"}),
]


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize(("method", "settings"), SETTINGS, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_every_attention_gives_the_same_either_way(
    name, method, settings, positions, models, monkeypatch
) -> None:
    pruner = pruning.build(method, **settings)
    if "positions" in {field.name for field in fields(pruner)}:
        pruner = replace(pruner, positions=positions)
    elif positions == "original":
        pytest.skip("its positions are its own")
    for samples in BATCHES:
        trace = check(models[name], pruner, samples, monkeypatch)
        assert_ran_less(trace)


def test_the_released_settings_choose_first_where_many_leave(models, monkeypatch) -> None:
    """At the pre-selection and where the schedule begins, not where it goes on by a token or two a
    layer; few tokens are worth it here."""
    monkeypatch.setattr(prefill, "LEAST", 0)
    pruner = pruning.build("autoprune", target_token_num=12, x0=3.0)
    out, _ = generate(models["sdpa"], SAMPLES[0][None], None, tiny.pixels(8, size=84), pruner, 1)
    sample = out.past_key_values.trace.samples[0]
    for layer in range(LAYERS - 1):
        total = sample.entering[layer] + sample.n_text
        leaving = total - sample.n_text - sample.leaving[layer]
        if layer > 1:
            assert (sample.projected[layer] > 0) == (leaving > 0.1 * total)
    assert sample.projected[0] and sample.projected[1]
    assert not all(sample.projected[:-1])
    monkeypatch.setattr(prefill, "MANY", NEVER)
    monkeypatch.setattr(prefill, "LEAST", 0)
    out, _ = generate(models["sdpa"], SAMPLES[0][None], None, tiny.pixels(8, size=84), pruner, 1)
    behind, shape = (
        out.past_key_values.trace.samples[0],
        DecoderShape.from_config(models["sdpa"].config),
    )
    assert measure(sample, shape).computed_flops < measure(behind, shape).computed_flops


def all_tokens(model, monkeypatch) -> None:
    """Have the last layer of every prefill run for all tokens."""
    init = prefill.Prefill.__init__

    def without(self, *args, last_only: bool = False, **kwargs) -> None:
        init(self, *args[:5], **kwargs)

    monkeypatch.setattr(prefill.Prefill, "__init__", without)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
@pytest.mark.parametrize("method", ["autoprune", "zipvl", "dart", "divprune", "no-image"])
def test_the_last_layer_of_generation_runs_for_the_last_token(
    name, options, method, models, monkeypatch
) -> None:
    settings = {} if method == "no-image" else {"target_token_num": 12}
    pruner = pruning.build(method, **settings).scaled(32, LAYERS)
    model, pixels = models[name], tiny.pixels(8, 4, size=84)
    asked = (model, *tiny.batch(SAMPLES), pixels, pruner)
    out, logits = generate(*asked, **options)
    with monkeypatch.context() as patch:
        all_tokens(model, patch)
        whole, expected = generate(*asked, **options)
    assert torch.equal(out.sequences, whole.sequences)
    assert_close(logits, expected.float(), 1e-6)
    for here, there in zip(out.past_key_values.trace.samples, whole.past_key_values.trace.samples):
        assert (here.ran[-1], here.projected[-1]) == (1, here.entering[-1] + here.n_text)
        assert there.ran[-1] == there.entering[-1] + there.n_text
        assert here.ran[:-1] == there.ran[:-1]
    for here, there in zip(out.past_key_values.layers, whole.past_key_values.layers):
        assert here.keys.shape == there.keys.shape


@pytest.mark.parametrize("pruner", [None, pruning.build("none")], ids=["no pruner", "none"])
def test_the_unpruned_model_runs_all_layers_for_all_tokens(pruner, models) -> None:
    out, _ = generate(models["sdpa"], SAMPLES[0][None], None, tiny.pixels(8, size=84), pruner)
    sample = out.past_key_values.trace.samples[0]
    assert sample.ran == [36 + len(SAMPLES[0]) - 1] * LAYERS
    assert sample.projected == [0] * LAYERS


@torch.no_grad()
def test_logits_of_all_that_is_left_need_the_whole_last_layer(models) -> None:
    pruner = pruning.build("fastv", target_token_num=12)
    ids, pixels = SAMPLES[0][None], tiny.pixels(8, size=84)
    shapes, last = [], []
    for kept in (0, 1, 3):
        out = models["sdpa"](ids, images=pixels, pruner=pruner, logits_to_keep=kept)
        shapes.append(out.logits.shape[1])
        last.append(out.logits[:, -1])
    assert shapes == [12 + ids.shape[1] - 1, 1, 3]
    for logits in last[1:]:
        assert_close(logits, last[0])


@torch.no_grad()
def test_few_tokens_are_not_worth_the_launches(models) -> None:
    """Whatever their share: but for the mutual information's layer, where none is known before."""
    pruner = pruning.build("fastv", target_token_num=12)
    out, _ = generate(models["sdpa"], SAMPLES[0][None], None, tiny.pixels(8, size=84), pruner, 1)
    sample = out.past_key_values.trace.samples[0]
    assert sample.leaving[1] == 12 and sample.entering[1] == 36 < prefill.LEAST
    assert sample.projected[:-1] == [0] * (LAYERS - 1)
