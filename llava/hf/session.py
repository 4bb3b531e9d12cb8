"""What a user calls: a block, a cache, and a cost without running."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaModel

from ..model.language_model.attention import watch_attention
from ..pruning import build, find
from ..pruning.base import Pruner
from ..pruning.cache import PrunedCache
from ..pruning.cost import Cost, DecoderShape, measure
from ..pruning.inputs import OwnInputs
from ..pruning.methods.dense import Dense
from ..pruning.prefill import Prefill
from ..pruning.trace import PruneTrace
from .families import by_tower, demand_fitting, demand_positions, family_of
from .hooks import new_cache, supplied
from .logical import LogicalCache
from .prompts import layout_of
from .tower import scored


class Pruned:
    """What a block has done. `trace` is of its last call, `cost` of each sample of that call, its
    new tokens included; both are empty before the first."""

    def __init__(self, model: Any, pruner: Pruner) -> None:
        self.pruner = pruner
        self._model = model
        self._cache: LogicalCache | None = None
        self._trace, self._new_tokens = PruneTrace(), 0

    @property
    def trace(self) -> PruneTrace:
        return self._trace if self._cache is None else self._cache.trace

    @property
    def cost(self) -> list[Cost]:
        shape = DecoderShape.from_config(self._model.get_decoder().config)
        new = self._new_tokens if self._cache is None else self._cache.new_tokens
        return [measure(sample, shape, new) for sample in self.trace.samples]

    def _supply(self) -> LogicalCache:
        self._cache = new_cache(self._model, self.pruner)
        return self._cache

    def _close(self) -> None:
        if self._cache is not None:
            self._trace, self._new_tokens = self._cache.trace, self._cache.new_tokens
        self._cache = None


@contextmanager
def pruning(model: Any, method: str | Pruner = "autoprune", **settings: Any) -> Iterator[Pruned]:
    """Prune every `generate` and call of `model` in the block that brings no cache of its own.

    method: a name with `settings`, as `pruning.build` takes them (positions are then original
    unless set), or a pruner.

    Only calls of the thread (or asyncio task) that opened the block are pruned.

    Raises ValueError for models and methods that do not fit, see `families`; calls do for static
    and quantised caches, `use_cache=False`, inputs without ids, and what the method refuses.
    """
    pruner = _pruner(model, method, settings)
    pruned = Pruned(model, pruner)
    with supplied(model, pruner, pruned._supply):
        try:
            yield pruned
        finally:
            pruned._close()


def cache(model: Any, method: str | Pruner = "autoprune", **settings: Any) -> LogicalCache:
    """A cache for one call, to be given as `past_key_values`; its `trace` says what was pruned.

    Takes and raises what `pruning` does.
    """
    return new_cache(model, _pruner(model, method, settings))


@torch.no_grad()
def cost(
    model: Any,
    inputs: Mapping[str, Any],
    method: str | Pruner = "autoprune",
    *,
    new_tokens: int = 0,
    **settings: Any,
) -> list[Cost]:
    """What `inputs` would cost in `generate`, one entry a sample, without running the model.

    The counts are those of a decoder of random weights, as deep and eight numbers wide: exact for
    methods whose counts follow from the budget; where they depend on what attention shows, its even
    attention stands for the model's (AutoPrune spends the same budget, on a curve of its own).

    Takes and raises what `pruning` does.
    """
    pruner, config = _pruner(model, method, settings), model.get_decoder().config
    if inputs.get("input_ids") is None:
        raise ValueError("a cost needs input_ids, to know visual tokens from text")
    ids, mask = inputs["input_ids"].cpu(), inputs.get("attention_mask")
    mask = None if mask is None else mask.cpu()
    layout = layout_of(model.config, family_of(model).pictures, ids, mask, inputs)
    if by_tower(pruner):
        layout = scored(layout, torch.zeros(sum(layout.n_visual), 1))
    shape = DecoderShape.from_config(config)
    run = pruner.start(layout, shape)
    run.positions = getattr(pruner, "positions", "original")
    demand_positions(family_of(model), model, run.positions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
        decoder = LlamaModel(LlamaConfig(vocab_size=8, num_hidden_layers=shape.layers, **small))
        hidden = torch.randn(layout.batch, layout.n, 8)
    decoder.eval().set_attn_implementation("sdpa")
    watch_attention(decoder.layers)
    trace_cache = PrunedCache(pruner)
    rope = decoder.rotary_emb(hidden, layout.position)
    layers = OwnInputs(rope, layout, run.positions, "sdpa")
    prefill = Prefill(run, layout, decoder, layers, trace_cache, not isinstance(pruner, Dense))
    hidden = prefill.begin(hidden)
    for index, layer in enumerate(decoder.layers):
        hidden, arguments = prefill.enter(index, hidden)
        hidden = prefill.leave(layer(hidden, **arguments))
    prefill.finish()
    return [measure(sample, shape, new_tokens) for sample in trace_cache.trace.samples]


def _pruner(model: Any, method: str | Pruner, settings: Mapping[str, Any]) -> Pruner:
    """The pruner of a model, after a look at whether both fit."""
    family_of(model)
    if isinstance(method, Pruner):
        if settings:
            raise ValueError(f"settings {sorted(settings)} go with a method's name, not a pruner")
        pruner = method
    else:
        names = {field.name for field in fields(find(method))}
        default = {"positions": "original"} if "positions" in names else {}
        pruner = build(method, **{**default, **settings})
    demand_fitting(model, pruner)
    return pruner
