"""`tower_scores` "received": patches are ranked by the mean attention that they receive."""

from __future__ import annotations

import math

import pytest
import torch

from llava import pruning
from llava.pruning.vision import received
from tests import tiny
from tests.closeness import FLOAT32, assert_close


def test_by_hand() -> None:
    """Three queries over three keys of width 1: two see ln 2 and 0 and 0, one sees all alike."""
    queries = torch.tensor([1.0, 1.0, 0.0]).view(1, 1, 3, 1)
    keys = torch.tensor([math.log(2), 0.0, 0.0]).view(1, 1, 3, 1)
    scores = received(queries, keys)
    expected = [(1 / 2 + 1 / 2 + 1 / 3) / 3, (1 / 4 + 1 / 4 + 1 / 3) / 3]
    assert scores.flatten().tolist() == pytest.approx([expected[0], expected[1], expected[1]])


@torch.no_grad()
def test_methods_rank_by_the_eager_matrix() -> None:
    """Of patches to patches, mean over heads and over those that look."""
    model = tiny.model(0)
    pixels, ids = tiny.pixels(3, 2), tiny.batch([tiny.prompt(0), tiny.prompt(1)])
    tower = model.get_vision_tower()
    matrices = []
    tower.vision_tower.set_attn_implementation("eager")
    attention = tower.inner.encoder.layers[tower.run_layers - 1].self_attn
    handle = attention.register_forward_hook(lambda m, args, output: matrices.append(output[1]))
    tower(pixels)
    handle.remove()
    scores = matrices[0][:, :, 1:, 1:].mean((1, 2))
    by_cls = matrices[0][:, :, 0, 1:].mean(1)
    best = scores.topk(6).indices.sort().values
    assert best.tolist() != by_cls.topk(6).indices.sort().values.tolist()

    def layout(method: str, **settings) -> pruning.TokenLayout:
        pruner = pruning.build(method, tower_scores="received", **settings)
        return model.embed_prompt(*ids, pixels, pruner=pruner).layout

    patches = layout("fastervlm", target_token_num=6)
    assert torch.equal(patches.patch[patches.is_visual].view(2, 6), best)
    half = layout("vispruner", target_token_num=12).patch
    assert all(set(b.tolist()) <= set(row.tolist()) for b, row in zip(best, half))
    whole = layout("autoprune", target_token_num=4)
    assert_close(whole.cls[whole.is_visual].view(2, -1), scores, FLOAT32)
    with pytest.raises(ValueError, match="tower_scores"):
        pruning.build("fastervlm", tower_scores="mean")
