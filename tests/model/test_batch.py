"""A ragged batch gives what its samples give alone; merging, several images and text included."""

from __future__ import annotations

import pytest
import torch

from llava import pruning
from llava.mm_utils import letterbox_mask
from tests import tiny
from tests.closeness import FLOAT32, ROUNDED, assert_close

from . import prompts
from .prompts import images_of, own_images

SAMPLES = [*prompts.SAMPLES, tiny.prompt(5, before=0, after=3)]
IMAGES = sum(map(images_of, SAMPLES))
SIZES = [(80, 40), (50, 90), (64, 64), (30, 100), (90, 30)]


def generate(model, ids, mask, images, sizes, pruner, **options):
    return prompts.generate(
        model, ids, mask, images, pruner, new=20, image_sizes=sizes or None, **options
    )


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_token_num": 20, "x0": 3.0, "k0": 0.8},
        {"target_token_num": 30, "x0": 3.0, "preset": "paper"},
        {"target_token_num": 36, "x0": 3.0, "budget_mode": "strict", "positions": "original"},
        {"target_flops": 0.6, "x0": 3.0},
        {"target_token_num": 20, "x0": 3.0, "k0": 0.8, "prune_every": 2},
        {"target_token_num": 30, "x0": 3.0, "preset": "paper", "prune_every": 4},
        {
            "target_token_num": 20,
            "x0": 3.0,
            "gamma": 1.0,
            "indicator": "cosine_similarity",
            "curve": "linear",
        },
    ],
    ids=["released", "paper", "strict", "flops", "every 2", "every 4", "cosine"],
)
def test_a_ragged_batch_equals_its_samples(attn, settings) -> None:
    # Eager attention has its softmax in float32 whatever comes.
    model, room = tiny.model(7, attn=attn, image_size=112), FLOAT32
    if attn == "sdpa":
        model, room = tiny.double(model), ROUNDED
    pruner = pruning.build("autoprune", **settings)
    ids, mask = tiny.batch(SAMPLES)
    images = tiny.pixels(8, IMAGES, size=112)
    together, logits = generate(model, ids, mask, images, SIZES, pruner)
    traces = together.past_key_values.trace.samples
    lengths = {tuple(t.leaving) for t in traces}
    assert len(lengths) >= 3, "the samples must not all be pruned alike"

    for i, (sample, own) in enumerate(zip(SAMPLES, own_images(SAMPLES))):
        alone, own_logits = generate(model, sample[None], None, images[own], SIZES[own], pruner)
        assert alone.past_key_values.trace.samples[0].entering == traces[i].entering
        assert_close(logits[i], own_logits[0], room)
        assert torch.equal(together.sequences[i], alone.sequences[0])


def test_beams_under_pruning_equal_beams_alone() -> None:
    model = tiny.double(tiny.model(7))
    pruner = pruning.build("autoprune", target_token_num=6, x0=3.0)
    ids, mask = tiny.batch(SAMPLES)
    images = tiny.pixels(8, IMAGES)
    together, _ = generate(model, ids, mask, images, SIZES, pruner, num_beams=3)
    for i, (sample, own) in enumerate(zip(SAMPLES, own_images(SAMPLES))):
        alone, _ = generate(model, sample[None], None, images[own], SIZES[own], pruner, num_beams=3)
        assert torch.equal(together.sequences[i], alone.sequences[0])


def test_a_letterboxed_batch_uses_each_samples_own_mask() -> None:
    """The same picture declared wide and square keeps different patches in the first cut."""
    model = tiny.double(tiny.model(7))
    pruner = pruning.build("autoprune", target_token_num=4, preselect_text=0.0)
    prompt, image = tiny.prompt(1), tiny.pixels(1)
    ids, mask = tiny.batch([prompt, prompt])
    out, _ = generate(model, ids, mask, image.repeat(2, 1, 1, 1), [(100, 25), (50, 50)], pruner)
    kept = [set(out.past_key_values.trace.kept_patches(i)[1]) for i in (0, 1)]
    assert len(kept[0]) == len(kept[1]) == 10
    # 12 patches of the wide picture are not padding, so the 10 kept are among them.
    inside = {p for p, padding in enumerate(letterbox_mask((100, 25), 4).tolist()) if not padding}
    assert len(inside) == 12
    assert kept[0] <= inside and not kept[1] <= inside
