"""A tiny random Senna checkpoint, written as the published one is, and questions in its format.

Names, shapes of the adapter and the odd vision tower path are upstream's (hustvl/Senna and
rb93dett/Senna); the widths are tiny, but a view has its 576 patches and 128 tokens.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from llava.eval.benchmarks.senna.build import plan_entry
from llava.eval.benchmarks.senna.plan import CAMERAS
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.train.tokenizer import train_tokenizer, write_tokenizer

from . import tiny
from .checkpoints import VISION, original_config, write_json, write_weights

LAYERS = 6
TOWER = "clip"
#: As in the published config.json: a folder of the machine it was trained on.
FOREIGN = "/share/models/clip-vit-large-patch14-336"
ADAPTER = {
    **{f"model.img_adapter.adapter.0.{name}": shape
       for name, shape in (("weight", (128, 576)), ("bias", (128,)))},
    **{f"model.img_adapter.adapter.{layer}.{name}": shape
       for layer in (2, 4) for name, shape in (("weight", (128, 128)), ("bias", (128,)))},
}  # fmt: skip


def model(attn: str = "sdpa", **sizes: Any) -> LlavaLlamaForCausalLM:
    """A random Senna of 16 patches and 8 tokens a view, unless told otherwise."""
    sizes = {"mm_token_adapter": [16, 8], "layers": LAYERS, **sizes}
    return tiny.model(5, attn=attn, **sizes)


@lru_cache(maxsize=1)
def tokenizer() -> bytes:
    words = ["Your current speed is 3 m/s, the plan is KEEP, LEFT_CHANGE <FRONT LEFT VIEW>:"]
    return train_tokenizer(words * 40, 320)


@lru_cache(maxsize=1)
def weights() -> dict[str, Tensor]:
    """Tensors in float16 under LLaVA's names. Not to be changed in place."""
    made = model(mm_token_adapter=[576, 128], image_size=336, layers=3)
    made.resize_token_embeddings(vocabulary())
    nested = VISION.removesuffix("vision_model.")
    return {
        k if k.startswith(VISION) else k.replace(nested, VISION): v.half()
        for k, v in made.state_dict().items()
    }


def vocabulary() -> int:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=tokenizer()).vocab_size()


def write_senna(folder: Path, without: str | None = None, **config: Any) -> Path:
    """The checkpoint, its tower in the folder `clip` beside it, which its config does not know.

    `without` leaves out the tensors with this in their name.
    """
    values = original_config(
        model_type="llava_llama",
        mm_vision_tower=FOREIGN,
        vocab_size=vocabulary(),
        tokenizer_model_max_length=2048,
        **config,
    )
    write_json(folder / "config.json", values)
    write_tokenizer(folder, tokenizer())
    state = {
        name: tensor
        for name, tensor in weights().items()
        if not name.startswith(VISION) and (without is None or without not in name)
    }
    write_weights(folder, state, "bin-shards")
    write_tower(folder.parent / TOWER)
    return folder


def write_tower(folder: Path, image_size: int = 336) -> Path:
    """The vision half of a CLIP checkpoint."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = {name: tiny.vision_config()[name] for name in names}
    config = {
        "model_type": "clip_vision_model",
        "patch_size": 14,
        "image_size": image_size,
        **sizes,
    }
    write_json(folder / "config.json", config)
    state = {
        "vision_model." + name.removeprefix(VISION): tensor.float()
        for name, tensor in weights().items()
        if name.startswith(VISION)
    }
    if image_size != 336:
        name = "vision_model.embeddings.position_embedding.weight"
        state[name] = state[name][: 1 + (image_size // 14) ** 2]
    write_weights(folder, state, "safetensors")
    return folder


def frame(token: str, **changes: Any) -> dict[str, Any]:
    """A frame for `llava.eval.benchmarks.senna.build`: driving straight on at 10 m/s."""
    straight = [(0.0, 5.0 * step) for step in range(1, 7)]
    images = {camera: f"samples/{camera}/{token}.jpg" for camera in CAMERAS}
    return {
        "token": token,
        "images": images,
        "speed": 10.4,
        "trajectory": straight,
        "target": (0.0, 60.0),
        **changes,
    }


def write_questions(folder: Path, count: int = 3) -> Path:
    """`count` plan questions, t0 first, and one of another kind, with the images of all."""
    entries = [plan_entry(frame(f"t{i}")) for i in range(count)]
    other = plan_entry(frame("t0"))
    other["conversations"][0]["value"] = "<image>\nIs there a traffic light?"
    for number, entry in enumerate(entries):
        for view, name in enumerate(entry["images"]):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            colour = (40 * view, 60 * number, 90)
            Image.new("RGB", (64, 36), colour).save(path)
    path = folder / "eval_plan_qa.json"
    path.write_text(json.dumps([other, *entries]))
    return path


def pixels(seed: int, views: int = 6, size: int = 56) -> Tensor:
    return tiny.pixels(seed, views, size)


def prompt(seed: int, views: int = 6, after: int = 7) -> Tensor:
    """Ids of a question about `views` views, with two ids of text between them."""
    return tiny.prompt(seed, after=after, images=views)
