"""LLaVA over Llama: the patched decoder (see `decoder`) with its output head and `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, StoppingCriteriaList
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from ...mm_utils import stopping_at
from ...pruning.base import Pruner
from ...pruning.cache import PrunedCache
from ..context import ContextEnd
from ..llava_arch import LlavaMetaForCausalLM
from .continuing import embed_continuation
from .decoder import LlavaConfig, LlavaLlamaModel

__all__ = ["LlavaConfig", "LlavaLlamaForCausalLM", "LlavaLlamaModel"]


class LlavaLlamaForCausalLM(LlavaMetaForCausalLM, LlamaForCausalLM):
    """LLaVA with its output head and generation."""

    config_class = LlavaConfig

    def __init__(self, config: LlavaConfig) -> None:
        # LlamaForCausalLM would build a plain LlamaModel first; its parent builds none.
        super(LlamaForCausalLM, self).__init__(config)
        self.model = LlavaLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_model(self) -> LlavaLlamaModel:
        return self.model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: PrunedCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        images: Tensor | list[Tensor] | None = None,
        image_sizes: list[tuple[int, int]] | None = None,
        pruner: Pruner | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One forward pass; with `images`, `input_ids` holds IMAGE_TOKEN_INDEX where they go.

        Logits are those of the tokens left after the last layer. `labels` (batch, n) align with
        `input_ids`; they need an unpruned pass.

        Raises ValueError for labels together with a pruner.
        """
        if pruner is not None and labels is not None:
            raise ValueError("labels need every token: train without a pruner")
        if images is not None or pruner is not None:
            prompt = self.embed_prompt(
                input_ids, attention_mask, images, image_sizes, pruner=pruner, labels=labels
            )
            input_ids, inputs_embeds = None, prompt.embeds
            attention_mask, labels = prompt.layout.valid, prompt.labels
            if use_cache is None:
                use_cache = self.config.use_cache and labels is None
            if use_cache or pruner is not None:
                past_key_values = PrunedCache(pruner, prompt.layout)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.vocab_size)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        images: Tensor | list[Tensor] | None = None,
        image_sizes: list[tuple[int, int]] | None = None,
        pruner: Pruner | None = None,
        visual_token_num: int | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: PrunedCache | None = None,
        stop_strings: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate after a prompt with images; every option of transformers' `generate` works.

        inputs (or `input_ids`): (batch, n), IMAGE_TOKEN_INDEX (-200) once per image, left-padded
            with an `attention_mask`.
        images: (images of the whole batch, 3, h, w), preprocessed, in order; None without images.
            Of a model that tiles pictures (LLaVA-1.6) a list of (views, 3, h, w).
        image_sizes: (width, height) of each original picture; tells padding from picture, and
            which tile is where.
        pruner: settings from `llava.pruning.build`; None runs the unpruned model.
        visual_token_num: most tokens the vision tower may hand over per image.
        past_key_values: a PrunedCache of an earlier call, to go on with the same conversation;
            `inputs` is then the whole conversation. Only what is new runs, images the cache has
            seen may be left out, and what its prefill dropped stays dropped (`pruner` is not read).
        stop_strings: a sequence ends with the token that completes one of them in its text, as
            `tokenizer`, which must come along, decodes it without special tokens.

        Returns the new tokens only (batch, new), or with `return_dict_in_generate=True` an output
        whose `past_key_values.trace` tells what was pruned. An answer ends with the context.
        """
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if input_ids is None:
            raise ValueError("generate needs input_ids")
        if stop_strings:
            given = (kwargs.get("tokenizer"), kwargs.get("stopping_criteria"))
            kwargs["stopping_criteria"] = stopping_at(stop_strings, *given)
        cache = PrunedCache() if past_key_values is None else past_key_values
        given = (input_ids, attention_mask, images, image_sizes)
        if cache.is_empty:
            cache.pruner = cache.pruner if pruner is None else pruner
            prompt = self.embed_prompt(
                *given, pruner=cache.pruner, visual_token_num=visual_token_num
            )
            cache.layout, embeds, mask = prompt.layout, prompt.embeds, prompt.layout.valid.long()
        else:
            embeds, mask = embed_continuation(self, *given, cache, visual_token_num)
        grown = embeds.shape[1] - cache.layout.n
        end = ContextEnd([length + grown for length in cache.layout.lengths], self.config)
        criteria = [*(kwargs.pop("stopping_criteria", None) or ()), end]
        # Without ids transformers makes empty ones on `self.device`, which is meta if offloaded.
        return super().generate(
            torch.empty(len(embeds), 0, dtype=torch.long, device=embeds.device),
            inputs_embeds=embeds,
            attention_mask=mask,
            past_key_values=cache,
            stopping_criteria=StoppingCriteriaList(criteria),
            **kwargs,
        )


AutoConfig.register("llava_llama", LlavaConfig)
AutoModelForCausalLM.register(LlavaConfig, LlavaLlamaForCausalLM)
