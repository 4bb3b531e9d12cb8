"""AutoPrune against the oracle (see `oracle`), in its settings. Other methods: `test_methods`."""

from __future__ import annotations

import pytest
import torch

from llava import pruning
from tests import tiny
from tests.closeness import FLOAT32, assert_close

from .oracle import check_against_the_oracle


def pruner(positions: str, **settings):
    return pruning.build(
        "autoprune",
        **{
            "target_token_num": 6,
            "x0": 3.0,
            "k0": 0.5,
            "recycle_ratio": 0.0,
            "positions": positions,
            **settings,
        },
    )


@pytest.fixture(scope="module")
def model():
    return tiny.double(tiny.model(0))


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize(("preselect", "target"), [(2.5, 6), (1.5, 6), (None, 10)])
@pytest.mark.parametrize("images", [1, 3])
def test_prefill_and_decode_equal_the_oracle(model, positions, preselect, target, images) -> None:
    chosen = pruner(positions, preselect_ratio=preselect, target_token_num=target)
    counts = check_against_the_oracle(model, chosen, images).entering
    assert counts[0] == 16 * images and counts[-1] < counts[1] <= counts[0]


# 32 tokens leave layer 0: a budget of 6 for 6 layers would be out of reach.
NO_PRESELECTION = {"preselect_ratio": None, "target_token_num": 8}
ABLATIONS = [
    *({"indicator": name} for name in ("mean_attention", "cosine_similarity", "static")),
    *({"curve": name} for name in ("linear", "tanh", "exponential")),
    {"indicator": "cosine_similarity", "curve": "exponential", **NO_PRESELECTION},
    {"preset": "paper", "indicator": "static", "curve": "linear", "target_token_num": 8},
    {"mi_layer": 3, "preselect_ratio": 1.5},
    {"normalise_rows": True, **NO_PRESELECTION},
    {"prune_every": 2},
    {"prune_every": 4, **NO_PRESELECTION},
]


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("settings", ABLATIONS, ids=str)
def test_ablations_equal_the_oracle(model, positions, settings) -> None:
    counts = check_against_the_oracle(model, pruner(positions, **settings), 2)
    assert counts.entering[0] == 32
    assert counts.entering[-1] < counts.entering[1] <= 32


@torch.no_grad()
def test_the_two_position_policies_differ(model) -> None:
    ids, pixels = tiny.prompt(2)[None], tiny.pixels(2)
    logits = [
        model(ids, images=pixels, pruner=pruner(policy)).logits[0, -1]
        for policy in ("original", "compact")
    ]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


@torch.no_grad()
def test_backends_agree_under_pruning() -> None:
    models = [tiny.model(0, attn=attn) for attn in ("eager", "sdpa")]
    prompts = [tiny.prompt(i, before=i, after=4 + i) for i in range(4)]
    ids, mask = tiny.batch(prompts)
    for recycle in (0.0, 0.3):
        chosen = pruner("compact", recycle_ratio=recycle)
        a, b = (
            m(ids, images=tiny.pixels(3, 4), attention_mask=mask, pruner=chosen).logits
            for m in models
        )
        assert_close(a, b, FLOAT32)
