"""From the pixels of pictures to the tokens that the decoder gets of each, step by step.

The views of all pictures go through the vision tower together (`reduce_views`, where a method may
leave less than all of them), through the projector, and become one sequence a picture again:
what the method left (`reduced_tokens`), all or the best patches (`best_tokens`), or mixtures of
them by Senna's adapter (`adapted_tokens`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..mm_utils import letterbox_mask
from ..pruning.base import Pruner
from ..pruning.vision import Reduced, TowerRun, VisionFeatures
from .multimodal_encoder.clip_encoder import CLIPVisionTower
from .senna import demand_mixed_tokens
from .tiles import (
    EncodedImage,
    Tiling,
    best,
    in_order,
    nested,
    of_reduced,
    spans,
    stack_views,
    tilings,
)


@dataclass(frozen=True)
class Pictures:
    """The preprocessed pictures of a batch.

    pixels: (views of all, 3, h, w). views: how many each picture has; tilings: how they tile it,
    None where pictures are not tiled. sizes: (width, height) of each original, where given. grid:
    patches along a view.
    """

    pixels: Tensor
    views: list[int]
    tilings: list[Tiling] | None
    sizes: Sequence[tuple[int, int]] | None
    grid: int

    @property
    def most_patches(self) -> int:
        """Patches of the picture that has most; 0 without pictures."""
        if self.tilings is None:
            return self.grid**2 if len(self.pixels) else 0
        return max((tiling.patches for tiling in self.tilings), default=0)


def read_pictures(
    images: Tensor | Sequence[Tensor],
    sizes: Sequence[tuple[int, int]] | None,
    config: Any,
    tower: CLIPVisionTower,
) -> Pictures:
    """Stack the views of some images and say how they tile their pictures.

    Raises ValueError for other shapes, and for sizes that are missing or of other pictures.
    """
    pixels, views = stack_views(images)
    if sizes is not None and len(sizes) != len(images):
        raise ValueError(f"{len(images)} images but {len(sizes)} image_sizes")
    if views is None:
        return Pictures(pixels, [1] * len(images), None, sizes, tower.grid)
    tiled = tilings(config, tower.grid, tower.config.image_size, views, sizes)
    return Pictures(pixels, views, tiled, sizes, tower.grid)


def reduce_views(
    tower: CLIPVisionTower,
    pictures: Pictures,
    pruner: Pruner,
    groups: Sequence[int],
    bound: int | None,
) -> list[Reduced] | VisionFeatures:
    """What the method leaves of each view, or, if that is everything, what the tower gave of all.

    groups: how many pictures each sample has. With a `bound` the last layer is probed too.
    """
    pixels = pictures.pixels.to(execution_device(tower.inner.embeddings.patch_embedding))
    views = nested(groups, pictures.views)
    runs = pruner.tower_runs(views, tower.grid**2, tower.run_layers)
    if runs is not None:
        return _merge(tower, pixels, runs)
    probe = pruner.tower_layers(tower.run_layers)
    if bound is not None:
        probe = (*probe, tower.run_layers - 1)
    features = tower(pixels, probe=probe)
    if pictures.tilings is not None:
        grids = tuple((tiling.down, tiling.across) for tiling in pictures.tilings)
        borders = tuple((tiling.border, tiling.transposed) for tiling in pictures.tilings)
        features = replace(features, grids=grids, borders=borders)
    reduced = pruner.reduce(features, views)
    return features if reduced is None else reduced


def demand_whole_pictures(
    method: str, pictures: Pictures, bound: int | None, merge_type: str
) -> None:
    """Raise ValueError where a method that reduces views would not get or keep whole pictures."""
    if pictures.tilings is not None and "unpad" in merge_type:
        raise ValueError(
            f"method {method} chooses patches inside the tiles, before their borders "
            f"are cut off (mm_patch_merge_type {merge_type!r}), and would "
            "miss its budget: load the model with merge_type 'spatial' (--merge-type spatial)"
        )
    if bound is not None:
        raise ValueError(
            f"method {method} chooses among all {pictures.most_patches} patches itself: "
            f"leave visual_token_num {bound} out"
        )


def best_tokens(
    model: Any,
    pictures: Pictures,
    features: VisionFeatures,
    cls: Tensor | None,
    bound: int | None,
) -> list[EncodedImage]:
    """The tokens of each picture, all or the `bound` patches with the highest CLS attention.

    cls: (views, patches of a view), or None without a bound.
    """
    if pictures.tilings is None:
        whole = pictures.grid**2 if bound is None else bound
        return _plain_tokens(model, pictures, best(features, cls, bound), whole)
    projected = model.mm_projector(features.patches.to(model.embed_tokens.weight.dtype))
    encoded = []
    for tiling, part in zip(pictures.tilings, spans(pictures.views)):
        scores = None if cls is None else cls[part]
        encoded.append(in_order(tiling, projected[part], scores, model.image_newline, bound))
    return encoded


def reduced_tokens(
    model: Any, pictures: Pictures, reduced: Sequence[Reduced]
) -> list[EncodedImage]:
    """The tokens of each picture of whose views a method left these."""
    if pictures.tilings is None:
        return _plain_tokens(model, pictures, reduced, pictures.grid**2)
    projected = _projected(model, reduced)
    return [
        of_reduced(tiling, reduced[part], projected[part])
        for tiling, part in zip(pictures.tilings, spans(pictures.views))
    ]


def _plain_tokens(
    model: Any, pictures: Pictures, reduced: Sequence[Reduced], whole: int
) -> list[EncodedImage]:
    """The tokens of pictures of one view; `whole`: how many of each could be chosen from."""
    sizes = pictures.sizes if model.config.image_aspect_ratio == "pad" else None
    encoded = []
    for i, (view, embeds) in enumerate(zip(reduced, _projected(model, reduced))):
        patch, letterbox = view.patch.to(embeds.device), None
        if sizes is not None:
            # the CLS token, should a method keep it, is nowhere on the picture
            mask = letterbox_mask(sizes[i], pictures.grid)
            letterbox = torch.cat([mask, torch.tensor([False])]).to(embeds.device)[patch]
        encoded.append(EncodedImage(embeds, patch, view.scores, letterbox, whole))
    return encoded


def _projected(model: Any, reduced: Sequence[Reduced]) -> list[Tensor]:
    """The features of each view in the width of the decoder, in one call where equally many."""
    features = [view.features.to(model.embed_tokens.weight.dtype) for view in reduced]
    if len({len(tokens) for tokens in features}) == 1:
        return list(model.mm_projector(torch.stack(features)))
    return [model.mm_projector(tokens) for tokens in features]


def adapted_tokens(
    model: Any, pictures: Pictures, pruner: Pruner, bound: int | None
) -> list[EncodedImage]:
    """The tokens that a token adapter makes of each view; see `senna`.

    Raises ValueError for a method or a bound that needs patches.
    """
    tower, adapter = model.vision_tower, model.img_adapter
    demand_mixed_tokens(pruner, adapter)
    if bound is not None and bound < tower.grid**2:
        raise ValueError(
            f"visual_token_num {bound} drops patches, but the token adapter takes all "
            f"{adapter.before} of a view: leave it out, or give {adapter.before}"
        )
    pixels = pictures.pixels.to(execution_device(tower.inner.embeddings.patch_embedding))
    features = tower(pixels).patches
    adapted = adapter(model.mm_projector(features.to(model.embed_tokens.weight.dtype)))
    number = torch.arange(adapter.after, device=adapted.device)
    return [
        EncodedImage(embeds, number, None, None, adapter.after, mixed=True) for embeds in adapted
    ]


def _merge(tower: CLIPVisionTower, pixels: Tensor, runs: Sequence[TowerRun]) -> list[Reduced]:
    """Encode each view with its own run, those that share one together."""
    merged: dict[int, Reduced] = {}
    for run in dict.fromkeys(runs):
        members = [i for i, other in enumerate(runs) if other is run]
        features = tower.merge(pixels[members], run)
        for i, view, patch in zip(members, features.patches, features.patch):
            merged[i] = Reduced(view, patch)
    return [merged[i] for i in range(len(pixels))]


def execution_device(module: nn.Module) -> torch.device:
    """Where a module computes: at its weight, or where accelerate takes an offloaded one to."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return module.weight.device if device is None else torch.device(device)
