"""Weights and inputs of the recorded runs of decoder methods, from a seed, with numpy alone.

Standard normal float32 draws of PCG64 in a fixed order: embedding; of each layer its norm, q, k, v,
o, second norm, gate, up, down; final norm; head; inputs; the decoded token; one direction that all
visual tokens share. VScan's tower, projector and pixels come of a second stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy import float32
from numpy.typing import NDArray

Array = NDArray[np.float32]

VOCAB = 32
WIDTH, INNER, LAYERS, HEADS, SIZE, PATCH = 32, 64, 24, 4, 336, 14
#: VScan's tower, as transformers' CLIPVisionConfig takes it.
CLIP: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": SIZE,
    "patch_size": PATCH,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


class Decoder(NamedTuple):
    """Weights by their names below `model.`, the prompt (1, n, d), one more token (1, 1, d)."""

    weights: dict[str, Array]
    embeds: Array
    following: Array


class Vision(NamedTuple):
    """Weights of tower and projector, by their names below `model.`; pixels (1, 3, 336, 336)."""

    weights: dict[str, Array]
    pixels: Array


def draws(seed: int) -> Callable[..., Array]:
    rng = np.random.default_rng(seed)
    return lambda *shape: rng.standard_normal(shape, dtype=float32)


def decoder(case: Mapping[str, Any]) -> Decoder:
    """The decoder and the inputs of a case."""
    width, inner = case["hidden"], case["intermediate"]
    keys = case.get("kv_heads", case["heads"]) * (width // case["heads"])
    draw, std, attention = draws(case["seed"]), float32(case["std"]), float32(case["qk_std"])
    weights = {"embed_tokens.weight": std * draw(VOCAB, width)}
    for layer in range(case["layers"]):
        for name, scale, shape in (
            ("input_layernorm", 0, (width,)),
            ("self_attn.q_proj", attention, (width, width)),
            ("self_attn.k_proj", attention, (keys, width)),
            ("self_attn.v_proj", std, (keys, width)),
            ("self_attn.o_proj", std, (width, width)),
            ("post_attention_layernorm", 0, (width,)),
            ("mlp.gate_proj", std, (inner, width)),
            ("mlp.up_proj", std, (inner, width)),
            ("mlp.down_proj", std, (width, inner)),
        ):
            drawn = draw(*shape)
            value = scale * drawn if scale else 1 + float32(0.1) * drawn
            weights[f"layers.{layer}.{name}.weight"] = value
    weights["norm.weight"] = 1 + float32(0.1) * draw(width)
    draw(VOCAB, width)  # the head, which no test needs
    first, visual = case["prefix"], case["visual"]
    embeds = draw(1, first + visual + case["text"], width)
    following, shared = draw(1, 1, width), draw(width)
    image = slice(first, first + visual)
    embeds[:, image] = float32(case["visual_scale"]) * embeds[:, image] + float32(0.5) * shared
    return Decoder(weights, embeds, following)


def vision(case: Mapping[str, Any]) -> Vision:
    """What VScan's cases have in front of the decoder. Tower parameters in the order of names."""
    draw, width = draws(case["seed"] + 10_000), case["hidden"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (WIDTH,),
        "embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
        "embeddings.position_embedding.weight": ((SIZE // PATCH) ** 2 + 1, WIDTH),
    }
    linear = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in ("q", "k", "v", "out")}
    linear |= {"mlp.fc1": (INNER, WIDTH), "mlp.fc2": (WIDTH, INNER)}
    norms = ["pre_layrnorm", "post_layernorm"]
    for layer in range(LAYERS):
        below = f"encoder.layers.{layer}."
        norms += [f"{below}layer_norm1", f"{below}layer_norm2"]
        for name, shape in linear.items():
            shapes |= {f"{below}{name}.weight": shape, f"{below}{name}.bias": shape[:1]}
    shapes |= {f"{name}.{kind}": (WIDTH,) for name in norms for kind in ("weight", "bias")}
    weights = {}
    for name in sorted(shapes):
        drawn = draw(*shapes[name])
        if name.endswith("bias"):
            drawn = float32(0.02) * drawn
        elif "norm" in name:
            drawn = 1 + float32(0.1) * drawn
        else:
            attends = "q_proj" in name or "k_proj" in name
            drawn = float32(case["tower_qk" if attends else "tower_std"]) * drawn
        weights[f"vision_tower.vision_tower.{name}"] = drawn
    for name, shape in (("0", (width, WIDTH)), ("2", (width, width))):
        weights[f"mm_projector.{name}.weight"] = float32(0.2) * draw(*shape)
        weights[f"mm_projector.{name}.bias"] = float32(0.02) * draw(width)
    side = SIZE // PATCH
    pixels = draw(1, 3, SIZE, SIZE)
    pixels += float32(1.5) * draw(3, side, side).repeat(PATCH, 1).repeat(PATCH, 2)
    return Vision(weights, pixels)
