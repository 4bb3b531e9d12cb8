"""Tiny random models of every known architecture, and prompts with pictures for them.

A model has 5 decoder layers, a picture 16 to 48 tokens. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig

VOCAB, LAYERS = 100, 5
IMAGE, VIDEO, START, END, FAKE, ROW, ROW2, WHOLE, BREAK = range(90, 99)

TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
QWEN_VISION: dict[str, Any] = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "temporal_patch_size": 1,
    "spatial_merge_size": 2,
}


class Picture(NamedTuple):
    """ids: tokens of one picture; inputs: what the model is given of it, by name."""

    ids: list[int]
    inputs: dict[str, Tensor]


class Architecture(NamedTuple):
    config: Callable[[], Any]
    picture: Callable[[], Picture]
    tokens: int
    video: Callable[[], Picture] | None = None


def _config(kind: str, text: dict[str, Any], vision: dict[str, Any], **extra: Any) -> Any:
    ids = {"image_token_id": IMAGE, "image_token_index": IMAGE}
    known = AutoConfig.for_model(kind)
    ids = {name: number for name, number in ids.items() if hasattr(known, name)}
    return AutoConfig.for_model(
        kind, text_config={**TEXT, **text}, vision_config=vision, **ids, **extra
    )


def _plain(before: Sequence[int] = (), after: Sequence[int] = ()) -> Picture:
    pixels = {"pixel_values": torch.randn(1, 3, 56, 56)}
    return Picture([*before, *[IMAGE] * 16, *after], pixels)


def _tiled() -> Picture:
    """The overview and one tile, whose four rows end with a newline."""
    pixels = {"pixel_values": torch.randn(1, 2, 3, 56, 56), "image_sizes": torch.tensor([[56, 56]])}
    return Picture([IMAGE] * 36, pixels)


def _marked() -> Picture:
    """Two tiles and the whole picture, with text between."""
    tile = [IMAGE] * 16
    ids = [FAKE, ROW, *tile, FAKE, ROW2, *tile, 5, FAKE, WHOLE, *tile, FAKE]
    return Picture(ids, {"pixel_values": torch.randn(1, 3, 3, 56, 56)})


def _rows() -> Picture:
    """Four rows that end with a break, the last with an end."""
    ids = [*[*[IMAGE] * 4, BREAK] * 3, *[IMAGE] * 4, END]
    pixels = {"pixel_values": torch.randn(1, 3, 56, 56), "image_sizes": torch.tensor([[56, 56]])}
    return Picture(ids, pixels)


def _grid() -> Picture:
    """4 x 4 tokens."""
    pixels = {"pixel_values": torch.randn(64, 48), "image_grid_thw": torch.tensor([[1, 8, 8]])}
    return Picture([START, *[IMAGE] * 16, END], pixels)


def _frames(apart: bool, seconds: bool = False) -> Picture:
    """Three frames of 2 x 4 tokens, with text between if `apart`."""
    inputs = {
        "pixel_values_videos": torch.randn(96, 48),
        "video_grid_thw": torch.tensor([[3, 4, 8]]),
    }
    if seconds:
        inputs["second_per_grid_ts"] = torch.tensor([1.0])
    frame = [START, *[VIDEO] * 8, END]
    ids = [7, *frame, 8, *frame, 9, *frame] if apart else [START, *[VIDEO] * 24, END]
    return Picture(ids, inputs)


def _llama(kind: str, **extra: Any) -> Callable[[], Any]:
    vision = {"model_type": "clip_vision_model", **VISION}
    return lambda: _config(kind, {"model_type": "llama"}, vision, **extra)


def _qwen(kind: str, vision: dict[str, Any], **text: Any) -> Callable[[], Any]:
    ids = {"video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
    text = {"rope_parameters": MROPE, **text}
    return lambda: _config(kind, text, {**QWEN_VISION, **vision}, **ids)


def _gemma3() -> Any:
    """Windows of 20 tokens in all layers but the third and the last."""
    layers = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    text = {
        "model_type": "gemma3_text",
        "layer_types": [*layers[:4], "full_attention"],
        "sliding_window": 20,
        "query_pre_attn_scalar": 8,
    }
    vision = {"model_type": "siglip_vision_model", **VISION}
    return _config("gemma3", text, vision, mm_tokens_per_image=16)


def _siglip(kind: str, text: dict[str, Any], **extra: Any) -> Callable[[], Any]:
    vision = {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION}
    return lambda: _config(kind, text, vision, **extra)


SMALL_PATCHES = {**VISION, "patch_size": 7}
ZOO: dict[str, Architecture] = {
    "llava": Architecture(_llama("llava"), _plain, 16),
    "llava_next": Architecture(_llama("llava_next", image_grid_pinpoints=[[56, 56]]), _tiled, 36),
    "llava_onevision": Architecture(
        _siglip(
            "llava_onevision",
            {"model_type": "qwen2"},
            image_grid_pinpoints=[[56, 56]],
            video_token_index=VIDEO,
        ),
        _tiled,
        36,
    ),
    "qwen2_vl": Architecture(
        _qwen("qwen2_vl", {"embed_dim": 16, "hidden_size": 32}), _grid, 16, lambda: _frames(False)
    ),
    "qwen2_5_vl": Architecture(
        _qwen(
            "qwen2_5_vl",
            {
                "hidden_size": 16,
                "out_hidden_size": 32,
                "intermediate_size": 24,
                "window_size": 16,
                "fullatt_block_indexes": [1],
            },
        ),
        _grid,
        16,
        lambda: _frames(False, True),
    ),
    "qwen3_vl": Architecture(
        _qwen(
            "qwen3_vl",
            {
                "hidden_size": 16,
                "out_hidden_size": 32,
                "intermediate_size": 24,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0, 1],
            },
        ),
        _grid,
        16,
        lambda: _frames(True),
    ),
    "internvl": Architecture(
        lambda: _config(
            "internvl",
            {"model_type": "qwen2"},
            {**SMALL_PATCHES, "image_size": [56, 56], "patch_size": [7, 7]},
        ),
        lambda: _plain([START], [END]),
        16,
    ),
    "idefics3": Architecture(
        lambda: _config("idefics3", {"model_type": "llama"}, SMALL_PATCHES), _marked, 48
    ),
    "smolvlm": Architecture(
        lambda: _config("smolvlm", {"model_type": "llama"}, SMALL_PATCHES), _marked, 48
    ),
    "gemma3": Architecture(_gemma3, lambda: _plain([START], [END]), 16),
    "paligemma": Architecture(
        _siglip("paligemma", {"model_type": "gemma", "num_key_value_heads": 1}, projection_dim=32),
        _plain,
        16,
    ),
    "mistral3": Architecture(
        lambda: _config(
            "mistral3",
            {"model_type": "mistral", "sliding_window": None},
            {"model_type": "pixtral", **SMALL_PATCHES, "head_dim": 8},
            spatial_merge_size=2,
        ),
        _rows,
        16,
    ),
}


class _PreciseNorm(nn.Module):
    """A norm in the dtype of its input, where transformers' goes through float32."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
        weight = norm.weight.detach()
        self.weight = nn.Parameter(weight + 1 if "Gemma" in type(norm).__name__ else weight)

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.rms_norm(hidden, (len(self.weight),), self.weight, self.eps)


