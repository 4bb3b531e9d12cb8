"""Each image goes through the vision tower once, or once more for a run that looks into new layers.

What the tower gives depends on the pixels alone, pruning comes after it, so features that were kept
are what the tower would give again. They are kept in the host's memory, where they do not add to
what a run is measured to need on an accelerator. A method that merges inside the tower has nothing
to keep: its runs encode every image, within their prefill.

An image whose features are kept is not read again either: a `KnownImage` stands for its pixels.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.pruning.base import Pruner
from llava.pruning.vision import Probe, TowerRun, VisionFeatures

from .loading import KnownImage, LoadedQuestion, Source
from .settings import RunSettings

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig

_GB = 1e9


def pixel_key(pixels: np.ndarray) -> bytes:
    """What tells preprocessed images apart: a digest of their pixels."""
    return hashlib.blake2b(np.ascontiguousarray(pixels), digest_size=16).digest()


def stand_in(image: KnownImage, like: Tensor) -> Tensor:
    """A tensor of the shape of an image's pixels, without memory, of one value that is its own."""
    value = int.from_bytes(image.key[:2], "little") / 2**16
    return like.new_tensor(value).expand(image.shape)


def install(model: Any, gigabytes: float, pruners: Iterable[Pruner] = ()) -> None:
    """Put a cache of this size around the vision tower of a LLaVA model, if it has a tower.

    pruners: of the runs to come; an image is encoded once for all the layers that they look into.
    """
    tower = model.get_vision_tower()
    if tower is not None:
        layers = {layer for p in pruners for layer in p.tower_layers(tower.run_layers)}
        model.get_model().vision_tower = FeatureCache(tower, gigabytes, sorted(layers))


def cache_of(model: Any, settings: RunSettings) -> FeatureCache | None:
    """The cache that a run of these settings has, if any."""
    if settings.feature_cache_gb is None or settings.pruner.merges_in_tower:
        return None
    tower = model.get_vision_tower()
    assert tower is None or isinstance(tower, FeatureCache)
    return tower


def known_images(model: Any, settings: RunSettings) -> dict[Source, KnownImage]:
    """The images that a run of these settings need not read."""
    cache = cache_of(model, settings)
    return {} if cache is None else cache.known(probed(settings, cache.run_layers))


def probed(settings: RunSettings, layers: int) -> tuple[int, ...]:
    """Layers of a tower of so many that a run looks into."""
    bound = () if settings.visual_token_num is None else (layers - 1,)
    return (*settings.pruner.tower_layers(layers), *bound)


class FeatureCache(nn.Module):
    """Stands in for the vision tower `tower` and remembers up to `gigabytes` (10^9 bytes) of it.

    When it is full the oldest features go first. `prepare` encodes the images of a batch, those
    it does not know in one call of the tower; `forward` on these images then costs nothing.
    probe: layers that later runs will ask for.

    Attributes: `encoded`, images that went through the tower; `dropped`, how many it forgot.
    """

    def __init__(self, tower: CLIPVisionTower, gigabytes: float, probe: Sequence[int] = ()) -> None:
        super().__init__()
        self.tower = tower
        self.encoded = self.dropped = 0
        self._room = gigabytes * _GB
        self._probe = tuple(probe)
        self._kept: OrderedDict[bytes, VisionFeatures] = OrderedDict()
        self._images: dict[Source, KnownImage] = {}
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

    def known(self, probe: Sequence[int]) -> dict[Source, KnownImage]:
        """The images that need not be read by a run that looks into these layers."""
        self._images = {s: image for s, image in self._images.items() if image.key in self._kept}
        return {
            source: image
            for source, image in self._images.items()
            if self._kept[image.key].probes.keys() >= set(probe)
        }

    def lacks(self, item: LoadedQuestion) -> bool:
        """Whether an image that was known has been dropped meanwhile."""
        known = (image.key for image in item.pixels if isinstance(image, KnownImage))
        return any(key not in self._kept for key in known)

    def remember(self, item: LoadedQuestion, keys: Sequence[bytes]) -> None:
        """Know the images of a question by what they were read from; `keys` are their own."""
        for source, key, pixels, size in zip(item.sources, keys, item.pixels, item.sizes):
            # What is to be noted of an image is noted by each run that reads it.
            if source is not None and not item.notes:
                self._images[source] = KnownImage(key, pixels.shape, size)

    @torch.inference_mode()
    def prepare(
        self, images: Sequence[Tensor], keys: Sequence[bytes], probe: Sequence[int] = ()
    ) -> None:
        """Have the features of these images ready; `keys` are their `pixel_key`s.

        images: (3, h, w) each, or (views, 3, h, w) of a model that tiles them; or a `stand_in`.
        probe: layers that will be asked for.

        Raises KeyError for a stand-in of an image that is not known any more.
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
            if any(view.stride(-1) == 0 for view in new):
                raise KeyError("the features of an image that was known are not kept any more")
            fresh = self.tower(torch.cat(new), probe=sorted({*probe, *earlier, *self._probe}))
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
        """What the tower gives for `images` (views, 3, h, w), without it if they are prepared.

        Raises KeyError for a layer that they were not prepared for.
        """
        if self._ready is not None:
            pixels, features = self._ready
            # Comparing costs far less than any mistake about which images these are.
            if pixels.shape == images.shape and torch.equal(pixels, images):
                if absent := set(probe) - features.probes.keys():
                    raise KeyError(f"the images were not prepared for layers {sorted(absent)}")
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
