"""Stock models on one CUDA device, or split over two, are pruned as on the CPU.

The devices are virtual, see `tests.virtual_device`: what CUDA would refuse raises `DeviceError`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import dispatch_model

from llava import hf
from tests.closeness import FLOAT32, assert_close
from tests.virtual_device.device import FIRST, SECOND, virtual_devices, why_not
from tests.virtual_device.placement import move

from . import methods, zoo
from .test_oracle import samples

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

NAMES = ["llava", "internvl", "idefics3", "qwen2_vl", "qwen3_vl", "gemma3", "paligemma"]


def on_one(model: Any) -> Any:
    return move(model, FIRST)


def on_two(model: Any) -> Any:
    """Layers from the third on, norm and head on the second device."""
    decoder = model.get_decoder()
    names = {module: name for name, module in model.named_modules()}
    second = {*decoder.layers[2:], decoder.norm, model.get_output_embeddings()}
    parents = {model, model.model, decoder, decoder.layers}
    children = [child for parent in parents for child in parent.children()]
    places = {names[c]: SECOND if c in second else FIRST for c in children if c not in parents}
    for name, device in places.items():
        move(model.get_submodule(name), device)
    with virtual_devices():
        skip_keys = model._skip_keys_device_placement
        return dispatch_model(
            model, places, main_device=FIRST, skip_keys=skip_keys, force_hooks=True
        )


def answer(model: Any, batch: dict[str, Any], method: str) -> tuple[torch.Tensor, list[list[int]]]:
    cache = hf.cache(model, methods.pruner(method, merging=method == "autoprune"))
    output = model.generate(
        **batch,
        past_key_values=cache,
        max_new_tokens=3,
        return_dict_in_generate=True,
        output_logits=True,
    )
    logits = torch.stack(output.logits)
    return logits.cpu(), [sample.entering for sample in cache.trace.samples]


@pytest.mark.usefixtures("first_for_few")
@pytest.mark.parametrize("spread", [on_one, on_two])
@pytest.mark.parametrize("name", NAMES)
def test_devices_answer_as_the_cpu(name: str, spread: Any) -> None:
    batch = zoo.inputs(name, samples(name), torch.float32)
    host, spread_model = zoo.model(name, torch.float32), spread(zoo.model(name, torch.float32))
    if "qwen" in name:
        # Made here: how stock code makes them is more than the virtual devices know.
        ids = batch["input_ids"]
        batch["position_ids"] = host._prepare_position_ids_for_generation(ids, batch)
    for method in ("autoprune", "pdrop", "divprune"):
        expected, counts = answer(host, batch, method)
        with virtual_devices():
            there = {key: value.to(FIRST) for key, value in batch.items()}
            logits, entering = answer(spread_model, there, method)
        assert_close(logits, expected, FLOAT32)
        assert entering == counts
