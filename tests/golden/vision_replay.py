"""Runs a recorded case of a vision-side method again; see `vision/README.md`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache, cached_property
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig

from llava import pruning
from llava.eval.run.feature_cache import pixel_key
from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.encoding import read_pictures, reduce_views, reduced_tokens
from llava.pruning.base import Pruner
from llava.pruning.cache import PrunedCache
from llava.pruning.methods.divprune import DivPrune
from llava.pruning.trace import PruneTrace
from llava.pruning.vision import TowerRun, VisionFeatures

from . import vision_recipe as recipe

EACH = (recipe.IMAGE // recipe.PATCH) ** 2
#: By the name of a grid of tiles, the picture (width, height) on it.
SIZES = {
    "1x1": (336, 336),
    "2x2": (672, 672),
    "1x2": (672, 336),
    "2x1": (336, 672),
    "3x1": (1008, 336),
    "2x2b": (900, 700),
}
CANVASES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
#: Settings of the steep and the early curve.
CURVES = {
    "steep": {"target_token_num": 64, "x0": 3.0, "k0": 1.5, "gamma": 0.1},
    "early": {"target_token_num": 64, "x0": -4.0, "k0": 1.5, "gamma": 0.1},
}


class RememberingTower(nn.Module):
    """A vision tower that runs once for the same pixels; a method sees only what it asks for."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower
        self.features: dict[bytes, VisionFeatures] = {}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("tower"), name)

    def forward(self, images: Tensor, probe: Any = ()) -> VisionFeatures:
        key = pixel_key(images.numpy())
        if key not in self.features:
            last = self.tower.run_layers
            self.features[key] = self.tower(images, probe=(0, last - 1, last))
        known = self.features[key]
        probes = {layer: known.probes[layer] for layer in probe}
        return VisionFeatures(known.patches, known.token, known.ran, probes)

    def merge(self, images: Tensor, run: TowerRun) -> VisionFeatures:
        return self.tower.merge(images, run)


@cache
def model(merge_type: str | None, layers: int = 1, double: bool = False) -> Any:
    """The recorded model: tower, no projector, a decoder of that many layers.

    merge_type: None for a model that pads to a square.
    """
    tower = CLIPVisionConfig(
        hidden_size=recipe.WIDTH,
        intermediate_size=recipe.INTER,
        num_hidden_layers=recipe.LAYERS,
        num_attention_heads=recipe.HEADS,
        image_size=recipe.IMAGE,
        patch_size=recipe.PATCH,
        layer_norm_eps=1e-5,
    )
    tiled = {
        "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": merge_type,
        "image_grid_pinpoints": CANVASES,
    }
    llava = LlavaLlamaForCausalLM(
        LlavaConfig(
            vocab_size=recipe.VOCAB,
            hidden_size=recipe.WIDTH,
            intermediate_size=96,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            bos_token_id=1,
            mm_projector_type="identity",
            mm_vision_tower="clip",
            mm_hidden_size=recipe.WIDTH,
            mm_vision_config=tower.to_dict(),
            **(tiled if merge_type else {"image_aspect_ratio": "pad"}),
        )
    ).eval()
    weights = {f"model.{name}": value for name, value in recipe.decoder(11, layers).items()}
    weights["lm_head.weight"] = recipe.normal(11, "lm_head", recipe.VOCAB, recipe.WIDTH) / 8
    if merge_type and "unpad" in merge_type:
        weights["model.image_newline"] = recipe.normal(7, "newline", recipe.WIDTH)
    inner = llava.get_vision_tower().inner
    rest = llava.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)
    assert not rest.unexpected_keys and all("vision_tower" in name for name in rest.missing_keys)
    rest = inner.load_state_dict(
        {k: torch.from_numpy(v) for k, v in recipe.tower(7).items()}, strict=False
    )
    assert not rest.unexpected_keys and all("position_ids" in k for k in rest.missing_keys)
    llava.generation_config.eos_token_id = None
    llava.generation_config.pad_token_id = 0
    if double:
        llava.double()
    llava.model.vision_tower = RememberingTower(llava.get_vision_tower())
    return llava


@cache
def pixels_of(seed: int, views: int) -> Tensor:
    return torch.from_numpy(recipe.pixels(seed, views))


