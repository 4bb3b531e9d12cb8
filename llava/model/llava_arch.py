"""From pixels and token ids to the embeddings of a prompt and the layout that describes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig

from ..constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from ..mm_utils import letterbox_mask
from ..pruning.base import Pruner
from ..pruning.layout import Segment, TokenLayout
from .multimodal_encoder.clip_encoder import CLIPVisionTower
from .multimodal_projector.builder import build_vision_projector


@dataclass(frozen=True)
class Prompt:
    """embeds (batch, n, d), left-padded; the layout of its tokens; labels (batch, n) or None."""

    embeds: Tensor
    layout: TokenLayout
    labels: Tensor | None = None


@dataclass(frozen=True)
class ImageTokens:
    """One image as the decoder gets it: embeddings (p, d) and what is known of each token (p,)."""

    embeds: Tensor
    patch: Tensor
    cls: Tensor | None
    letterbox: Tensor | None

    def segment(self, image: int) -> Segment:
        return Segment(len(self.embeds), image, self.patch, self.cls, self.letterbox)


class LlavaMetaModel:
    """Vision tower and projector beside a language model."""

    config: Any
    vision_tower: CLIPVisionTower | None
    mm_projector: nn.Module | None

    def build_vision(self, config: Any) -> None:
        """Make the modules that the config describes; a config without a tower stays text-only."""
        if config.mm_vision_config is None:
            self.vision_tower = self.mm_projector = None
            return
        vision = CLIPVisionConfig(**config.mm_vision_config)
        vision._attn_implementation = config._attn_implementation
        self.vision_tower = CLIPVisionTower(
            vision, config.mm_vision_select_layer, config.mm_vision_select_feature
        )
        self.mm_projector = build_vision_projector(
            config.mm_projector_type, vision.hidden_size, config.hidden_size
        )

    def get_vision_tower(self) -> CLIPVisionTower | None:
        return self.vision_tower


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
        with_cls: bool = False,
        visual_token_num: int | None = None,
    ) -> list[ImageTokens]:
        """Encode preprocessed images (images, 3, h, w) into the tokens the decoder gets.

        image_sizes: (width, height) of the original pictures; for models that pad to a square it
            tells which patches are padding. with_cls: also the CLS token's attention.
        visual_token_num: keep only that many patches per image, those with the highest CLS
            attention, in order (an upper bound: more than there are changes nothing).

        Raises ValueError when the model has no vision tower or the counts disagree.
        """
        tower = self.get_vision_tower()
        if tower is None:
            raise ValueError("this checkpoint has no vision tower (mm_vision_tower in config.json)")
        if visual_token_num is not None and visual_token_num < 1:
            raise ValueError(f"visual_token_num must be at least 1, got {visual_token_num}")
        pixels = torch.stack(list(images)) if isinstance(images, (list, tuple)) else images
        if image_sizes is not None and len(image_sizes) != len(pixels):
            raise ValueError(f"{len(pixels)} images but {len(image_sizes)} image_sizes")
        bounded = visual_token_num is not None and visual_token_num < tower.grid**2
        model = self.get_model()
        pixels = pixels.to(_device(tower.inner.embeddings.patch_embedding))
        features = tower(pixels, with_cls=with_cls or bounded)
        embeds = model.mm_projector(features.patches.to(model.embed_tokens.weight.dtype))

        patches = torch.arange(embeds.shape[1], device=embeds.device)
        padded = self.config.image_aspect_ratio == "pad" and image_sizes is not None
        result = []
        for i, image in enumerate(embeds):
            cls = features.cls[i] if features.cls is not None else None
            box = letterbox_mask(image_sizes[i], tower.grid).to(image.device) if padded else None
            keep = patches
            if bounded:
                order = cls.argsort(dim=0, descending=True, stable=True)
                keep = order[:visual_token_num].sort().values
            result.append(
                ImageTokens(
                    embeds=image[keep],
                    patch=keep,
                    cls=None if cls is None else cls[keep],
                    letterbox=None if box is None else box[keep],
                )
            )
        return result

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

        Raises ValueError when placeholders and images differ in number.
        """
        model = self.get_model()
        device = _device(model.embed_tokens)
        ids = input_ids.to("cpu")
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask.to("cpu")
        rows = [row[m.bool()] for row, m in zip(ids, mask)]
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
                with_cls=pruner is not None and pruner.needs_cls,
                visual_token_num=visual_token_num,
            )

        samples, pieces, targets = [], [], []
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
                    parts.append(model.embed_tokens(text.to(device)))
                    if own is not None:
                        target.append(own[start + 1 : end])
            samples.append(runs)
            pieces.append(torch.cat(parts))
            targets.append(torch.cat(target) if target else None)

        layout = TokenLayout.from_segments(samples, device)
        embeds = torch.stack([_left_pad(piece, layout.n, 0) for piece in pieces])
        if labels is not None:
            labels = torch.stack([_left_pad(t, layout.n, IGNORE_INDEX) for t in targets])
            labels = labels.to(device)
        return Prompt(embeds, layout, labels)


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
