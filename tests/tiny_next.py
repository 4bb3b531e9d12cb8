"""Tiny LLaVA-1.6 models: tiles of 56 pixels, 4 x 4 patches each, on LLaVA's canvases in small."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from transformers import LlamaConfig, LlavaNextForConditionalGeneration
from transformers import LlavaNextConfig as StockNextConfig

from llava.anyres import get_anyres_image_grid_shape
from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import load_image_processor, process_images
from llava.model import LlavaLlamaForCausalLM
from llava.model.tensor_names import rename

from . import tiny

TILE, SIDE = 56, 4
#: LLaVA's list with 56 for 336.
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
NEXT = {
    "image_aspect_ratio": "anyres",
    "mm_patch_merge_type": "spatial_unpad",
    "image_grid_pinpoints": PINPOINTS,
}

#: Pictures (width, height) and the visual tokens they give, worked out by hand: 16 of the overview,
#: then rows x (columns + 1) of the map without its border.
#: 200 x 100 fits 112 x 56 as it is: 8 columns, 4 rows.          16 + 4 * 9 = 52
#: 80 x 100 as 90 x 112: int(80 * 8 / 100) = 6 columns, 8 rows.  16 + 8 * 7 = 72
#: 300 x 90 fits 168 x 56 as 168 x 51: int(90 * 12 / 300) = 3 of 4 rows, of which the odd border
#:   leaves one more: 12 columns, 4 rows.                        16 + 4 * 13 = 68
#: 112 x 112: 8 x 8.                                             16 + 8 * 9 = 88
#: 40 x 20, below a tile: 56 wide and 112 high; 4 columns, int(20 * 4 / 40) = 2 of 8 rows.
#:                                                               16 + 2 * 5 = 26
COUNTS = {(200, 100): 52, (80, 100): 72, (300, 90): 68, (112, 112): 88, (40, 20): 26}


def model(seed: int = 0, **extra) -> LlavaLlamaForCausalLM:
    """A random LLaVA-1.6; `extra` goes into its config."""
    return tiny.model(seed, **{**NEXT, **extra})


def stock(
    ours: LlavaLlamaForCausalLM, attn: str = "sdpa", pinpoints=PINPOINTS, text=None
) -> LlavaNextForConditionalGeneration:
    """transformers' own LLaVA-NeXT with the same weights; `text` is its language model's config."""
    c = ours.config
    names = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
        *("rms_norm_eps", "pad_token_id"),
    )
    text = (text or LlamaConfig)(**{name: getattr(c, name) for name in names})
    made = LlavaNextForConditionalGeneration(
        StockNextConfig(
            text_config=text.to_dict(),
            vision_config={**c.mm_vision_config, "model_type": "clip_vision_model"},
            image_token_index=tiny.STOCK_IMAGE_ID,
            image_grid_pinpoints=pinpoints,
        )
    ).eval()
    made.set_attn_implementation(attn)
    renamed = {rename(k, "module", "stock"): v for k, v in ours.state_dict().items()}
    made.load_state_dict(renamed, strict=True)
    made.generation_config.eos_token_id = None
    made.generation_config.pad_token_id = 0
    return made


def processor(folder) -> object:
    """CLIP's processor for tiles of 56 pixels; `folder` is an empty one."""
    made = load_image_processor(folder)
    made.size, made.crop_size = {"shortest_edge": TILE}, {"height": TILE, "width": TILE}
    return made


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Noise of that (width, height)."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(values.numpy())


def pixels(sizes, config, image_processor) -> list[Tensor]:
    """Views of pictures of noise, one tensor (views, 3, 56, 56) each."""
    pictures = [picture(size, seed) for seed, size in enumerate(sizes)]
    return list(process_images(pictures, image_processor, config))


def views(sizes, config, seed: int = 0) -> list[Tensor]:
    """Random pixels of as many views as such pictures have, without any picture."""
    generator = torch.Generator().manual_seed(1000 + seed)
    made = []
    for size in sizes:
        across, down = get_anyres_image_grid_shape(size, PINPOINTS, TILE, config.anyres_reading)
        made.append(torch.randn(1 + across * down, 3, TILE, TILE, generator=generator))
    return made


def expanded(prompt: Tensor, counts: list[int]) -> Tensor:
    """The prompt as transformers wants it: one image id for every visual token."""
    left = iter(counts)
    parts = [
        torch.full((next(left),), tiny.STOCK_IMAGE_ID) if t == IMAGE_TOKEN_INDEX else t[None]
        for t in prompt
    ]
    return torch.cat(parts)
