"""Each image goes through the vision tower once, or once more for a run that looks into new layers.

What the tower gives depends on the pixels alone, pruning comes after it, so features that were kept
are what the tower would give again. They are kept in the host's memory, where they do not add to
what a run is measured to need on an accelerator. A method that merges inside the tower has nothing
to keep: its runs encode every image, within their prefill.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.pruning.vision import Probe, TowerRun, VisionFeatures

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

    @property
    def run_layers(self) -> int:
        return self.tower.run_layers

    @torch.inference_mode()
    def prepare(
        self, images: Sequence[Tensor], keys: Sequence[bytes], probe: Sequence[int] = ()
    ) -> None:
        """Have the features of these images ready; `keys` are their `pixel_key`s.

        images: (3, h, w) each, or (views, 3, h, w) of a model that tiles them.
        probe: layers that will be asked for.
        """
        if not images:
            self._ready = None
            return
        views = [image if image.dim() == 4 else image[None] for image in images]
        pixels = torch.cat(views)
        remembered = {key: kept for key in keys if (kept := self._kept.get(key)) is not None}
        known = {key: kept for key, kept in remembered.items() if kept.probes.keys() >= set(probe)}
        unknown = {key: i for i, key in enumerate(keys) if key not in known}
        if unknown:
            earlier = {
                layer for key in unknown if key in remembered for layer in remembered[key].probes
            }
            new = [views[i] for i in unknown.values()]
            fresh = self.tower(torch.cat(new), probe=sorted({*probe, *earlier}))
            self.encoded += len(unknown)
            ends = accumulate(map(len, new))
            for key, new_views, end in zip(unknown, new, ends):
                known[key] = _on_host(fresh, slice(end - len(new_views), end))
                self._keep(key, known[key])
        rows = [known[key] for key in keys]
        device = pixels.device
        features = VisionFeatures(
            torch.cat([row.patches for row in rows]).to(device),
            torch.cat([row.token for row in rows]).to(device),
            rows[0].ran,
            {
                layer: Probe(
                    torch.cat([row.probes[layer].query for row in rows]).to(device),
                    torch.cat([row.probes[layer].keys for row in rows]).to(device),
                )
                for layer in probe
            },
        )
        self._ready = pixels, features

    def forward(self, images: Tensor, probe: Sequence[int] = ()) -> VisionFeatures:
        """What the tower gives for `images` (views, 3, h, w), without it if they are prepared."""
        if self._ready is not None:
            pixels, features = self._ready
            # Comparing costs far less than any mistake about which images these are.
            known = pixels.shape == images.shape and torch.equal(pixels, images)
            if known and features.probes.keys() >= set(probe):
                return features
        self.encoded += len(images)
        return self.tower(images, probe=probe)

    def merge(self, images: Tensor, run: TowerRun) -> VisionFeatures:
        """What the tower gives while `run` merges in it; never kept."""
        self.encoded += len(images)
        return self.tower.merge(images, run)

    def _keep(self, key: bytes, features: VisionFeatures) -> None:
        if key in self._kept:
            self._room += _size(self._kept.pop(key))
        self._kept[key] = features
        self._room -= _size(features)
        while self._room < 0:
            _, oldest = self._kept.popitem(last=False)
            self._room += _size(oldest)
            self.dropped += 1


def _on_host(features: VisionFeatures, views: slice) -> VisionFeatures:
    """The features of one image, as copies that do not keep those of the others alive."""

    def copied(tensor: Tensor) -> Tensor:
        return tensor[views].to("cpu", copy=True)

    probes = {layer: Probe(copied(p.query), copied(p.keys)) for layer, p in features.probes.items()}
    return VisionFeatures(copied(features.patches), copied(features.token), features.ran, probes)


def _size(features: VisionFeatures) -> int:
    probes = sum(p.query.nbytes + p.keys.nbytes for p in features.probes.values())
    return features.patches.nbytes + features.token.nbytes + probes
