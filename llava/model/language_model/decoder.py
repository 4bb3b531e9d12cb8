"""The patched decoder: a short loop of our own over stock transformers Llama layers.

With nothing to prune it computes what transformers' `LlamaModel` computes, bit for bit; with
pruning, what a full-length run computes in which dropped tokens are masked. All state of a call
lives in its `PrunedCache`, so the model can serve several calls at once.

Layers get rotary tables and never `position_ids`: gaps in positions would be read as borders of
packed sequences by some attention backends.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaModel

from ...pruning.base import Observation
from ...pruning.cache import PrunedCache
from ...pruning.cost import DecoderShape
from ...pruning.layout import TokenLayout, apply
from ...pruning.methods.dense import Dense
from ..llava_arch import LlavaMetaModel
from .attention import LayersAhead, attention_rows, causal_mask, check_backend, kept_queries


class LlavaConfig(LlamaConfig):
    """A Llama config with LLaVA's `mm_*` keys, and the vision tower's config as `mm_vision_config`.

    The class attributes are the values of keys that LLaVA-1.5's config.json leaves out.
    `anyres_reading` is no key of LLaVA's: "llava" or "llava-hf", see `llava.anyres`.
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
        self.build_vision(config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: PrunedCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the decoder; the first call on a cache prefills and prunes, later ones decode.

        input_ids (batch, n) or inputs_embeds (batch, n, d); attention_mask (batch, n), left
        padding, is read only in a prefill for which the cache holds no layout. `position_ids`
        are accepted and ignored: positions follow from the layout. Returns the hidden states of
        the tokens that are left after the last layer.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if kwargs.get("output_attentions") or kwargs.get("output_hidden_states"):
            raise ValueError(
                "per-layer outputs are not collected, since layers hold different tokens; "
                "what was kept is in past_key_values.trace"
            )
        check_backend(self.config._attn_implementation)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        cache = past_key_values
        if cache is None and use_cache:
            cache = PrunedCache()
        if cache is not None and not isinstance(cache, PrunedCache):
            raise ValueError(
                f"past_key_values must be a PrunedCache, got {type(cache).__name__}; "
                "pass none, or make one with PrunedCache(pruner)"
            )
        if cache is not None and not cache.is_empty:
            hidden = self._decode(inputs_embeds, cache, kwargs)
        else:
            hidden = self._prefill(inputs_embeds, attention_mask, cache, kwargs)
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden), past_key_values=cache if use_cache else None
        )

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

    def _prefill(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None,
        cache: PrunedCache | None,
        kwargs: dict[str, Any],
    ) -> Tensor:
        layout = self._layout(hidden, attention_mask, cache)
        pruner = (cache.pruner if cache is not None else None) or Dense()
        shape = DecoderShape.from_config(self.config, tower=self.tower_shape())
        run = pruner.start(layout, shape)
        if cache is not None:
            cache.begin(layout, run.positions)
            cache.trace.first = layout
        selection = run.at_entry(layout, hidden)
        if selection is not None:
            hidden, layout = apply(selection, hidden), layout.select(selection)

        backend = self.config._attn_implementation
        rope = mask = row_mask = None
        for index, layer in enumerate(self.layers[: self.config.num_hidden_layers]):
            if rope is None:
                rope = self.rotary_emb(hidden, layout.positions(run.positions))
                valid = layout.valid if layout.padded else None
                mask = causal_mask(backend, valid, layout.n, layout.n, hidden)
            count = run.rows(index, layout) if cache is not None else 0
            needed = run.needed_by(index, layout)
            with kept_queries(layer) if count else nullcontext([]) as queries:
                hidden = layer(
                    hidden,
                    attention_mask=mask,
                    position_embeddings=rope,
                    past_key_values=cache,
                    use_cache=cache is not None,
                    **kwargs,
                )
            if cache is None:
                continue
            cache.entered(layout)
            before = layout.to(hidden.device)
            rows = None
            keys = cache.layers[index].keys
            if count:
                rows = attention_rows(layer.self_attn, queries[0], rope, keys, count, valid)
                if row_mask is None or row_mask.shape[1] != count:
                    row_mask = _tail_mask(layout, count)
                row_mask = row_mask.to(hidden.device)
            ahead = LayersAhead(self, index, hidden, rope, valid)
            observation = Observation(index, before, hidden, rows, row_mask, keys, ahead)
            selection = run.after_layer(observation)
            if selection is not None:
                hidden = apply(selection, hidden)
                layout = before.select(selection)
                rope = None
            cache.trace.record(before, count, selection, layout, ahead.rows_computed, needed)
        if cache is not None:
            cache.trace.complexity, cache.trace.scoring = run.complexity(), run.scoring_flops()
        return hidden

    def _decode(self, hidden: Tensor, cache: PrunedCache, kwargs: dict[str, Any]) -> Tensor:
        tokens = hidden.shape[1]
        positions = cache.next_positions(tokens)
        cos, sin = self.rotary_emb(hidden, positions.flatten(0, 1))
        tables = list(
            zip(cos.unflatten(0, positions.shape[:2]), sin.unflatten(0, positions.shape[:2]))
        )
        backend = self.config._attn_implementation
        for index, layer in enumerate(self.layers[: self.config.num_hidden_layers]):
            valid = cache.valid_keys(index, tokens)
            keys = cache.layers[index].keys.shape[-2] + tokens
            hidden = layer(
                hidden,
                attention_mask=causal_mask(backend, valid, tokens, keys, hidden),
                position_embeddings=tables[index if len(tables) > 1 else 0],
                past_key_values=cache,
                use_cache=True,
                **kwargs,
            )
        cache.append(tokens)
        return hidden


def _tail_mask(layout: TokenLayout, count: int) -> Tensor:
    """(batch, count): True on those of the last `count` tokens that follow the last image."""
    tail = torch.tensor(layout.tail, device=layout.image.device)[:, None]
    return torch.arange(count, 0, -1, device=tail.device)[None] <= tail
