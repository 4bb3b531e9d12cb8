"""What tensors are called in each format, and which there are in the published checkpoints."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest
from transformers import LlavaForConditionalGeneration

from llava.model.config_json import from_hf
from llava.model.shapes import expected_shapes
from llava.model.tensor_names import NAMES, VISION, rename
from llava.model.weights import vision_config

from .. import checkpoints, tiny

LAYER = "layers.7.self_attn.q_proj.weight"
TOWER = "encoder.layers.3.mlp.fc1.bias"
#: original, on llava-hf's disk, in a CLIP checkpoint (None: not there)
TABLE = [
    ("model.embed_tokens.weight", "language_model.model.embed_tokens.weight", None),
    (f"model.{LAYER}", f"language_model.model.{LAYER}", None),
    ("model.norm.weight", "language_model.model.norm.weight", None),
    ("lm_head.weight", "language_model.lm_head.weight", None),
    ("model.mm_projector.0.weight", "multi_modal_projector.linear_1.weight", None),
    ("model.mm_projector.2.bias", "multi_modal_projector.linear_2.bias", None),
    (
        f"model.vision_tower.vision_tower.vision_model.{TOWER}",
        f"vision_tower.vision_model.{TOWER}",
        f"vision_model.{TOWER}",
    ),
]


@pytest.mark.parametrize(("original", "hf", "clip"), TABLE)
def test_names(original, hf, clip):
    assert rename(original, "original", "llava-hf") == hf
    assert rename(hf, "llava-hf", "original") == original
    if clip is not None:
        assert rename(original, "original", "clip") == clip
        assert rename(clip, "clip", "original") == original


@pytest.mark.parametrize("other", ["original", "llava-hf", "stock"])
def test_names_of_our_modules_go_there_and_back(other):
    names = list(tiny.model(layers=2).state_dict())
    there = [rename(name, "module", other) for name in names]
    assert [rename(name, other, "module") for name in there] == names
    assert len(set(there)) == len(names)
    # A name translated twice is still right: some writers leave the tower's level in.
    if other == "original":
        assert [rename(name, "module", "original") for name in there] == there


def test_names_of_transformers_own_modules():
    ours = tiny.model(layers=2)
    stock = LlavaForConditionalGeneration(tiny.stock(ours).config)
    names = {rename(name, "module", "stock") for name in ours.state_dict()}
    assert names == set(stock.state_dict())


def test_the_newline_of_llava_1_6():
    assert rename("model.image_newline", "module", "llava-hf") == "image_newline"
    assert rename("image_newline", "llava-hf", "original") == "model.image_newline"
    assert rename("model.image_newline", "module", "stock") == "model.image_newline"


def test_unknown_names_stay_as_they_are():
    for source in ("original", "llava-hf", "module"):
        assert rename("model.resampler.query", source, "llava-hf") == "model.resampler.query"
    assert len({row[1] for row in NAMES}) == len(NAMES)


class TestPublishedSizes:
    """`total_size` of the published index files, in bytes, from nothing but their config.json."""

    def test_original(self):
        config = checkpoints.published_config("llava-v1.5-7b")
        clip = checkpoints.published_config("clip-vit-large-patch14-336")["vision_config"]
        shapes = expected_shapes({**config, "mm_vision_config": vision_config(clip)})
        half = 2 * sum(prod(shape) for name, shape in shapes.items() if not name.startswith(VISION))
        # In each of 32 layers the legacy buffer: 64 rotary frequencies in float32.
        assert half + 32 * 64 * 4 == 13_518_798_848

    def test_llava_hf_whose_config_leaves_sizes_out(self):
        config = from_hf(checkpoints.published_config("llava-1.5-7b-hf"), Path("folder"))
        assert 2 * sum(map(prod, expected_shapes(config).values())) == 14_126_854_144

    @pytest.mark.parametrize("kind", ["original", "llava-hf"])
    @pytest.mark.parametrize(("version", "newline"), [("1.5", 0), ("1.6-vicuna", 5120)])
    def test_13b(self, kind, version, newline):
        """Its decoder is Llama-2-13B of 13,015,864,320 numbers; its config names all sizes."""
        sizes = {
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "num_key_value_heads": 40,
        }
        if kind == "original":
            clip = checkpoints.published_config("clip-vit-large-patch14-336")["vision_config"]
            config = {**checkpoints.published_config(f"llava-v{version}-7b"), **sizes}
            config["mm_vision_config"], rows = vision_config(clip), 0
        else:
            name = "llava-1.5-7b-hf" if newline == 0 else "llava-v1.6-vicuna-7b-hf"
            values = checkpoints.published_config(name)
            values["text_config"] |= sizes
            # llava-hf pads the vocabulary by 64 rows, in the embeddings and in the head.
            config, rows = from_hf(values, Path("folder")), 2 * 64 * 5120
        shapes = expected_shapes(config)
        numbers = sum(prod(shape) for name, shape in shapes.items() if not name.startswith(VISION))
        projector = 1024 * 5120 + 5120 + 5120 * 5120 + 5120
        assert numbers == 13_015_864_320 + projector + newline + rows
        assert "model.layers.39.mlp.down_proj.weight" in shapes