@dataclass(frozen=True)
class Case:
    """A recorded case: the `method`, the `name` it has in its file, and the `facts` there."""

    method: str
    name: str
    facts: dict[str, Any]

    @cached_property
    def parts(self) -> list[str]:
        return self.name.split("_")

    @property
    def fails_there(self) -> bool:
        return "official_error" in self.facts

    @property
    def grid(self) -> str:
        return next((part for part in self.parts if re.fullmatch(r"\dx\db?", part)), "1x1")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the picture."""
        wide = next((part for part in self.parts if re.fullmatch(r"\d{3,}x\d{3,}", part)), None)
        if wide is None and self.method == "autoprune" and self.grid == "1x1":
            return 640, 480
        return SIZES[self.grid] if wide is None else tuple(map(int, wide.split("x")))

    @property
    def views(self) -> int:
        if "five" in self.parts:
            return 5
        across, down = map(int, self.grid.rstrip("b").split("x"))
        return 1 if self.grid == "1x1" else 1 + across * down

    @property
    def merge_type(self) -> str | None:
        if self.grid == "1x1":
            return None
        return next((m for m in ("spatial_unpad", "flat") if self.name.endswith(m)), "spatial")

    @property
    def double(self) -> bool:
        return self.parts[-1] == "float64"

    @property
    def pixels(self) -> Tensor:
        same = self.parts[0] == "same"
        pixels = pixels_of(1 if same else int(self.parts[0][1:]), self.views)
        if same:
            pixels = pixels.clone()
            pixels[:, :, 84:252] = 0.3
        return pixels.double() if self.double else pixels

    @property
    def budget(self) -> int | None:
        """The number of the name: of a view, or of all."""
        return next((int(p[1:]) for p in self.parts if re.fullmatch(r"t\d+", p)), None)

    @property
    def pruner(self) -> Pruner:
        method, budget = self.method, self.budget
        settings: dict[str, Any] = {}
        if method == "autoprune":
            curve = next((CURVES[part] for part in self.parts if part in CURVES), None)
            x0 = 5.0 if budget == 192 else 3.0
            settings = curve or {"target_token_num": budget, "x0": x0, "k0": 0.4, "gamma": 0.2}
            return pruning.build(method, **settings)
        if method == "prumerge":
            method = "prumerge+"
            training = "fixed8" in self.parts
            settings = {"plus": "plus" in self.parts, "training": training}
            settings["adaptive"] = budget is None and not training
        if method == "hired" and self.views > 1:
            settings = {"alpha": float(self.parts[-1][1:])}
        if method == "vispruner":
            settings = {"important_ratio": float(self.name.split("_r")[1].split("_")[0])}
        if method == "tome":
            settings = {"proportional_attention": "noprop" not in self.parts}
        if budget is not None:
            each = method in ("fastervlm", "visionzip", "vispruner")
            settings["target_token_num"] = budget * self.views if each else budget
        return pruning.build(method, **settings)

    @property
    def model(self) -> Any:
        return model(self.merge_type, 8 if self.method == "autoprune" else 1, self.double)

    @property
    def images(self) -> dict[str, Any]:
        pixels = self.pixels
        images = pixels if self.merge_type is None else [pixels]
        return {"images": images, "image_sizes": [self.size] * len(images)}


@torch.no_grad()
def reduced(case: Case) -> tuple[Tensor, list[list[int]]]:
    """What a method in or behind the tower hands to the decoder, and the patches it kept of each
    view: ascending, -1 being the CLS token; PruMerge's in its own order."""
    llava, pruner = case.model, case.pruner
    tower = llava.get_vision_tower()
    pictures = read_pictures(
        **dict(zip(("images", "sizes"), case.images.values())), config=llava.config, tower=tower
    )
    views = reduce_views(tower, pictures, pruner, [len(pictures.views)], None)
    assert isinstance(views, list)
    images = reduced_tokens(llava.get_model(), pictures, views)
    if case.method == "hired":
        # The recorded ones are from before the border is cut off.
        views = reduce_views(tower, pictures, replace(pruner, border="kept"), [1], None)
    kept = []
    for view in views:
        patches = view.patch.tolist()
        if case.method == "prumerge":
            patches = patches[:-1]
        elif case.method == "visionzip":
            dominant, _ = pruner.split(len(patches))
            patches = sorted(-1 if p == EACH else p for p in patches[:dominant])
        kept.append(patches)
    return torch.cat([image.embeds for image in images]), kept


@torch.no_grad()
def chosen(case: Case) -> tuple[Tensor, list[int], list[int]]:
    """What DivPrune hands to the decoder, what it kept of the picture's tokens, and in which order
    it chose them."""
    llava = case.model
    tower = llava.get_vision_tower()
    place = tower.inner.embeddings.position_embedding.weight
    there = place.clone()
    if case.parts[0] == "same":
        place.zero_()
        tower.features.clear()
    ids = torch.tensor([recipe.ids()])
    prompt = llava.embed_prompt(ids, None, **case.images)
    if case.parts[0] == "same":
        place.copy_(there)
        tower.features.clear()
    tokens = prompt.layout.n_visual[0]
    count = round(case.budget / EACH * tokens)
    run = DivPrune(target_token_num=count).start(prompt.layout, SimpleNamespace())
    selection = run.at_entry(prompt.layout, prompt.embeds)
    first = recipe.PREFIX
    kept = selection.index[0, first : first + count]
    image = prompt.embeds[0, first : first + tokens]
    order = DivPrune().choose(None, count, image)
    return prompt.embeds[0, kept], (kept - first).tolist(), order


@torch.no_grad()
def merged(case: Case) -> tuple[Tensor, list[int], list[int]]:
    """What ToMe hands to the decoder; the patch that each token shows, and of how many it is."""
    tower = case.model.get_vision_tower()
    (run,) = case.pruner.tower_runs(((1,),), EACH, tower.run_layers)
    features = tower.merge(case.pixels, run)
    return features.patches[0], features.patch[0].tolist(), run._size[0, 1:].int().tolist()


@torch.no_grad()
def answered(case: Case) -> tuple[list[int], Tensor, PrunedCache]:
    """Eight tokens of AutoPrune's answer; a prefill's normed text rows behind the picture (20, 64),
    and its cache."""
    llava, ids = case.model, torch.tensor([recipe.ids()])
    pruner = case.pruner
    answer = llava.generate(ids, **case.images, pruner=pruner, max_new_tokens=8, do_sample=False)
    prompt = llava.embed_prompt(ids, None, **case.images, pruner=pruner)
    cache = PrunedCache(pruner, prompt.layout)
    out = llava.get_model()(inputs_embeds=prompt.embeds, past_key_values=cache, use_cache=True)
    return answer[0].tolist(), out.last_hidden_state[0, -recipe.TEXT :], cache


def kept_columns(trace: PruneTrace, layer: int, count: int) -> list[int]:
    """Which of the visual tokens that entered a layer left it as they were, in order, by place."""
    source, selection = trace.choices[layer]
    columns = selection.index[0]
    if source is not trace.entered[layer]:
        columns = source.index[0, columns]  # it was chosen from those for which the layer ran
    return (columns[recipe.PREFIX :][:count] - recipe.PREFIX).tolist()
