"""The CLIP vision tower: patch features of one layer and, on request, the CLS token's attention.

The tower runs stock transformers CLIP layers up to the layer whose output LLaVA uses (-2: the
last layer and its norm never run). Attention of the CLS token is computed for that one row from
the last layer that ran, beside whatever attention backend it uses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel


@dataclass(frozen=True)
class VisionFeatures:
    """patches (images, p, d) of the selected layer; cls (images, p) float32 or None: attention of
    the CLS token to each patch, averaged over heads, softmaxed over CLS and patches."""

    patches: Tensor
    cls: Tensor | None


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
                f"mm_vision_select_layer {select_layer} of a tower with {layers} layers"
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

    def forward(self, images: Tensor, with_cls: bool = False) -> VisionFeatures:
        """Encode `images` (images, 3, h, w), already normalised; features in the tower's dtype."""
        tower = self.inner
        hidden = tower.pre_layrnorm(tower.embeddings(images.to(self.dtype)))
        layers = tower.encoder.layers[: self.run_layers]
        for layer in layers:
            entering, hidden = hidden, layer(hidden, None)
        cls = self._cls_row(layers[-1], entering) if with_cls else None
        return VisionFeatures(hidden[:, 1:], cls)

    @staticmethod
    @torch.no_grad()
    def _cls_row(layer: nn.Module, entering: Tensor) -> Tensor:
        attention = layer.self_attn
        hidden = layer.layer_norm1(entering)
        query = attention.q_proj(hidden[:, :1]).unflatten(-1, (-1, attention.head_dim))
        keys = attention.k_proj(hidden).unflatten(-1, (-1, attention.head_dim))
        scores = torch.einsum("bqhd,bnhd->bhqn", query.float(), keys.float()) * attention.scale
        return scores.softmax(-1)[:, :, 0, 1:].mean(1)
