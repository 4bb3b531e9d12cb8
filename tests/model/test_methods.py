"""What every method promises, each under the settings of `method_cases`."""

from __future__ import annotations

import copy
import json
from dataclasses import fields, replace

import pytest
import torch

from llava import pruning
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.language_model.attention import _keep_queries
from llava.pruning.cost import DecoderShape
from llava.pruning.layout import TEXT
from tests import tiny

from .method_cases import CASES
from .oracle import check_against_the_oracle

LAYERS, PATCHES, NEW = 6, 16, 4
SAMPLES = [
    tiny.prompt(1, before=2, after=5),
    tiny.prompt(2, before=6, after=9, images=2),
    tiny.prompt(3, before=3, after=4, images=0),
    tiny.prompt(4, before=9, after=14),
]
IMAGES = [int((ids == IMAGE_TOKEN_INDEX).sum()) for ids in SAMPLES]

each_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(scope="module")
def models():
    return {attn: tiny.model(7, attn=attn, layers=LAYERS) for attn in ("sdpa", "eager")}


@pytest.fixture(scope="module")
def model(models):
    return models["sdpa"]


def generate(model, ids, mask, images, pruner, **options):
    """The output of `generate` and its logits (batch, NEW, vocabulary)."""
    out = model.generate(
        ids,
        images=images if len(images) else None,
        attention_mask=mask,
        pruner=pruner,
        max_new_tokens=NEW,
        return_dict_in_generate=True,
        output_logits=True,
        **{"do_sample": False, **options},
    )
    return out, torch.stack(out.logits, 1)


def one(model, pruner, **options):
    """A prompt with one image."""
    return generate(model, SAMPLES[0][None], None, tiny.pixels(8), pruner, **options)


def text_positions(layout, sample: int) -> list[int]:
    text = layout.valid[sample] & (layout.image[sample] == TEXT)
    return layout.position[sample][text].tolist()


def test_every_method_has_a_case() -> None:
    assert {case.method for case in CASES} == set(pruning.METHODS)


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


def has_budget(case) -> bool:
    return hasattr(case.pruner, "budget_mode") and case.settings.get("tau") is None


@pytest.mark.parametrize("case", list(filter(has_budget, CASES)), ids=str)
@pytest.mark.parametrize("mode", ["published", "strict"])
def test_the_budget_is_met(case, mode, model) -> None:
    """Within the case's slack as published; strictly, what enters all layers is at most T."""
    pruner = case.pruner
    out, _ = one(model, replace(pruner, budget_mode=mode))
    trace = out.past_key_values.trace.samples[0]
    target = min(pruner.target_token_num, PATCHES)
    entering, leaving = (sum(counts) / LAYERS for counts in (trace.entering, trace.leaving))
    if mode == "strict":
        assert target - 1 < entering <= target + 1e-9
    else:
        assert {"entering": entering, "leaving": leaving}[case.published] == pytest.approx(
            target, abs=case.slack
        )
    assert trace.n_visual == PATCHES and trace.n_text == len(SAMPLES[0]) - 1


@each_case
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_batch_equals_its_samples(case, attn, models) -> None:
    """Samples of 1, 2, 0 and 1 images; the one without is left as the unpruned model has it."""
    model, pruner, pixels = models[attn], case.pruner, tiny.pixels(8, sum(IMAGES))
    together, logits = generate(model, *tiny.batch(SAMPLES), pixels, pruner)
    trace = together.past_key_values.trace
    json.dumps(trace.to_json())
    first = 0
    for i, (ids, n) in enumerate(zip(SAMPLES, IMAGES)):
        own = pixels[first : first + n]
        first += n
        alone, own_logits = generate(model, ids[None], None, own, pruner if n else None)
        assert alone.past_key_values.trace.kept_patches(0) == trace.kept_patches(i)
        torch.testing.assert_close(logits[i], own_logits[0], atol=1e-5, rtol=0)
        assert torch.equal(together.sequences[i], alone.sequences[0])
        # No text is dropped or moved, and its positions are those of the whole sequence.
        expected = text_positions(trace.first, i)
        assert len(expected) == len(ids) - n
        for layout in [*trace.entered, trace.last]:
            assert text_positions(layout, i) == expected


@pytest.mark.parametrize("case", [case for case in CASES if not case.merges], ids=str)
def test_it_equals_a_full_length_run_with_a_mask(case, models) -> None:
    pruner = case.pruner
    prompt = models["eager"].embed_prompt(SAMPLES[0][None], None, tiny.pixels(8), pruner=pruner)
    shape = DecoderShape.from_config(models["eager"].config)
    positions = pruner.start(prompt.layout, shape).positions
    check_against_the_oracle(models["eager"], pruner, positions, images=2, steps=2)


def state_of(model) -> dict:
    """Weights, settings, attributes and hooks of a model, and what a process shares."""
    hooks = {
        (name, kind): [
            hook for hook in getattr(module, f"_{kind}_hooks").values() if hook is not _keep_queries
        ]
        for name, module in model.named_modules()
        for kind in ("forward", "forward_pre")
    }
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "config": copy.deepcopy(model.config.to_dict()),
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
def test_a_call_is_deterministic_and_leaves_nothing_behind(case, model) -> None:
    one(model, None)  # whatever transformers sets up on the first call
    torch.manual_seed(1)
    before = state_of(model)
    _, first = one(model, case.pruner)
    after = state_of(model)
    for part in ("config", "generation", "attributes", "hooks", "process"):
        assert after[part] == before[part], part
    assert torch.equal(after["random"], before["random"])
    assert all(torch.equal(after["weights"][k], v) for k, v in before["weights"].items())
    torch.manual_seed(2)
    _, second = one(model, case.pruner)
    assert torch.equal(first, second)


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
    assert drawn[0].shape == (4, NEW) and not torch.equal(drawn[0], drawn[2])
