"""Weights, pixels and prompt of the recorded runs of vision-side methods, from a seed.

numpy's legacy RandomState: the same numbers everywhere.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

WIDTH, HEADS, LAYERS, INTER, IMAGE, PATCH = 64, 16, 24, 128, 336, 14
VOCAB, PREFIX, TEXT = 50, 35, 20


def normal(seed: int, name: str, *shape: int) -> Array:
    """float64 numbers that depend on the seed and the name alone."""
    return np.random.RandomState([seed, zlib.crc32(name.encode())]).standard_normal(shape)


def tower(seed: int) -> dict[str, Array]:
    """float32 arrays under transformers 4's CLIPVisionModel names (without `vision_model.`)."""
    w = WIDTH
    weights: dict[str, Array] = {}

    def put(name: str, scale: float, *shape: int, plus: float = 0.0) -> None:
        weights[name] = (plus + scale * normal(seed, name, *shape)).astype(np.float32)

    put("embeddings.class_embedding", 1.0, w)
    put("embeddings.patch_embedding.weight", 1.5 / 588**0.5, w, 3, PATCH, PATCH)
    put("embeddings.position_embedding.weight", 0.5, (IMAGE // PATCH) ** 2 + 1, w)
    for norm in ("pre_layrnorm", "post_layernorm"):
        put(norm + ".weight", 0.1, w, plus=1.0)
        put(norm + ".bias", 0.1, w)
    for i in range(LAYERS):
        p = f"encoder.layers.{i}."
        for norm in ("layer_norm1", "layer_norm2"):
            put(p + norm + ".weight", 0.1, w, plus=1.0)
            put(p + norm + ".bias", 0.1, w)
        for name, gain in (("q_proj", 1.6), ("k_proj", 1.6), ("v_proj", 0.5), ("out_proj", 0.5)):
            put(p + f"self_attn.{name}.weight", gain / w**0.5, w, w)
            put(p + f"self_attn.{name}.bias", 0.05, w)
        put(p + "mlp.fc1.weight", 1 / w**0.5, INTER, w)
        put(p + "mlp.fc1.bias", 0.05, INTER)
        put(p + "mlp.fc2.weight", 0.5 / INTER**0.5, w, INTER)
        put(p + "mlp.fc2.bias", 0.05, w)
    return weights


def pixels(seed: int, views: int) -> Array:
    """(views, 3, 336, 336) float32: 28-pixel squares of one colour and noise."""
    colours = []
    for view in range(views):
        flat = normal(seed, f"flat{view}", 3, IMAGE // 28, IMAGE // 28)
        colours.append(
            np.kron(flat, np.ones((1, 28, 28)))
            + 0.5 * normal(seed, f"noise{view}", 3, IMAGE, IMAGE)
        )
    return np.stack(colours).astype(np.float32)


def embed_tokens(seed: int) -> Array:
    return normal(seed, "embed_tokens", VOCAB, WIDTH).astype(np.float32)


def ids() -> list[int]:
    """35 ids, the image placeholder -200, 20 ids."""
    return (
        [1] + [3 + i % 40 for i in range(PREFIX - 1)] + [-200] + [5 + i % 37 for i in range(TEXT)]
    )


def decoder(seed: int, layers: int, hidden: int = WIDTH, inter: int = 96) -> dict[str, Array]:
    weights: dict[str, Array] = {}

    def put(name: str, scale: float, *shape: int, plus: float = 0.0) -> None:
        weights[name] = (plus + scale * normal(seed, "llm." + name, *shape)).astype(np.float32)

    put("embed_tokens.weight", 1.0, VOCAB, hidden)
    for i in range(layers):
        p = f"layers.{i}."
        for name, gain in (("q_proj", 1.3), ("k_proj", 1.3), ("v_proj", 0.5), ("o_proj", 0.5)):
            put(p + f"self_attn.{name}.weight", gain / hidden**0.5, hidden, hidden)
        put(p + "mlp.gate_proj.weight", 1 / hidden**0.5, inter, hidden)
        put(p + "mlp.up_proj.weight", 1 / hidden**0.5, inter, hidden)
        put(p + "mlp.down_proj.weight", 0.5 / inter**0.5, hidden, inter)
        put(p + "input_layernorm.weight", 0.1, hidden, plus=1.0)
        put(p + "post_attention_layernorm.weight", 0.1, hidden, plus=1.0)
    put("norm.weight", 0.1, hidden, plus=1.0)
    return weights
