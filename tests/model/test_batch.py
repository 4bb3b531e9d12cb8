"""A ragged batch gives what its samples give alone; merging, several images and text included."""

from __future__ import annotations

import pytest
import torch

from llava import pruning
from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import letterbox_mask
from tests import tiny

NEW = 20
SIZES = [(80, 40), (50, 90), (64, 64), (30, 100), (90, 30)]


@pytest.fixture(scope="module")
def samples():
    """Prompts with 1, 2, 0 and 1 images and different lengths of text."""
    return [
        tiny.prompt(1, before=2, after=5),
        tiny.prompt(2, before=6, after=9, images=2),
        tiny.prompt(3, before=3, after=4, images=0),
        tiny.prompt(4, before=9, after=14),
        tiny.prompt(5, before=0, after=3),
    ]


def counts(samples) -> list[int]:
    return [int((ids == IMAGE_TOKEN_INDEX).sum()) for ids in samples]


def run(model, ids, mask, images, sizes, pruner, **options):
    out = model.generate(
        ids,
        images=images if images is not None and len(images) else None,
        image_sizes=sizes or None,
        attention_mask=mask,
        pruner=pruner,
        do_sample=False,
        max_new_tokens=NEW,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return out, torch.stack(out.logits, 1)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_token_num": 20, "x0": 3.0, "k0": 0.8},
        {"target_token_num": 30, "x0": 3.0, "preset": "paper"},
        {"target_token_num": 36, "x0": 3.0, "budget_mode": "strict", "positions": "original"},
        {"target_flops": 0.6, "x0": 3.0},
        {
            "target_token_num": 20,
            "x0": 3.0,
            "gamma": 1.0,
            "indicator": "cosine_similarity",
            "curve": "linear",
        },
    ],
    ids=["released", "paper", "strict", "flops", "cosine"],
)
def test_a_ragged_batch_equals_its_samples(samples, attn, settings) -> None:
    model = tiny.model(7, attn=attn, image_size=112)
    pruner = pruning.build("autoprune", **settings)
    ids, mask = tiny.batch(samples)
    images = tiny.pixels(8, sum(counts(samples)), size=112)
    together, logits = run(model, ids, mask, images, SIZES, pruner)
    traces = together.past_key_values.trace.samples
    lengths = {tuple(t.leaving) for t in traces}
    assert len(lengths) >= 3, "the samples must not all be pruned alike"

    first = 0
    for i, (sample, n) in enumerate(zip(samples, counts(samples))):
        own = slice(first, first + n)
        first += n
        alone, own_logits = run(model, sample[None], None, images[own], SIZES[own], pruner)
        assert alone.past_key_values.trace.samples[0].entering == traces[i].entering
        torch.testing.assert_close(logits[i], own_logits[0], atol=1e-5, rtol=0)
        assert torch.equal(together.sequences[i], alone.sequences[0])


def test_beams_under_pruning_equal_beams_alone(samples) -> None:
    model = tiny.model(7)
    pruner = pruning.build("autoprune", target_token_num=6, x0=3.0)
    ids, mask = tiny.batch(samples)
    images = tiny.pixels(8, sum(counts(samples)))
    together, _ = run(model, ids, mask, images, SIZES, pruner, num_beams=3)
    first = 0
    for i, (sample, n) in enumerate(zip(samples, counts(samples))):
        own = slice(first, first + n)
        first += n
        alone, _ = run(model, sample[None], None, images[own], SIZES[own], pruner, num_beams=3)
        assert torch.equal(together.sequences[i], alone.sequences[0])


def test_a_letterboxed_batch_uses_each_samples_own_mask(samples) -> None:
    """The same picture declared wide and square keeps different patches in the first cut."""
    model = tiny.model(7)
    pruner = pruning.build("autoprune", target_token_num=4, preselect_text=0.0)
    prompt, image = tiny.prompt(1), tiny.pixels(1)
    ids, mask = tiny.batch([prompt, prompt])
    out, _ = run(model, ids, mask, image.repeat(2, 1, 1, 1), [(100, 25), (50, 50)], pruner)
    kept = [set(out.past_key_values.trace.kept_patches(i)[1]) for i in (0, 1)]
    assert len(kept[0]) == len(kept[1]) == 10
    # 12 patches of the wide picture are not padding, so the 10 kept are among them.
    inside = {p for p, padding in enumerate(letterbox_mask((100, 25), 4).tolist()) if not padding}
    assert len(inside) == 12
    assert kept[0] <= inside and not kept[1] <= inside
