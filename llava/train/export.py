"""Write a trained `DemoModel` as a checkpoint folder in the original LLaVA-1.5 format.

Unlike the published checkpoints, the folder brings its vision tower along, in the sub-folder
`vision_tower` that `mm_vision_tower` names, laid out like `openai/clip-vit-large-patch14-336`.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from llava.train.architecture import SELECT_LAYER, Sizes
from llava.train.items import IMAGE_SIZE, PATCH_SIZE
from llava.train.model import DemoModel, Shape
from llava.train.tokenizer import write_tokenizer

VISION_FOLDER = "vision_tower"


def export(model: DemoModel, tokenizer_model: bytes, folder: Path) -> None:
    """Write config, float16 weights, tokenizer and vision tower; existing files are replaced.

    Args:
        model: the trained model; the auxiliary heads are left out.
        tokenizer_model: the sentencepiece model file.
        folder: destination, made if missing.
    """
    shape = model.shape
    write_tokenizer(folder, tokenizer_model, shape.max_positions)
    _write_json(folder / "config.json", llava_config(shape))
    _write_json(folder / "generation_config.json", _generation_config(shape))
    weights = dict(model.decoder.state_dict())
    for name, tensor in model.projector.state_dict().items():
        weights[f"model.mm_projector.{name}"] = tensor
    _write_weights(folder / "model.safetensors", weights)

    tower = folder / VISION_FOLDER
    tower.mkdir(exist_ok=True)
    _write_json(tower / "config.json", _vision_config(shape))
    _write_json(tower / "preprocessor_config.json", _preprocessor_config())
    vision = {f"vision_model.{name}": tensor for name, tensor in model.tower.state_dict().items()}
    _write_weights(tower / "model.safetensors", vision)


def llava_config(shape: Sizes) -> dict[str, object]:
    """`config.json`: the keys of liuhaotian/llava-v1.5-7b with other sizes."""
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "freeze_mm_mlp_adapter": False,
        "freeze_mm_vision_resampler": False,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "image_aspect_ratio": "pad",
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_length": shape.max_positions,
        "max_position_embeddings": shape.max_positions,
        "mm_hidden_size": shape.vision_hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": SELECT_LAYER,
        "mm_vision_tower": VISION_FOLDER,
        "model_type": "llava_llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.heads,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "tune_mm_mlp_adapter": False,
        "tune_mm_vision_resampler": False,
        "unfreeze_mm_vision_tower": False,
        "use_cache": True,
        "use_mm_proj": True,
        "vocab_size": shape.vocab_size,
    }


def _generation_config(shape: Shape) -> dict[str, object]:
    return {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "max_length": shape.max_positions,
        "pad_token_id": 0,
    }


def _vision_config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["CLIPVisionModel"],
        "attention_dropout": 0.0,
        "hidden_act": "quick_gelu",
        "hidden_size": shape.vision_hidden_size,
        "image_size": IMAGE_SIZE,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": shape.vision_intermediate_size,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": shape.vision_heads,
        "num_channels": 3,
        "num_hidden_layers": shape.vision_layers,
        "patch_size": PATCH_SIZE,
        "projection_dim": shape.vision_hidden_size,
        "torch_dtype": "float16",
    }


def _preprocessor_config() -> dict[str, object]:
    return {
        "crop_size": IMAGE_SIZE,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": OPENAI_CLIP_MEAN,
        "image_std": OPENAI_CLIP_STD,
        "resample": 3,
        "size": IMAGE_SIZE,
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    half = {name: tensor.to("cpu", torch.float16).contiguous() for name, tensor in weights.items()}
    save_file(half, path, metadata={"format": "pt"})
