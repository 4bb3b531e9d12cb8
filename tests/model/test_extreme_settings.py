"""A number of any size that a method's settings take is one that its prefill can work with."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from llava import pruning
from llava.pruning.checks import LARGEST, LARGEST_WHOLE, declared_types

from .. import tiny
from .method_cases import small_settings

EXTREMES = {
    int: (0, 1, -1, LARGEST_WHOLE, -LARGEST_WHOLE),
    float: (0.0, 1e-300, -1e-300, float(LARGEST), float(-LARGEST)),
}


@pytest.mark.parametrize("method", pruning.METHODS)
def test_extreme_settings_are_refused_or_work(method: str) -> None:
    cls = pruning.METHODS[method]
    usual = small_settings(cls)
    model, prompt, pixels = tiny.model(), tiny.prompt(0)[None], tiny.pixels(0)
    worked = 0
    for field in fields(cls):
        kind = next((kind for kind in EXTREMES if kind in declared_types(cls)[field.name]), None)
        for value in (*EXTREMES.get(kind, ()), getattr(cls(), field.name)):
            try:
                pruner = pruning.build(method, **{**usual, field.name: value})
                with torch.inference_mode():
                    model.generate(
                        prompt, images=pixels, pruner=pruner, max_new_tokens=1, do_sample=False
                    )
            except ValueError:
                continue
            worked += 1
    assert worked or not fields(cls)
