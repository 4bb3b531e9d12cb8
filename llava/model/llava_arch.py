"""From pixels and token ids to the embeddings of a prompt and the layout that describes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig

from ..constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from ..mm_utils import letterbox_mask
from ..pruning.base import Pruner
from ..pruning.cost import TowerShape
from ..pruning.layout import Segment, TokenLayout
from ..pruning.methods.dense import Dense
from ..pruning.vision import Reduced, TowerRun, VisionFeatures
from .context import demand_context
from .image_tokens import check_ids
from .multimodal_encoder.clip_encoder import CLIPVisionTower
from .multimodal_projector.builder import build_vision_projector
from .senna import TokenAdapter, demand_mixed_tokens
from .tiles import (
    ImageTokens,
    Tiling,
    best,
    in_order,
    nested,
    of_reduced,
    project_together,
    spans,
    stack_views,
    tilings,
)


@dataclass(frozen=True)
class Prompt:
    """embeds (batch, n, d), left-padded; the layout of its tokens; labels (batch, n) or None."""

    embeds: Tensor
    layout: TokenLayout
    labels: Tensor | None = None


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
    ) -> list[ImageTokens]:
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
        pixels, views = stack_views(images)
        if image_sizes is not None and len(image_sizes) != len(images):
            raise ValueError(f"{len(images)} images but {len(image_sizes)} image_sizes")
        groups = [1] * len(images) if groups is None else groups
        each, tiled = tower.grid**2, None
        if views is not None:
            tiled = tilings(self.config, tower.grid, tower.config.image_size, views, image_sizes)
        counts = [each] * len(images) if tiled is None else [one.patches for one in tiled]
        bounded = visual_token_num is not None and visual_token_num < max(counts, default=0)
        if self.get_model().img_adapter is not None:
            return self._adapted(pixels, pruner, visual_token_num if bounded else each)
        made, features = self._reduce(pixels, pruner, nested(groups, views), bounded, tiled)
        if made is not None and bounded:
            raise ValueError(
                f"method {pruner.method} chooses among all {max(counts)} patches itself: "
                f"leave visual_token_num {visual_token_num} out"
            )
        model = self.get_model()
        like, newline = model.embed_tokens.weight, model.image_newline
        if made is not None:
            projected = project_together(model.mm_projector, [r.features for r in made], like)
            if tiled is not None:
                parts = spans(views)
                return [of_reduced(t, made[p], projected[p]) for t, p in zip(tiled, parts)]
        else:
            needed = bounded or (pruner is not None and pruner.needs_cls)
            cls = features.cls if needed else None
            if tiled is not None:
                rows = model.mm_projector(features.patches.to(like.dtype))
                return [
                    in_order(
                        *(tiling, rows[part], None if cls is None else cls[part]),
                        *(newline, visual_token_num),
                    )
                    for tiling, part in zip(tiled, spans(views))
                ]
            made = best(features, cls, visual_token_num if bounded else None)
            projected = project_together(model.mm_projector, [r.features for r in made], like)

        padded = self.config.image_aspect_ratio == "pad" and image_sizes is not None
        bound = visual_token_num if bounded else each
        result = []
        for i, (image, embeds) in enumerate(zip(made, projected)):
            patch, box = image.patch.to(embeds.device), None
            if padded:
                # the CLS token, should a method keep it, is nowhere on the picture
                box = torch.cat([letterbox_mask(image_sizes[i], tower.grid), torch.tensor([False])])
                box = box.to(embeds.device)[patch]
            result.append(ImageTokens(embeds, patch, image.scores, box, bound))
        return result

    def _adapted(self, pixels: Tensor, pruner: Pruner | None, bound: int) -> list[ImageTokens]:
        """The tokens that a token adapter makes of each image; see `senna`."""
        model, tower = self.get_model(), self.get_vision_tower()
        adapter = model.img_adapter
        if pruner is not None:
            demand_mixed_tokens(pruner, adapter)
        if bound < tower.grid**2:
            raise ValueError(
                f"visual_token_num {bound} drops patches, but the token adapter takes all "
                f"{adapter.before} of a view: leave it out, or give {adapter.before}"
            )
        features = tower(pixels.to(_device(tower.inner.embeddings.patch_embedding))).patches
        weight = model.embed_tokens.weight
        made = adapter(model.mm_projector(features.to(weight.dtype)))
        number = torch.arange(adapter.after, device=made.device)
        return [
            ImageTokens(embeds, number, None, None, adapter.after, mixed=True) for embeds in made
        ]

    def _reduce(
        self,
        pixels: Tensor,
        pruner: Pruner | None,
        groups: Sequence[Sequence[int]],
        bounded: bool,
        tiled: Sequence[Tiling] | None,
    ) -> tuple[list[Reduced] | None, VisionFeatures | None]:
        """What the method leaves of each view (None: everything), and what the tower gave of all.

        Raises ValueError for a reduction of views whose borders are cut off afterwards.
        """
        tower = self.get_vision_tower()
        pixels = pixels.to(_device(tower.inner.embeddings.patch_embedding))
        pruner = Dense() if pruner is None else pruner
        runs = pruner.tower_runs(groups, tower.grid**2, tower.run_layers)
        if runs is None:
            probe = pruner.tower_layers(tower.run_layers)
            last = tower.run_layers - 1
            features = tower(pixels, probe=(*probe, last) if bounded else probe)
            if tiled is not None:
                features = replace(features, grids=tuple((t.down, t.across) for t in tiled))
            made = pruner.reduce(features, groups)
        else:
            made, features = _merge(tower, pixels, runs), None
        if made is not None and tiled is not None and "unpad" in self.config.mm_patch_merge_type:
            raise ValueError(
                f"method {pruner.method} chooses patches inside the tiles, before their borders "
                f"are cut off (mm_patch_merge_type {self.config.mm_patch_merge_type!r}), and would "
                "miss its budget: load the model with merge_type 'spatial' (--merge-type spatial)"
            )
        return made, features

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
    ) -> Prompt:
        """Embed prompts and put each image's tokens in place of its IMAGE_TOKEN_INDEX.

        input_ids: (batch, n); attention_mask: (batch, n), 0 on padding, which may be on either
        side. Samples may have any number of images, none included; `images` holds those of the
        whole batch in order. The result is left-padded.

        Raises ValueError when placeholders and images differ in number, and PromptError for a
        prompt beyond the context of the model (see `context`) or with a token it does not embed.
        """
        model = self.get_model()
        device = _device(model.embed_tokens)
        ids = input_ids.to("cpu")
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask.to("cpu")
        rows = [row[m.bool()] for row, m in zip(ids, mask)]
        check_ids(rows, len(model.embed_tokens.weight))
        wanted = sum(int((row == IMAGE_TOKEN_INDEX).sum()) for row in rows)
        given = 0 if images is None else len(images)
        if wanted != given:
            raise ValueError(
                f"the prompts have {wanted} image placeholders, but {given} images came"
            )
        encoded: list[ImageTokens] = []
        if given:
            encoded = self.encode_images(
                images,
                image_sizes,
                pruner=pruner,
                groups=[int((row == IMAGE_TOKEN_INDEX).sum()) for row in rows],
                visual_token_num=visual_token_num,
            )

        samples, mixed, targets = [], [], []
        next_image = 0
        for i, row in enumerate(rows):
            runs, parts, target = [], [], []
            own = None if labels is None else labels[i].to("cpu")[mask[i].bool()]
            slots = (row == IMAGE_TOKEN_INDEX).nonzero()[:, 0].tolist()
            for image, (start, end) in enumerate(zip([-1, *slots], [*slots, len(row)])):
                if image > 0:
                    tokens = encoded[next_image]
                    next_image += 1
                    runs.append(tokens.segment(image - 1))
                    parts.append(tokens.embeds.to(device))
                    target.append(torch.full((len(tokens.embeds),), IGNORE_INDEX))
                text = row[start + 1 : end]
                if len(text):
                    runs.append(Segment(len(text)))
                    parts.append(text)
                    if own is not None:
                        target.append(own[start + 1 : end])
            samples.append(runs)
            mixed.append(parts)
            targets.append(torch.cat(target) if target else None)

        layout = TokenLayout.from_segments(samples, device)
        demand_context(layout.lengths, layout.n_visual, self.config)

        def embedded(part: Tensor) -> Tensor:
            return part if part.is_floating_point() else model.embed_tokens(part.to(device))

        # Only now, since a text beyond the context may need any amount of memory.
        pieces = [torch.cat([embedded(part) for part in parts]) for parts in mixed]
        embeds = torch.stack([_left_pad(piece, layout.n, 0) for piece in pieces])
        if labels is not None:
            labels = torch.stack([_left_pad(t, layout.n, IGNORE_INDEX) for t in targets])
            labels = labels.to(device)
        return Prompt(embeds, layout, labels)


def _merge(tower: CLIPVisionTower, pixels: Tensor, runs: Sequence[TowerRun]) -> list[Reduced]:
    """Encode each image with its own run, those that share one together."""
    made: list[Reduced | None] = [None] * len(pixels)
    for run in dict.fromkeys(runs):
        own = [i for i, other in enumerate(runs) if other is run]
        features = tower.merge(pixels[own], run)
        for i, image, patch in zip(own, features.patches, features.patch):
            made[i] = Reduced(image, patch)
    return made


def _left_pad(tensor: Tensor, length: int, value: int) -> Tensor:
    missing = length - len(tensor)
    if not missing:
        return tensor
    shape = (missing, *tensor.shape[1:])
    return torch.cat([tensor.new_full(shape, value), tensor])


def _device(module: nn.Module) -> torch.device:
    """Where a module computes: at its weight, or where accelerate takes an offloaded one to."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return module.weight.device if device is None else torch.device(device)
