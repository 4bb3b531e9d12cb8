"""Each image goes through the vision tower once, however many runs ask about it.

What the tower gives depends on the pixels alone, pruning comes after it, so features that were kept
are what the tower would give again. They are kept in the host's memory, where they do not add to
what a run is measured to need on an accelerator.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower, VisionFeatures

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig

_GB = 1e9


def pixel_key(pixels: np.ndarray) -> bytes:
    """What tells preprocessed images apart: a digest of their pixels."""
    return hashlib.blake2b(np.ascontiguousarray(pixels), digest_size=16).digest()


def install(model: Any, gigabytes: float) -> None:
    """Put a cache of this size around the vision tower of a LLaVA model, if it has a tower."""
    tower = model.get_vision_tower()
    if tower is not None:
        model.get_model().vision_tower = FeatureCache(tower, gigabytes)


class FeatureCache(nn.Module):
    """Stands in for the vision tower `tower` and remembers up to `gigabytes` (10^9 bytes) of it.

    When it is full the oldest features go first. `prepare` encodes the images of a batch, those
    it does not know in one call of the tower; `forward` on these images then costs nothing.

    Attributes: `encoded`, images that went through the tower; `dropped`, how many it forgot.
    """

    def __init__(self, tower: CLIPVisionTower, gigabytes: float) -> None:
        super().__init__()
        self.tower = tower
        self.encoded = self.dropped = 0
        self._room = gigabytes * _GB
        self._kept: OrderedDict[bytes, VisionFeatures] = OrderedDict()
        self._ready: tuple[Tensor, VisionFeatures] | None = None

    @property
    def inner(self) -> nn.Module:
        return self.tower.inner

    @property
    def config(self) -> CLIPVisionConfig:
        return self.tower.config

    @property
    def dtype(self) -> torch.dtype:
        return self.tower.dtype

    @property
    def grid(self) -> int:
        return self.tower.grid

    @torch.inference_mode()
    def prepare(self, images: Sequence[Tensor], keys: Sequence[bytes]) -> None:
        """Have the features of these images (3, h, w) ready; `keys` are their `pixel_key`s."""
        if not images:
            self._ready = None
            return
        pixels = torch.stack(list(images))
        unknown = {key: i for i, key in enumerate(keys) if key not in self._kept}
        found = {key: self._kept[key] for key in keys if key in self._kept}
        if unknown:
            # Always with the CLS row: another run may ask for it, and patches do not depend on it.
            fresh = self.tower(pixels[list(unknown.values())], with_cls=True)
            self.encoded += len(unknown)
            for i, key in enumerate(unknown):
                found[key] = _on_host(fresh, i)
                self._keep(key, found[key])
        features = VisionFeatures(
            torch.stack([found[key].patches for key in keys]).to(pixels.device),
            torch.stack([found[key].cls for key in keys]).to(pixels.device),
        )
        self._ready = pixels, features

    def forward(self, images: Tensor, with_cls: bool = False) -> VisionFeatures:
        """What the tower gives for `images` (images, 3, h, w), without it if they are prepared."""
        if self._ready is not None:
            pixels, features = self._ready
            # Comparing costs far less than any mistake about which images these are.
            if pixels.shape == images.shape and torch.equal(pixels, images):
                return VisionFeatures(features.patches, features.cls if with_cls else None)
        self.encoded += len(images)
        return self.tower(images, with_cls=with_cls)

    def _keep(self, key: bytes, features: VisionFeatures) -> None:
        self._kept[key] = features
        self._room -= _size(features)
        while self._room < 0:
            _, oldest = self._kept.popitem(last=False)
            self._room += _size(oldest)
            self.dropped += 1


def _on_host(features: VisionFeatures, i: int) -> VisionFeatures:
    """The features of one image, as copies that do not keep those of the others alive."""
    return VisionFeatures(
        features.patches[i].to("cpu", copy=True), features.cls[i].to("cpu", copy=True)
    )


def _size(features: VisionFeatures) -> int:
    return features.patches.nbytes + features.cls.nbytes
