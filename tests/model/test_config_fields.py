"""Wrong values in config.json, a checkpoint's or its tower's: the message names file and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.eval.run.models import decoder_layers
from llava.model.config_fields import check_config, check_vision_config

from .. import checkpoints
from ..answers import refused

HUGE = 10**30
WRONG_SIZES = ["64", None, [64], {"a": 64}, 64.5, True, 0, -64, HUGE, float("nan")]
#: field, what it may not be; of a decoder
DECODER = [
    *((name, value) for name in ("hidden_size", "num_hidden_layers") for value in WRONG_SIZES),
    ("intermediate_size", "96"),
    ("num_attention_heads", 0),
    ("num_attention_heads", 3),
    ("num_attention_heads", 7),
    ("num_hidden_layers", 10**9),
    ("num_key_value_heads", 3),
    ("num_key_value_heads", [4]),
    ("num_key_value_heads", -1),
    ("head_dim", "16"),
    ("head_dim", HUGE),
    ("vocab_size", -1),
    ("max_position_embeddings", "4096"),
    ("rms_norm_eps", None),
    ("rms_norm_eps", "1e-5"),
    ("rms_norm_eps", 0),
    ("rms_norm_eps", float("inf")),
    ("rope_theta", -1),
    ("rope_theta", HUGE),
    ("hidden_act", "swish!"),
    ("hidden_act", ["silu"]),
    ("attention_bias", "false"),
    ("tie_word_embeddings", "true"),
    ("sliding_window", "4096"),
    ("rope_scaling", "linear"),
    ("rope_scaling", {"type": "su", "factor": 2.0}),
    ("rope_scaling", {"type": ["linear"], "factor": 2.0}),
    ("rope_scaling", {"factor": 2.0}),
    ("rope_scaling", {"type": "linear"}),
    ("rope_scaling", {"type": "linear", "factor": "2"}),
    ("rope_scaling", {"rope_type": "dynamic", "factor": 0}),
    ("rope_scaling", {"rope_type": "yarn", "factor": 2.0, "beta_fast": "32"}),
    ("rope_scaling", {"rope_type": "longrope", "short_factor": [1.0], "long_factor": ["a"]}),
    ("rope_parameters", {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0}),
    # Known to transformers alone.
    ("id2label", 7),
    ("pretraining_tp", "two"),
]
#: The same of LLaVA's own fields in the original format.
ORIGINAL = [
    ("model_type", ["llava"]),
    ("architectures", "LlavaLlamaForCausalLM"),
    ("architectures", [{"a": 1}]),
    ("mm_vision_tower", 7),
    ("mm_vision_tower", ["openai/clip"]),
    ("mm_projector_type", 2),
    ("mm_projector_type", None),
    ("mm_patch_merge_type", ["flat"]),
    ("mm_vision_select_layer", "-2"),
    ("mm_vision_select_layer", True),
    ("mm_vision_select_layer", 9),
    ("mm_vision_select_feature", 0),
    ("mm_use_im_start_end", "False"),
    ("mm_vision_config", "vision_tower"),
    ("image_aspect_ratio", ["pad"]),
    ("image_grid_pinpoints", 336),
    ("tokenizer_model_max_length", "2048"),
    ("tokenizer_model_max_length", float("nan")),
    ("max_sequence_length", -1),
    ("torch_dtype", 16),
    ("torch_dtype", "int8"),
    ("unfreeze_mm_vision_tower", "yes"),
]
LLAVA_HF = [
    ("text_config", None),
    ("text_config", [1]),
    ("vision_config", "clip"),
    ("image_token_index", -1),
    ("image_token_index", "<image>"),
    ("vision_feature_layer", "-2"),
    ("vision_feature_layer", 9),
    ("vision_feature_select_strategy", 1),
    ("projector_hidden_act", {}),
]
TOWER = [
    *(("patch_size", value) for value in WRONG_SIZES),
    ("hidden_size", "32"),
    ("hidden_size", 33),
    ("intermediate_size", None),
    ("num_hidden_layers", -3),
    ("num_attention_heads", 3),
    ("image_size", [56, 56]),
    ("image_size", 7),
    ("layer_norm_eps", None),
    ("layer_norm_eps", 1),
    ("hidden_act", 5),
    ("projection_dim", "768"),
]


def case(pair: tuple[str, Any]) -> Any:
    return pytest.param(*pair, id=f"{pair[0]} {json.dumps(pair[1])[:40]}")


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return checkpoints.write_original(tmp_path_factory.mktemp("original"), "safetensors")


@pytest.fixture(scope="module")
def hf(tmp_path_factory) -> Path:
    return checkpoints.write_hf(tmp_path_factory.mktemp("hf"), "safetensors")


@pytest.fixture
def edited():
    """Sets a field, and puts the file back afterwards: edited(file, part, field, value)."""
    files: dict[Path, str] = {}

    def edit(file: Path, part: str | None, field: str, value: Any) -> None:
        text = files.setdefault(file, file.read_text())
        values = json.loads(text)
        (values if part is None else values[part])[field] = value
        file.write_text(json.dumps(values))

    yield edit
    for file, text in files.items():
        file.write_text(text)


@pytest.mark.parametrize(("field", "value"), [case(pair) for pair in DECODER + ORIGINAL])
def test_the_original_format(original, edited, field, value):
    edited(original / "config.json", None, field, value)
    refused(original, "config.json", field)


@pytest.mark.parametrize(("field", "value"), [case(pair) for pair in DECODER])
def test_the_decoder_of_llava_hf(hf, edited, field, value):
    edited(hf / "config.json", "text_config", field, value)
    refused(hf, f"{hf}/config.json", field)


def test_where_the_config_alone_is_read(original, edited):
    """The first thing that the answering programs ask of a checkpoint, and what may be left out."""
    edited(original / "config.json", None, "num_hidden_layers", "3")
    with pytest.raises(ValueError, match="num_hidden_layers must be an integer"):
        decoder_layers(str(original))
    checkpoints.edit_json(original / "config.json", num_hidden_layers=...)
    assert decoder_layers(str(original)) == 32


@pytest.mark.parametrize(("field", "value"), [case(pair) for pair in LLAVA_HF])
def test_llava_hf(hf, edited, field, value):
    edited(hf / "config.json", None, field, value)
    refused(hf, f"{hf}/config.json", field)


@pytest.mark.parametrize(("field", "value"), [case(pair) for pair in TOWER])
def test_the_tower_of_llava_hf(hf, edited, field, value):
    edited(hf / "config.json", "vision_config", field, value)
    refused(hf, f"{hf}/config.json: vision_config: ", field)


@pytest.mark.parametrize(("field", "value"), [case(pair) for pair in TOWER])
def test_a_tower_in_a_folder_of_its_own(original, edited, field, value):
    file = original / checkpoints.CLIP / "config.json"
    edited(file, "vision_config", field, value)
    refused(original, f"{file}: vision_config: ", field)


@pytest.mark.parametrize("value", [None, [], "ViT-L/14", 3])
def test_a_tower_without_sizes(original, edited, value):
    file = original / checkpoints.CLIP / "config.json"
    edited(file, None, "vision_config", value)
    refused(original, f"{file}: vision_config must be an object")


def test_a_tower_alone(tmp_path):
    """CLIP's vision half as a model of its own has its sizes at the top."""
    checkpoints.write_original(tmp_path, "safetensors", tower=False, mm_vision_tower="clip")
    checkpoints.write_clip(tmp_path / "clip", full=False)
    file = tmp_path / "clip" / "config.json"
    checkpoints.edit_json(file, num_attention_heads=5)
    refused(
        tmp_path, f"{file}: hidden_size must be a multiple of num_attention_heads, got 32 and 5"
    )


def test_a_config_that_is_no_object(original, edited):
    edited(original / "config.json", None, "model_type", "llava")
    (original / "config.json").write_text("[1]")
    refused(original, f"{original}/config.json must hold")


@pytest.mark.parametrize("name", ["llava-v1.5-7b", "llava-v1.6-vicuna-7b", "llava-1.5-7b-hf",
                                  "llava-v1.6-vicuna-7b-hf"])  # fmt: skip
def test_published_configs_pass(name):
    check_config(checkpoints.published_config(name), "config.json")


def test_the_published_towers_config_passes():
    clip = checkpoints.published_config("clip-vit-large-patch14-336")
    check_vision_config(clip["vision_config"], "config.json")
