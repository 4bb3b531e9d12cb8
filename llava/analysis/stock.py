"""transformers' own model with a checkpoint's weights, beside this package's.

Of LLaVA-1.5 and 1.6 it is `LlavaForConditionalGeneration` and `LlavaNextForConditionalGeneration`,
which takes token ids and pixels. Of what transformers has no model for (Senna's adapter, another
projector or merge type) it is the decoder alone, `LlamaForCausalLM`, and takes our embeddings.

Its weights are read a second time where there is room for them, a llava-hf folder by transformers
alone; else its modules are this package's own, and only what is around them is transformers'.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)
from transformers import LlavaConfig as StockConfig

from ..anyres import read_pinpoints
from ..constants import IMAGE_TOKEN_INDEX
from ..model.reading import read_checkpoint, read_config, resolve
from ..model.tensor_names import rename

_SPARE = 2 << 30  # bytes that answering takes beside the weights


@dataclass(frozen=True)
class Stock:
    """transformers' own model of a checkpoint.

    reader: who read its weights: "transformers", "this package", or "" where they are shared
    lacks:  what of the checkpoint transformers has no model for; empty where it has
    """

    model: Any
    reader: str
    lacks: str

    def inputs(
        self, prompt: Mapping[str, Any], embeds: Tensor, images: list[int]
    ) -> dict[str, Any]:
        """Its inputs for one prompt: `prompt` is what ours takes, `embeds` (1, n, d) what our
        decoder then gets, `images` how many tokens each image has."""
        # Said outright: without it transformers takes for padding what has the padding's id.
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        if self.lacks:
            return {"inputs_embeds": embeds, "attention_mask": mask}
        token, left = self.model.config.image_token_id, iter(images)
        ids = prompt["inputs"][0]
        parts = [
            i.expand(1) if i != IMAGE_TOKEN_INDEX else i.new_full((next(left),), token) for i in ids
        ]
        inputs = {"input_ids": torch.cat(parts)[None], "attention_mask": mask}
        tiled = isinstance(self.model, LlavaNextForConditionalGeneration)
        inputs["pixel_values"] = torch.cat(list(prompt["images"])) if tiled else prompt["images"]
        if tiled:
            sizes = [(height, width) for width, height in prompt["image_sizes"]]
            inputs["image_sizes"] = torch.tensor(sizes, device=embeds.device)
        return inputs


def load(
    model: Any,
    model_path: str,
    image_token: int,
    *,
    share: bool = False,
    vision_tower: str | None = None,
    model_base: str | None = None,
    offline: bool = False,
) -> Stock:
    """transformers' model beside `model`, which was loaded from these.

    image_token: an id that stands in no prompt, for checkpoints without one for images.
    share: do not read the weights again, whatever room there is.
    """
    lacks = _lacks(model.config)
    with torch.device("meta"):
        kind, config = _kind(model.config, lacks, image_token)
    if share or not has_room(model):
        stock, reader = _shared(model, kind, config, lacks), ""
    else:
        folder = resolve(model_path, offline=offline)
        options = {
            "dtype": model.dtype,
            "attn_implementation": model.config._attn_implementation,
        }
        if read_config(folder)[1] == "llava-hf" and not (vision_tower or lacks):
            stock, reader = kind.from_pretrained(folder, **options), "transformers"
            stock.config.image_grid_pinpoints = getattr(config, "image_grid_pinpoints", None)
        else:
            state = read_checkpoint(folder, vision_tower, model_base, offline=offline).state
            if lacks:
                state = {k: v for k, v in state.items() if _of_decoder(k)}
            else:
                state = {rename(k, "original", "stock"): v for k, v in state.items()}
            stock = kind.from_pretrained(None, config=config, state_dict=state, **options)
            reader = "this package"
        stock.to(model.device)
    stock.generation_config = copy.deepcopy(model.generation_config)
    return Stock(stock.eval(), reader, lacks)


def has_room(model: Any) -> bool:
    """Whether the weights would fit a second time where they are; False where nobody can say."""
    if getattr(model, "hf_quantizer", None) or getattr(model, "hf_device_map", None):
        return False
    needed = 1.2 * sum(p.numel() * p.element_size() for p in model.parameters()) + _SPARE
    if model.device.type == "cuda":
        return bool(torch.cuda.mem_get_info(model.device)[0] > needed)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        return free[0] > needed
    except (OSError, IndexError):
        pages = getattr(os, "sysconf_names", {}).get("SC_AVPHYS_PAGES")
        return pages is not None and os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE") > needed


def differing(ours: Any, stock: Stock) -> list[str]:
    """Names of our tensors that transformers' model lacks, or does not have bit for bit."""
    target = "module" if stock.lacks else "stock"
    others = stock.model.state_dict()
    names = []
    for name, value in ours.state_dict().items():
        if stock.lacks and not _of_decoder(name):
            continue
        other = others.get(rename(name, "module", target))
        if other is None or not torch.equal(value, other):
            names.append(name)
    return names