def model(name: str, dtype: torch.dtype = torch.float64, attn: str = "sdpa") -> Any:
    """A random model whose attention is not uniform."""
    made_config = ZOO[name].config()
    cls = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(made_config)]
    torch.manual_seed(0)
    net = cls(made_config).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    net.to(dtype).set_attn_implementation(attn)
    if dtype == torch.float64:
        for module in list(net.modules()):
            for child_name, child in list(module.named_children()):
                if type(child).__name__.endswith("RMSNorm"):
                    setattr(module, child_name, _PreciseNorm(child))
    net.generation_config.eos_token_id = None
    net.generation_config.pad_token_id = 0
    net.generation_config.suppress_tokens = list(range(IMAGE, VOCAB))
    return net


@cache
def shared(name: str) -> Any:
    """The float64 model of an architecture, to be left as it is."""
    return model(name)


def inputs(name: str, samples: Sequence[str], dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """A left-padded batch of prompts.

    samples: of each the parts of its prompt: "i" a picture, "v" a video, "t" three tokens of text,
    "q" eight
    """
    architecture = ZOO[name]
    torch.manual_seed(1)
    rows: list[list[int]] = []
    given: dict[str, list[Tensor]] = {}
    images: list[list[Tensor]] = []
    for sample in samples:
        # PaliGemma's pictures are at the front.
        row: list[int] = [] if name == "paligemma" else [1]
        images.append([])
        for part in sample:
            if part in "tq":
                row += torch.randint(10, 80, (3 if part == "t" else 8,)).tolist()
                continue
            picture = architecture.picture() if part == "i" else architecture.video()
            row += picture.ids
            for key, value in picture.inputs.items():
                given.setdefault(key, []).append(value)
                if key == "pixel_values":
                    images[-1].append(value)
        rows.append(row)
    width = max(map(len, rows))
    pad = [width - len(row) for row in rows]
    ids = torch.tensor([[0] * p + row for p, row in zip(pad, rows)])
    mask = torch.tensor([[0] * p + [1] * len(row) for p, row in zip(pad, rows)])
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    batch |= {key: torch.cat(values) for key, values in given.items()}
    if name in ("idefics3", "smolvlm") and given:
        # All tiles of a sample in a row; empty ones fill up.
        most = max(sum(len(v[0]) for v in values) for values in images)
        tiles = torch.zeros(len(rows), most, 3, 56, 56)
        for i, values in enumerate(images):
            if values:
                joined = torch.cat([v[0] for v in values])
                tiles[i, : len(joined)] = joined
        batch["pixel_values"] = tiles
    kinds = (ids == IMAGE).long() + 2 * (ids == VIDEO).long()
    if "qwen" in name:
        batch["mm_token_type_ids"] = kinds
    if name == "gemma3":
        batch["token_type_ids"] = kinds
    if name == "paligemma":
        batch["token_type_ids"] = torch.zeros_like(ids)
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}


def longer(name: str, batch: dict[str, Any], tokens: Tensor) -> dict[str, Any]:
    """The batch with `tokens` (batch, new) behind it, as a prompt."""
    new = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "mm_token_type_ids": torch.zeros_like(tokens),
        "token_type_ids": torch.full_like(tokens, int(name == "paligemma")),
    }
    batch = {k: torch.cat([v, new[k]], 1) if k in new else v for k, v in batch.items()}
    if "qwen" not in name:
        # As `generate` numbers them, PaliGemma's from 1.
        position = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        batch["position_ids"] = position + int(name == "paligemma")
    return batch
