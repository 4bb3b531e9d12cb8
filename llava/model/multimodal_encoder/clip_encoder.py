"""The CLIP vision tower: features of one layer and, on request, queries and keys inside it.

The tower runs stock transformers CLIP layers up to the layer whose output LLaVA uses (-2: the
last layer and its norm never run). What pruning methods look at, the CLS token's query and all
keys of a few layers, is computed beside whatever attention backend the layers use. A method that
merges tokens inside the tower gets our own order of a layer's stock parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from ...pruning.vision import Probe, TowerRun, VisionFeatures


class CLIPVisionTower(nn.Module):
    """CLIP's vision model as LLaVA uses it.

    Raises ValueError for a layer that the tower does not have or a feature other than "patch".
    """

    def __init__(self, config: CLIPVisionConfig, select_layer: int, select_feature: str) -> None:
        super().__init__()
        if select_feature != "patch":
            raise ValueError(f"mm_vision_select_feature must be 'patch', got {select_feature!r}")
        layers = config.num_hidden_layers
        # Index into the hidden states: 0 is the embedding, i the output of layer i - 1.
        self.run_layers = select_layer if select_layer >= 0 else layers + 1 + select_layer
        if not 1 <= self.run_layers <= layers:
            raise ValueError(
                f"mm_vision_select_layer {select_layer} (llava-hf: vision_feature_layer) of a "
                f"tower with {layers} layers"
            )
        self.vision_tower = CLIPVisionModel(config)

    @property
    def inner(self) -> nn.Module:
        """The module with `embeddings` and `encoder`; early transformers 5 nests it one deeper."""
        return getattr(self.vision_tower, "vision_model", self.vision_tower)

    @property
    def config(self) -> CLIPVisionConfig:
        return self.vision_tower.config

    @property
    def dtype(self) -> torch.dtype:
        return self.inner.embeddings.patch_embedding.weight.dtype

    @property
    def grid(self) -> int:
        """Patches along one side of the (square) input."""
        return self.config.image_size // self.config.patch_size

    def forward(self, images: Tensor, probe: Sequence[int] = ()) -> VisionFeatures:
        """Encode `images` (images, 3, h, w), already normalised; features in the tower's dtype.

        probe: indices of layers to look into, 0 .. `run_layers`; the last of these does not run,
            its input are the features themselves. ~index: with the queries of all tokens.

        Raises ValueError for a layer that the tower does not have.
        """
        layers, probes = self.inner.encoder.layers, {}
        if max(probe, default=0) >= len(layers):
            raise ValueError(
                f"the method looks into layer {max(probe)} of a vision tower with "
                f"{len(layers)} layers; with mm_vision_select_layer -1 nothing follows the features"
            )
        hidden = self._embed(images)
        for index in range(self.run_layers):
            if index in probe:
                probes[index] = _probe(layers[index], hidden)
            if ~index in probe:
                probes[~index] = _probe(layers[index], hidden, every=True)
            hidden = layers[index](hidden, None)
        if self.run_layers in probe:
            probes[self.run_layers] = _probe(layers[self.run_layers], hidden)
        return VisionFeatures(hidden[:, 1:], hidden[:, 0], self.run_layers, probes)

    def merge(self, images: Tensor, run: TowerRun) -> VisionFeatures:
        """Encode `images` while `run` merges their tokens between attention and MLP of each layer.

        Raises ValueError when `run` weighs attention and the backend cannot.
        """
        hidden = self._embed(images)
        for index, layer in enumerate(self.inner.encoder.layers[: self.run_layers]):
            normed, bias = layer.layer_norm1(hidden), run.bias()
            if bias is not None:
                backend = self.config._attn_implementation
                if backend not in ("sdpa", "eager"):
                    raise ValueError(
                        f"merged tokens weigh as many as they are, which {backend} cannot do: "
                        "load the model with attn_implementation='sdpa'"
                    )
                bias = bias.to(normed.dtype)
            hidden = hidden + layer.self_attn(normed, attention_mask=bias)[0]
            keys = _heads(layer.self_attn, layer.self_attn.k_proj(normed))
            hidden = run.after_attention(index, hidden, keys)
            hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
        return VisionFeatures(hidden[:, 1:], hidden[:, 0], self.run_layers, patch=run.patch())

    def _embed(self, images: Tensor) -> Tensor:
        return self.inner.pre_layrnorm(self.inner.embeddings(images.to(self.dtype)))


@torch.no_grad()
def _probe(layer: nn.Module, entering: Tensor, every: bool = False) -> Probe:
    attention, hidden = layer.self_attn, layer.layer_norm1(entering)
    if every:
        query = _heads(attention, attention.q_proj(hidden))
    else:
        query = attention.q_proj(hidden[:, 0]).unflatten(-1, (-1, attention.head_dim))
    return Probe(query, _heads(attention, attention.k_proj(hidden)))


def _heads(attention: nn.Module, projected: Tensor) -> Tensor:
    """(images, n, d) as (images, heads, n, head_dim)."""
    return projected.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
