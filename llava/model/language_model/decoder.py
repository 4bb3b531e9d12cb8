"""The patched decoder: a short loop of our own over stock transformers Llama layers.

With nothing to prune it computes what transformers' `LlamaModel` computes, bit for bit; with
pruning, what a full-length run computes in which dropped tokens are masked. All state of a call
lives in its `PrunedCache`, so the model can serve several calls at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaModel

from ...pruning.cache import PrunedCache
from ...pruning.cost import DecoderShape
from ...pruning.decoding import Decoding
from ...pruning.inputs import OwnInputs
from ...pruning.layout import TokenLayout
from ...pruning.methods.dense import Dense
from ...pruning.prefill import Prefill
from ..llava_arch import LlavaMetaModel
from .attention import watch_attention
from .backends import backend_of


class LlavaConfig(LlamaConfig):
    """A Llama config with LLaVA's `mm_*` keys, and the vision tower's config as `mm_vision_config`.

    The class attributes are the values of keys that LLaVA-1.5's config.json leaves out.
    `anyres_reading` is no key of LLaVA's: see `llava.anyres`.
    `mm_token_adapter`: tokens of a view before and after Senna's adapter, None without one.
    """

    model_type = "llava_llama"
    mm_vision_config = None
    mm_vision_select_layer = -2
    mm_vision_select_feature = "patch"
    mm_projector_type = "linear"
    mm_patch_merge_type = "flat"
    mm_token_adapter = None
    mm_use_im_start_end = False
    mm_use_im_patch_token = False
    image_aspect_ratio = "square"
    image_grid_pinpoints = None
    anyres_reading = "llava"
    tokenizer_model_max_length = None


class LlavaLlamaModel(LlavaMetaModel, LlamaModel):
    """LLaVA without the output head."""

    config_class = LlavaConfig

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        watch_attention(self.layers)
        self.build_vision(config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: PrunedCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the decoder; the first call on a cache prefills and prunes, later ones decode.

        input_ids (batch, n) or inputs_embeds (batch, n, d); attention_mask (batch, n), left
        padding, is read only in a prefill for which the cache holds no layout. `position_ids`
        are accepted and ignored: positions follow from the layout. Returns the hidden states of
        the tokens that are left after the last layer; with `logits_to_keep` 1, which `generate`
        gives, a pruned prefill returns the last token's alone.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if kwargs.get("output_attentions") or kwargs.get("output_hidden_states"):
            raise ValueError(
                "per-layer outputs are not collected, since layers hold different tokens; "
                "what was kept is in past_key_values.trace"
            )
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = self._cache(past_key_values, use_cache)
        last_only = isinstance(logits_to_keep, int) and logits_to_keep == 1
        under_way, hidden = self._begin(hidden, attention_mask, cache, last_only)
        for index, layer in enumerate(self.layers[: self.config.num_hidden_layers]):
            hidden, arguments = under_way.enter(index, hidden)
            hidden = under_way.leave(layer(hidden, **arguments, **kwargs))
        under_way.finish()
        keeps = self.config.use_cache if use_cache is None else use_cache
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden), past_key_values=cache if keeps else None
        )

    def _cache(self, given: Any, use_cache: bool | None) -> PrunedCache | None:
        if given is None:
            keeps = self.config.use_cache if use_cache is None else use_cache
            return PrunedCache() if keeps else None
        if not isinstance(given, PrunedCache):
            raise ValueError(
                f"past_key_values must be a PrunedCache, got {type(given).__name__}; "
                "pass none, or make one with PrunedCache(pruner)"
            )
        return given

    def _begin(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None,
        cache: PrunedCache | None,
        last_only: bool,
    ) -> tuple[Prefill | Decoding, Tensor]:
        """What accompanies the layers, and the states that enter the first of them."""
        backend = backend_of(self.config)
        if cache is not None and not cache.is_empty:
            return Decoding(hidden, self, cache, backend), hidden
        layout = self._layout(hidden, attention_mask, cache)
        pruner = (cache.pruner if cache is not None else None) or Dense()
        run = pruner.start(layout, DecoderShape.from_config(self.config, tower=self.tower_shape()))
        # Unpruned, every bit is stock transformers': the last layer runs for all tokens.
        last_only = last_only and not isinstance(pruner, Dense)
        rope = self.rotary_emb(hidden, layout.position)
        inputs = OwnInputs(rope, layout, run.positions, backend)
        prefill = Prefill(run, layout, self, inputs, cache, last_only)
        return prefill, prefill.begin(hidden)

    def _layout(
        self, embeds: Tensor, attention_mask: Tensor | None, cache: PrunedCache | None
    ) -> TokenLayout:
        layout = cache.layout if cache is not None else None
        if layout is None:
            if attention_mask is None:
                attention_mask = torch.ones(embeds.shape[:2], device=embeds.device)
            return TokenLayout.text_only(attention_mask)
        # Beam search and several returned sequences repeat every sample before the prefill.
        layout = layout.repeat(embeds.shape[0] // layout.batch)
        if (layout.batch, layout.n) != embeds.shape[:2]:
            raise ValueError(
                f"the cache's layout is {(layout.batch, layout.n)}, the input "
                f"{tuple(embeds.shape[:2])}: make a new PrunedCache for new input"
            )
        return layout
