"""What every method promises, each under the settings of `method_cases`."""

from __future__ import annotations

import copy
import json
from dataclasses import fields, replace
from operator import le

import pytest
import torch

from llava import pruning
from llava.constants import IMAGE_TOKEN_INDEX
from llava.pruning.cost import DecoderShape, measure
from llava.pruning.layout import TEXT
from llava.pruning.trace import SampleTrace
from tests import tiny
from tests.closeness import FLOAT32, ROUNDED, assert_close

from .method_cases import CASES, LAYERS, PATCHES
from .oracle import check_against_the_oracle
from .prompts import SAMPLES, generate, images_of, one, own_images, text_of

IMAGES = sum(map(images_of, SAMPLES))
MODES = ("published", "strict")

each_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(scope="module")
def models():
    """Eager attention has its softmax in float32 whatever comes, so that model stays as it is."""
    eager, sdpa = (tiny.model(7, attn=attn, layers=LAYERS) for attn in ("eager", "sdpa"))
    return {"eager": eager, "sdpa": tiny.double(sdpa)}


@pytest.fixture(scope="module")
def model(models):
    return models["sdpa"]


@pytest.fixture(scope="module")
def dense(model):
    """The logits of the unpruned model; computed first, it is what transformers has to set up."""
    return one(model, None)[1]


def text_positions(layout, sample: int) -> list[int]:
    text = layout.valid[sample] & (layout.image[sample] == TEXT)
    return layout.position[sample][text].tolist()


def totals(sample: SampleTrace) -> list[int]:
    """Tokens of a sample that enter each layer, text included."""
    return [n + sample.n_text for n in sample.entering]


def has_budget(case) -> bool:
    """Whether `target_token_num` decides how many tokens there are."""
    instead = any(case.settings.get(name) for name in ("tau", "ratios", "adaptive", "training"))
    return hasattr(case.pruner, "target_token_num") and not instead


BUDGETS = [case for case in CASES if has_budget(case)]


@each_case
def test_settings_survive_json_and_scaling(case) -> None:
    pruner = case.pruner
    assert pruning.build(**json.loads(json.dumps(pruner.to_dict()))) == pruner
    assert set(pruner.depths) <= {field.name for field in fields(pruner)}
    assert pruner.scaled(LAYERS, LAYERS) == pruner
    deeper = pruner.scaled(LAYERS, 2 * LAYERS)
    for field in fields(pruner):
        here, there = (getattr(p, field.name) for p in (pruner, deeper))
        assert (here != there) == (field.name in pruner.depths), field.name


