"""What the small models share: their architecture in transformers' terms, and where patches are.

A CLIP tower on 24 x 24 patches of 336 x 336 pixels and a Llama decoder, as in LLaVA-1.5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig

from llava.train.items import GRID, IMAGE_SIZE, PATCH_SIZE

SELECT_LAYER = -2  # as in LLaVA-1.5: the tower's last layer does not reach the language model


class Sizes:
    """Configs of a model whose sizes are the fields of a subclass."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    vision_hidden_size: int
    vision_intermediate_size: int
    vision_layers: int
    vision_heads: int
    max_positions: int

    def vision_config(self) -> CLIPVisionConfig:
        return CLIPVisionConfig(
            hidden_size=self.vision_hidden_size,
            intermediate_size=self.vision_intermediate_size,
            num_hidden_layers=self.vision_layers,
            num_attention_heads=self.vision_heads,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            projection_dim=self.vision_hidden_size,
            hidden_act="quick_gelu",
        )

    def decoder_values(self) -> dict[str, Any]:
        """Keyword arguments for a `LlamaConfig` or what is derived from it."""
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }


def sine_positions(width: int, lowest: float, size: float) -> Tensor:
    """Two-dimensional sine positions (GRID * GRID, width), half of the channels for each axis.

    lowest: logarithm of the lowest frequency, the highest being 1. size: amplitude.
    """
    quarter = width // 4
    frequencies = torch.exp(torch.linspace(0, lowest, quarter))
    angles = torch.arange(GRID)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1) * size
    rows = axis[:, None].expand(GRID, GRID, -1)
    columns = axis[None].expand(GRID, GRID, -1)
    table = torch.zeros(GRID * GRID, width)
    table[:, : 4 * quarter] = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    return table
