"""From pixels and token ids to the embeddings of a prompt and the layout that describes them."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig

from ..pruning.base import Pruner
from ..pruning.cost import TowerShape
from ..pruning.layout import TokenLayout
from ..pruning.methods.dense import Dense
from ..pruning.vision import VisionFeatures
from .context import demand_context
from .encoding import (
    adapted_tokens,
    best_tokens,
    demand_whole_pictures,
    execution_device,
    read_pictures,
    reduce_views,
    reduced_tokens,
)
from .image_tokens import check_ids
from .multimodal_encoder.clip_encoder import CLIPVisionTower
from .multimodal_projector.builder import build_vision_projector
from .senna import TokenAdapter
from .splicing import EmbeddedPrompt, count_images, embed_samples, splice, unpadded
from .tiles import EncodedImage, spans


class LlavaMetaModel:
    """Vision tower, projector and, in Senna, token adapter beside a language model."""

    config: Any
    vision_tower: CLIPVisionTower | None
    mm_projector: nn.Module | None
    image_newline: nn.Parameter | None
    img_adapter: TokenAdapter | None

    def build_vision(self, config: Any) -> None:
        """Make the modules that the config describes; a config without a tower stays text-only.

        Raises ValueError when the token adapter is for another number of patches.
        """
        self.vision_tower = self.mm_projector = self.image_newline = self.img_adapter = None
        if config.mm_vision_config is None:
            return
        vision = CLIPVisionConfig(**config.mm_vision_config)
        vision._attn_implementation = config._attn_implementation
        self.vision_tower = CLIPVisionTower(
            vision, config.mm_vision_select_layer, config.mm_vision_select_feature
        )
        self.mm_projector = build_vision_projector(
            config.mm_projector_type, vision.hidden_size, config.hidden_size
        )
        if "unpad" in config.mm_patch_merge_type:
            width = config.hidden_size
            self.image_newline = nn.Parameter(torch.randn(width) / sqrt(width))
        if config.mm_token_adapter is not None:
            self.img_adapter = TokenAdapter(*config.mm_token_adapter)
            patches = self.vision_tower.grid**2
            if self.img_adapter.before != patches:
                raise ValueError(
                    f"the token adapter takes {self.img_adapter.before} tokens a view, but the "
                    f"vision tower gives {patches}: name the tower that the checkpoint was trained "
                    "with (--vision-tower; Senna: openai/clip-vit-large-patch14-336)"
                )

    def get_vision_tower(self) -> CLIPVisionTower | None:
        return self.vision_tower

    def tower_shape(self) -> TowerShape | None:
        """Sizes of the vision tower, None without one."""
        tower = self.vision_tower
        if tower is None:
            return None
        heads = tower.config.num_attention_heads
        return TowerShape(tower.run_layers, tower.config.hidden_size, heads, tower.grid**2)


class LlavaMetaForCausalLM:
    """The multimodal half of the causal language model."""

    config: Any
    device: torch.device

    def get_model(self) -> Any:
        raise NotImplementedError

    def get_vision_tower(self) -> CLIPVisionTower | None:
        return self.get_model().get_vision_tower()

    def encode_images(
        self,
        images: Tensor | list[Tensor],
        image_sizes: list[tuple[int, int]] | None = None,
        *,
        pruner: Pruner | None = None,
        groups: Sequence[int] | None = None,
        visual_token_num: int | None = None,
    ) -> list[EncodedImage]:
        """Encode preprocessed images into the tokens the decoder gets.

        images: (images, 3, h, w); of a model that tiles, a list of (views, 3, h, w).
        image_sizes: (width, height) of the original pictures. For models that pad to a square it
            tells which patches are padding; for those that tile, which tile is where.
        pruner: may look into the tower and reduce there.
        groups: how many images each sample of the batch has; None for one each.
        visual_token_num: keep only that many patches per image, those with the highest CLS
            attention, in order (an upper bound: more than there are changes nothing). Newlines of
            tiled pictures are no patches; they go where a patch has to.

        Raises ValueError when the model has no vision tower, the counts disagree, a bound meets
        a method that works on all patches, or either of these a model whose adapter mixes patches.
        """
        tower = self.get_vision_tower()
        if tower is None:
            raise ValueError("this checkpoint has no vision tower (mm_vision_tower in config.json)")
        if visual_token_num is not None and visual_token_num < 1:
            raise ValueError(f"visual_token_num must be at least 1, got {visual_token_num}")
        model, pruner = self.get_model(), Dense() if pruner is None else pruner
        pictures = read_pictures(images, image_sizes, self.config, tower)
        bound = visual_token_num
        if bound is not None and bound >= pictures.most_patches:
            bound = None
        if model.img_adapter is not None:
            return adapted_tokens(model, pictures, pruner, bound)
        groups = [1] * len(images) if groups is None else groups
        views = reduce_views(tower, pictures, pruner, groups, bound)
        if isinstance(views, VisionFeatures):
            cls = views.cls if bound is not None or pruner.needs_cls else None
            return best_tokens(model, pictures, views, cls, bound)
        demand_whole_pictures(pruner.method, pictures, bound, self.config.mm_patch_merge_type)
        return reduced_tokens(model, pictures, views)

    def embed_prompt(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        images: Tensor | list[Tensor] | None,
        image_sizes: list[tuple[int, int]] | None = None,
        *,
        pruner: Pruner | None = None,
        visual_token_num: int | None = None,
        labels: Tensor | None = None,
    ) -> EmbeddedPrompt:
        """Embed prompts and put each image's tokens in place of its IMAGE_TOKEN_INDEX.

        input_ids: (batch, n); attention_mask: (batch, n), 0 on padding, which may be on either
        side. Samples may have any number of images, none included; `images` holds those of the
        whole batch in order. The result is left-padded.

        Raises ValueError when placeholders and images differ in number, and PromptError for a
        prompt beyond the context of the model (see `context`) or with a token it does not embed.
        """
        table = self.get_model().embed_tokens
        rows = unpadded(input_ids, attention_mask)
        check_ids(rows, len(table.weight))
        counts = count_images(rows, 0 if images is None else len(images))
        encoded: list[EncodedImage] = []
        if sum(counts):
            encoded = self.encode_images(
                images,
                image_sizes,
                pruner=pruner,
                groups=counts,
                visual_token_num=visual_token_num,
            )
        targets = [None] * len(rows) if labels is None else unpadded(labels, attention_mask)
        samples = [
            splice(row, encoded[part], target)
            for row, part, target in zip(rows, spans(counts), targets)
        ]
        layout = TokenLayout.from_segments(
            [sample.segments for sample in samples], execution_device(table)
        )
        # Before anything is embedded, since a text beyond the context may need any memory.
        demand_context(layout.lengths, layout.n_visual, self.config)
        return embed_samples(samples, layout, table)