def _lacks(config: Any) -> str:
    if config.mm_token_adapter is not None:
        return "Senna's adapter"
    if config.mm_projector_type != "mlp2x_gelu":
        return f"the projector {config.mm_projector_type}"
    if config.image_aspect_ratio == "anyres" and config.mm_patch_merge_type != "spatial_unpad":
        return f"the merge type {config.mm_patch_merge_type}"
    return ""


def _of_decoder(name: str) -> bool:
    beginnings = ("model.layers.", "model.norm.", "model.embed_tokens.", "lm_head.")
    return name.startswith(beginnings)


def _kind(config: Any, lacks: str, image_token: int) -> tuple[Any, Any]:
    """The class and config of transformers' model of a checkpoint with our `config`."""
    values = config.to_dict()
    left_out = ("model_type", "architectures", "dtype", "quantization_config")
    names = LlamaConfig().to_dict().keys() - set(left_out)
    text = LlamaConfig(**{name: values[name] for name in names if name in values})
    if lacks:
        return LlamaForCausalLM, text
    options: dict[str, Any] = {
        "text_config": text,
        "vision_config": {**config.mm_vision_config, "model_type": "clip_vision_model"},
        "image_token_index": values.get("image_token_index") or image_token,
        "vision_feature_layer": config.mm_vision_select_layer,
        "tie_word_embeddings": text.tie_word_embeddings,
    }
    if config.image_aspect_ratio != "anyres":
        return LlavaForConditionalGeneration, StockConfig(**options)
    tile = config.mm_vision_config["image_size"]
    pinpoints = [list(pair) for pair in read_pinpoints(config.image_grid_pinpoints, tile, "config")]
    if config.anyres_reading == "llava":
        # LLaVA reads (width, height), transformers (height, width).
        pinpoints = [pair[::-1] for pair in pinpoints]
    made_of = LlavaNextConfig(image_grid_pinpoints=pinpoints, **options)
    return LlavaNextForConditionalGeneration, made_of


def _shared(model: Any, kind: Callable[[Any], Any], config: Any, lacks: str) -> Any:
    """A model of transformers' whose modules are ours."""
    text = config if lacks else config.text_config
    layers, text.num_hidden_layers = text.num_hidden_layers, 0
    with torch.device("meta"):
        stock = kind(config)
    text.num_hidden_layers = layers
    ours, decoder = model.model, stock.get_decoder()
    decoder.config.num_hidden_layers = layers
    for name in ("layers", "norm", "embed_tokens", "rotary_emb"):
        setattr(decoder, name, getattr(ours, name))
    stock.lm_head = model.lm_head
    if not lacks:
        stock.model.vision_tower = ours.vision_tower.vision_tower
        projector = stock.model.multi_modal_projector
        projector.linear_1, projector.linear_2 = ours.mm_projector[0], ours.mm_projector[2]
        if ours.image_newline is not None:
            stock.model.image_newline = ours.image_newline
    stock.set_attn_implementation(model.config._attn_implementation)
    return stock