@pytest.mark.parametrize("case", BUDGETS, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_the_budget_is_met(case, mode, model) -> None:
    """To the token where the case says what enters each layer. Elsewhere within a token: on average
    T leave a layer as published; strictly, at most T enter one."""
    out, _ = one(model, replace(case.pruner, budget_mode=mode), new=1)
    trace = out.past_key_values.trace.samples[0]
    assert (trace.n_visual, trace.n_text) == (PATCHES, len(SAMPLES[0]) - 1)
    expected, target = case.entering(mode), case.settings["target_token_num"]
    if expected is not None:
        assert trace.entering == expected
        assert trace.leaving == [*expected[1:], expected[-1]]
    elif mode == "strict":
        assert target - 1 < sum(trace.entering) / LAYERS <= target + 1e-9
    else:
        assert sum(trace.leaving) / LAYERS == pytest.approx(target, abs=1)


@pytest.mark.parametrize("case", BUDGETS, ids=str)
def test_a_budget_of_all_tokens_changes_nothing(case, model, dense) -> None:
    pruner = replace(case.pruner, target_token_num=PATCHES)
    out, logits = one(model, pruner)
    assert out.past_key_values.trace.samples[0].leaving == [PATCHES] * LAYERS
    assert torch.equal(logits, dense)


@each_case
@torch.no_grad()
def test_text_is_embedded_around_what_the_tower_left(case, model) -> None:
    """Positions without gaps; each image's tokens stand where its placeholder stood."""
    ids, mask = tiny.batch(SAMPLES)
    made = model.embed_prompt(ids, mask, tiny.pixels(8, IMAGES), pruner=case.pruner)
    for i, prompt in enumerate(SAMPLES):
        start = made.layout.n - made.layout.lengths[i]
        image, position = made.layout.image[i, start:], made.layout.position[i, start:]
        assert position.tolist() == list(range(made.layout.lengths[i]))
        text = model.model.embed_tokens(text_of(prompt))
        assert torch.equal(made.embeds[i, start:][image == TEXT], text)
        order = iter(range(images_of(prompt)))
        expected = [next(order) if t == IMAGE_TOKEN_INDEX else TEXT for t in prompt.tolist()]
        found = [(a, b) for a, b in zip([None, *image.tolist()], image.tolist())]
        assert [b for a, b in found if b == TEXT or a != b] == expected


#: A layer's mask depends on which tokens are there, not on the method: one of each shape of method
#: is enough for the other backend. `test_batch` has AutoPrune's settings.
BACKENDS = [("sdpa", case) for case in CASES] + [
    ("eager", next(case for case in CASES if case.method == method))
    for method in ("zipvl", "divprune", "tome", "fastv", "sparsevlm")
]


@pytest.mark.parametrize(("attn", "case"), BACKENDS, ids=str)
def test_a_batch_equals_its_samples(attn, case, models) -> None:
    """Samples of 1, 2, 0 and 1 images; the one without is left as the unpruned model has it."""
    model, pruner, pixels = models[attn], case.pruner, tiny.pixels(8, IMAGES)
    room, measured = (ROUNDED, 1e-9) if attn == "sdpa" else (FLOAT32, 1e-3)
    together, logits = generate(model, *tiny.batch(SAMPLES), pixels, pruner)
    trace, shape = together.past_key_values.trace, DecoderShape.from_config(model.config)
    json.dumps(trace.to_json())
    for i, (ids, own) in enumerate(zip(SAMPLES, own_images(SAMPLES))):
        n = images_of(ids)
        alone, own_logits = generate(model, ids[None], None, pixels[own], pruner if n else None)
        single = alone.past_key_values.trace
        assert single.kept_patches(0) == trace.kept_patches(i)
        assert_close(logits[i], own_logits[0], room)
        assert torch.equal(together.sequences[i], alone.sequences[0])
        # Counts of tokens and of what scoring took; what was measured up to rounding.
        # Which layers choose first is the batch's affair, so what ran is not the sample's.
        here, there = trace.samples[i], single.samples[0]
        left_out = {"complexity": {}, "ran": [], "projected": []}
        assert replace(here, **left_out) == replace(there, **left_out)
        assert min(here.ran) > 0 and all(map(le, here.ran, totals(here)))
        costs = [measure(sample, shape, new_tokens=4) for sample in (here, there)]
        assert replace(costs[0], computed_flops=0) == replace(costs[1], computed_flops=0)
        assert here.complexity == pytest.approx(there.complexity, rel=measured)
        assert n or here.rows == here.ahead == here.pools == [0] * LAYERS
        # No text is dropped or moved, and its positions are those of the whole sequence.
        expected = text_positions(trace.first, i)
        assert len(expected) == len(ids) - n
        for layout in [*trace.entered, trace.last]:
            assert text_positions(layout, i) == expected


@pytest.mark.parametrize("case", [case for case in CASES if not case.merges], ids=str)
def test_it_equals_a_full_length_run_with_a_mask(case, model) -> None:
    if case.merges is None:
        trace = one(model, case.pruner)[0].past_key_values.trace
        if case.pruner.merges_in_tower or any(trace.merged_patches(0)):
            pytest.skip("tokens that it merges stand in no full-length run")
    check_against_the_oracle(model, case.pruner, images=2, steps=2)


def state_of(model) -> dict:
    """Weights, settings, attributes and hooks of a model, and what a process shares."""
    hooks = {
        (name, kind): list(getattr(module, f"_{kind}_hooks").values())
        for name, module in model.named_modules()
        for kind in ("forward", "forward_pre")
    }
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "config": copy.deepcopy(model.config.to_dict()),
        "attention": [
            model.config._attn_implementation,
            *(layer.self_attn.config._attn_implementation for layer in model.model.layers),
        ],
        "generation": copy.deepcopy(model.generation_config.to_dict()),
        "attributes": {name: set(vars(module)) for name, module in model.named_modules()},
        "hooks": hooks,
        "process": (
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
        ),
        "random": torch.get_rng_state(),
    }


@each_case
def test_a_call_is_deterministic_and_leaves_nothing_behind(case, model, dense) -> None:
    torch.manual_seed(1)
    before = state_of(model)
    out, first = one(model, case.pruner)
    after = state_of(model)
    for part in ("config", "attention", "generation", "attributes", "hooks", "process"):
        assert after[part] == before[part], part
    assert torch.equal(after["random"], before["random"])
    assert all(torch.equal(after["weights"][k], v) for k, v in before["weights"].items())
    torch.manual_seed(2)
    assert torch.equal(one(model, case.pruner)[1], first)
    assert torch.equal(one(model, None)[1], dense)
    dropped = min(out.past_key_values.trace.samples[0].entering) < PATCHES
    assert torch.equal(first, dense) != dropped


@each_case
def test_beams_and_sampling_run(case, model) -> None:
    """Two samples of 1 and 2 images: beams are those of a sample alone; draws repeat."""
    ids, mask = tiny.batch(SAMPLES[:2])
    pixels = tiny.pixels(8, 3)
    beams, _ = generate(model, ids, mask, pixels, case.pruner, num_beams=2)
    alone, _ = one(model, case.pruner, num_beams=2)
    assert torch.equal(beams.sequences[0], alone.sequences[0])
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        options = {"do_sample": True, "temperature": 2.0, "num_return_sequences": 2}
        drawn.append(generate(model, ids, mask, pixels, case.pruner, **options)[0].sequences)
    assert torch.equal(drawn[0], drawn[1])
    assert drawn[0].shape == (4, 4) and not torch.equal(drawn[0], drawn[2])
