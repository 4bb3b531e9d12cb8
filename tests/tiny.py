"""Tiny random models and inputs that the tests share. Nothing here is trained or downloaded."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaForConditionalGeneration
from transformers import LlavaConfig as StockLlavaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.checkpoint import rename

VOCAB = 96
STOCK_IMAGE_ID = 90


def vision_config(image_size: int = 56, patch: int = 14) -> dict:
    """A CLIP tower with 3 layers; 56 px in patches of 14 give 16 visual tokens."""
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=patch,
    ).to_dict()


def config(layers: int = 6, kv_heads: int = 4, attn: str = "sdpa", image_size: int = 56, **extra):
    made = LlavaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        mm_projector_type="mlp2x_gelu",
        mm_vision_tower="vision_tower",
        mm_hidden_size=32,
        mm_vision_config=vision_config(image_size),
        **{"image_aspect_ratio": "pad", **extra},
    )
    made._attn_implementation = attn
    return made


def model(seed: int = 0, **kwargs) -> LlavaLlamaForCausalLM:
    """A random model with weights large enough that attention is not uniform."""
    torch.manual_seed(seed)
    made = LlavaLlamaForCausalLM(config(**kwargs)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    made.generation_config.eos_token_id = None
    made.generation_config.pad_token_id = 0
    return made


def double(model: LlavaLlamaForCausalLM) -> LlavaLlamaForCausalLM:
    """The model in float64 throughout; transformers' norms alone would go on in float32."""
    model.double()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LlamaRMSNorm):
                norm = torch.nn.RMSNorm(len(child.weight), child.variance_epsilon)
                norm.weight = child.weight
                setattr(module, name, norm)
    return model


def stock(ours: LlavaLlamaForCausalLM, attn: str = "sdpa") -> LlavaForConditionalGeneration:
    """transformers' own LLaVA with the same weights."""
    c = ours.config
    text = LlamaConfig(
        **{
            key: getattr(c, key)
            for key in (
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "max_position_embeddings",
                "rms_norm_eps",
                "pad_token_id",
            )
        }
    )
    made = LlavaForConditionalGeneration(
        StockLlavaConfig(
            text_config=text.to_dict(),
            vision_config={**c.mm_vision_config, "model_type": "clip_vision_model"},
            image_token_index=STOCK_IMAGE_ID,
            vision_feature_layer=-2,
        )
    ).eval()
    made.set_attn_implementation(attn)
    renamed = {rename(k, "module", "stock"): v for k, v in ours.state_dict().items()}
    made.load_state_dict(renamed, strict=True)
    made.generation_config.eos_token_id = None
    made.generation_config.pad_token_id = 0
    return made


def prompt(seed: int, before: int = 3, after: int = 7, images: int = 1) -> Tensor:
    """One prompt (n,): BOS, text, an image placeholder per image with text between, text."""
    generator = torch.Generator().manual_seed(seed)

    def text(n: int) -> Tensor:
        return torch.randint(3, 80, (n,), generator=generator)

    parts = [torch.tensor([1]), text(before)]
    for i in range(images):
        parts += [torch.tensor([IMAGE_TOKEN_INDEX])] + ([text(2)] if i + 1 < images else [])
    return torch.cat([*parts, text(after)])


def batch(prompts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Left-pad prompts: ids (batch, n) and mask (batch, n)."""
    width = max(len(p) for p in prompts)
    ids = torch.stack([torch.cat([p.new_zeros(width - len(p)), p]) for p in prompts])
    mask = torch.stack([torch.tensor([0] * (width - len(p)) + [1] * len(p)) for p in prompts])
    return ids, mask


def pixels(seed: int, n: int = 1, size: int = 56) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(n, 3, size, size, generator=generator)
