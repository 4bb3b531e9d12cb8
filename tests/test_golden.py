"""The `released` preset against numbers recorded from the released implementation.

tests/data/golden holds inputs, weights and outputs of three runs of AutoPrune's own code on small
random models in float32 (8 layers, no image: the embeddings of the prompt and the CLS attention
are inputs). In each sequence 35 prefix tokens precede the visual block.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava import pruning
from llava.model import LlavaConfig, LlavaLlamaModel
from llava.pruning.cache import PrunedCache
from llava.pruning.indicators import mutual_information
from llava.pruning.layout import Segment, TokenLayout
from llava.pruning.methods.autoprune import AutoPruneRun
from llava.pruning.schedules import logistic
from tests.closeness import FLOAT32, assert_close

DATA = Path(__file__).parent / "data" / "golden"
CASES = ("a_t64", "b_t128", "c_t192")


class Golden:
    """One recorded case, run through the decoder of this package."""

    def __init__(self, name: str) -> None:
        self.facts = facts = json.loads((DATA / f"{name}.json").read_text())
        tensors = load_file(DATA / f"{name}.safetensors")
        self.recorded = tensors["last_hidden_state"]
        model = LlavaLlamaModel(
            LlavaConfig(
                vocab_size=len(tensors["weights.embed_tokens.weight"]),
                hidden_size=facts["hidden_size"],
                intermediate_size=facts["intermediate_size"],
                num_hidden_layers=facts["layers"],
                num_attention_heads=facts["heads"],
                rms_norm_eps=facts["rms_norm_eps"],
                rope_parameters={"rope_type": "default", "rope_theta": facts["rope_theta"]},
            )
        ).eval()
        model.load_state_dict(
            {k.removeprefix("weights."): v for k, v in tensors.items() if "weights." in k}
        )
        n = facts["visual_tokens"]
        self.layout = TokenLayout.from_segments(
            [
                [
                    Segment(facts["prefix_tokens"]),
                    Segment(n, 0, torch.arange(n), tensors["cls_attention"][0]),
                    Segment(facts["text_tokens"]),
                ]
            ]
        )
        pruner = pruning.build(
            "autoprune",
            target_token_num=facts["target"],
            x0=facts["x0"],
            k0=facts["k0"],
            gamma=facts["gamma"],
        )
        self.cache = PrunedCache(pruner, self.layout)
        self.first_rows: torch.Tensor | None = None
        after = AutoPruneRun.after_layer

        def remember(run, observation):
            if observation.layer == 0:
                self.first_rows = observation
            return after(run, observation)

        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(AutoPruneRun, "after_layer", remember)
            out = model(
                inputs_embeds=tensors["inputs_embeds"], past_key_values=self.cache, use_cache=True
            )
        self.hidden = out.last_hidden_state


@pytest.fixture(scope="module", params=CASES)
def golden(request) -> Golden:
    return Golden(request.param)


def test_mutual_information_of_the_first_two_layers(golden: Golden) -> None:
    first = golden.first_rows
    heads = mutual_information(first.rows, first.row_mask, first.layout.is_visual, eps=1e-6)
    expected = torch.tensor(golden.facts["mi_layer0_per_head"])
    assert_close(heads[0], expected, FLOAT32)
    measured = golden.cache.trace.samples[0].complexity
    assert measured["mi"] == pytest.approx(golden.facts["mi_layer1"], rel=FLOAT32)
    assert measured["k"] == pytest.approx(golden.facts["k"], rel=FLOAT32)


def test_scaled_retention(golden: Golden) -> None:
    facts, complexity = golden.facts, golden.cache.trace.samples[0].complexity
    pruner, layers = golden.cache.pruner, facts["layers"]
    retention = [
        complexity["scale"]
        * pruner.amplitude
        * logistic(layer, complexity["k"], complexity["x0"], 0)
        for layer in range(1, layers)
    ]
    assert retention == pytest.approx(facts["scaled_retention"], rel=FLOAT32)


def test_lengths_and_text_rows(golden: Golden) -> None:
    facts = golden.facts
    assert [layer.keys.shape[-2] for layer in golden.cache.layers] == facts["kv_lengths"]
    assert golden.hidden.shape[1] == facts["final_length"]
    text = facts["text_tokens"]
    assert_close(golden.hidden[:, -text:], golden.recorded[:, -text:], FLOAT32)
