"""On one CUDA device, or split over two, a model answers as on the CPU, and rarely waits.

The devices are virtual, see `tests.virtual_device`: what CUDA would refuse raises `DeviceError`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from llava import pruning
from llava.pruning.cache import PrunedCache
from tests import tiny, tiny_next
from tests.closeness import FLOAT32, assert_close
from tests.virtual_device.device import (
    FIRST,
    VirtualTensor,
    Wait,
    virtual_devices,
    why_not,
)
from tests.virtual_device.placement import move, split

from .method_cases import CASES, LAYERS, Case
from .prompts import SAMPLES, generate, images_of

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

IMAGES = sum(map(images_of, SAMPLES))
TILED = [(300, 90), (40, 20), (112, 112), (200, 100)]  # width, height
CPU = torch.device("cpu")

#: What generate gives and its logits (batch, new, vocabulary), of a model on a device.
Use = Callable[[Any, pruning.Pruner, torch.device], tuple[Any, torch.Tensor]]


def single(model: Any, pruner: pruning.Pruner, device: torch.device, **options: Any):
    ids, pixels = SAMPLES[0][None].to(device), tiny.pixels(8).to(device)
    return generate(model, ids, None, pixels, pruner, new=2, **options)


def ragged(model: Any, pruner: pruning.Pruner, device: torch.device, **options: Any):
    """A batch of 1, 2, 0 and 1 images."""
    ids, mask = (x.to(device) for x in tiny.batch(SAMPLES))
    pixels = tiny.pixels(8, IMAGES).to(device)
    return generate(model, ids, mask, pixels, pruner, new=2, **options)


def beams(model: Any, pruner: pruning.Pruner, device: torch.device):
    return ragged(model, pruner, device, num_beams=2)


def continued(model: Any, pruner: pruning.Pruner, device: torch.device):
    """A second turn of a batch on the cache of the first."""
    ids, mask = (x.to(device) for x in tiny.batch(SAMPLES))
    out, _ = ragged(model, pruner, device)
    more = torch.full((len(ids), 3), 11, device=device)
    ids = torch.cat([ids, out.sequences, more], 1)
    mask = torch.cat([mask, torch.ones_like(ids[:, mask.shape[1] :])], 1)
    return generate(model, ids, mask, None, None, new=2, past_key_values=out.past_key_values)


def tiled(model: Any, pruner: pruning.Pruner, device: torch.device):
    """A batch of pictures in tiles, with a budget that every method can meet."""
    ids, mask = (x.to(device) for x in tiny.batch(SAMPLES))
    views = [view.to(device) for view in tiny_next.views(TILED, model.config)]
    return generate(model, ids, mask, views, pruner, new=2, image_sizes=TILED)


@cache
def model_on(spread: Callable[[Any], Any] | None, attn: str, tiles: bool) -> Any:
    """A model on the CPU, or as `spread` puts it on virtual devices."""
    if tiles:
        model = tiny_next.model(7, layers=LAYERS, attn=attn, mm_patch_merge_type="spatial")
    else:
        model = tiny.model(7, layers=LAYERS, attn=attn)
    return model if spread is None else spread(model)


@pytest.fixture(scope="module", autouse=True)
def _forget_models():
    yield
    model_on.cache_clear()


def on_one(model: Any) -> Any:
    return move(model, FIRST)


#: A case a method, and both presets of AutoPrune.
METHODS = list({(c.method, c.settings.get("preset")): c for c in reversed(CASES)}.values())[::-1]
TILES = [(tiled, "sdpa", case) for case in METHODS if case.method != "vscan"]  # which refuses them


def each_turn(*turns: tuple[Use, str, Case]):
    names = [f"{use.__name__}-{attn}-{case}" for use, attn, case in turns]
    return pytest.mark.parametrize(("use", "attn", "case"), turns, ids=names)


def check(use: Use, attn: str, case: Case, spread: Callable[[Any], Any]) -> None:
    """Fail unless a model on virtual devices answers as on the CPU.

    The kernel of sdpa is another, so logits are equal as float32 can be.
    """
    model, virtual = (model_on(how, attn, use is tiled) for how in (None, spread))
    pruner = case.pruner
    if use is tiled and "target_token_num" in case.settings:
        pruner = pruning.build(case.method, **{**case.settings, "target_token_num": 60})
    expected, expected_logits = use(model, pruner, CPU)
    with virtual_devices():
        out, logits = use(virtual, pruner, FIRST)
        assert isinstance(logits, VirtualTensor)
        sequences, logits = out.sequences.cpu(), logits.cpu()
        traces = out.past_key_values.trace.samples
    assert torch.equal(sequences, expected.sequences)
    assert_close(logits, expected_logits, FLOAT32)
    counts = [sample.entering for sample in expected.past_key_values.trace.samples]
    assert [sample.entering for sample in traces] == counts


@each_turn(*((use, "sdpa", case) for use in (single, beams) for case in METHODS))
def test_one_device_answers_as_the_cpu(use: Use, attn: str, case: Case) -> None:
    check(use, attn, case, on_one)


@each_turn(
    *((ragged, attn, case) for attn in ("sdpa", "eager") for case in METHODS),
    *((continued, "sdpa", case) for case in METHODS),
    *TILES,
)
def test_two_devices_answer_as_the_cpu(use: Use, attn: str, case: Case) -> None:
    check(use, attn, case, split)


def prefill_waits(model: Any, pruner: pruning.Pruner, batch: int) -> list[Wait]:
    """What makes the host wait inside a prefill of a batch with different texts.

    The prompt is embedded before. `model` is on the first virtual device.
    """
    ids, mask = tiny.batch([tiny.prompt(i, after=6 + 3 * i) for i in range(batch)])
    with virtual_devices() as waits, torch.no_grad():
        pixels = tiny.pixels(8, batch, size=112).to(FIRST)
        prompt = model.embed_prompt(ids.to(FIRST), mask.to(FIRST), pixels, pruner=pruner)
        cache = PrunedCache(pruner, prompt.layout)
        waits.clear()
        model.model(inputs_embeds=prompt.embeds, past_key_values=cache)
        return list(waits)


@pytest.fixture(scope="module")
def deep():
    """64 visual tokens an image, and as many layers as the smallest published model has."""
    return move(tiny.model(7, layers=32, image_size=112), FIRST)


@pytest.mark.parametrize(
    ("method", "batch", "most"),
    [
        ("autoprune", 1, 3),
        ("autoprune", 8, 4),
        ("zipvl", 1, 40),
        ("zipvl", 8, 45),
    ],
)
def test_a_pruned_prefill_rarely_waits(deep, method: str, batch: int, most: int) -> None:
    """How often it does beyond what the unpruned model does."""
    waits = prefill_waits(deep, pruning.build(method, target_token_num=8), batch)
    dense = prefill_waits(deep, pruning.build("none"), batch)
    lines = Counter((wait.kind, wait.line) for wait in waits)
    assert len(waits) - len(dense) <= most, lines.most_common(20)
