"""LLaVA itself: loading and checking, vision tower, projector, and the pruned Llama decoder."""

from .language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM, LlavaLlamaModel

__all__ = ["LlavaConfig", "LlavaLlamaForCausalLM", "LlavaLlamaModel"]
