"""Hooks on a stock model that call a prefill, layer by layer.

They are on a model as long as a `LogicalCache` or a block of `session.pruning` needs them, and act
on calls with such a cache alone; state of a call is in its cache. While they are there, the layers'
attention is `watched`, which calls the kernel that the model's config names.

A layer's `leave` waits until the next layer is entered, whose mask and rotary tables are then known
to methods that look ahead. DeepStack (Qwen3-VL) adds features behind a layer by full-length masks;
here they are taken out of the decoder's arguments and added to the tokens that are left.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ..model.language_model.attention import watch_attention
from ..model.language_model.backends import backend_of
from ..pruning.attention import Rope, moved
from ..pruning.base import Pruner
from ..pruning.cost import DecoderShape
from ..pruning.decoding import Decoding
from ..pruning.inputs import OwnInputs
from ..pruning.layout import TokenLayout
from ..pruning.methods.dense import Dense
from ..pruning.prefill import Handed, Prefill
from .families import by_tower, demand_positions, family_of
from .inputs import StockDecoding, StockInputs
from .logical import ANOTHER, LogicalCache
from .prompts import layout_of, placeholders
from .tower import TowerScores, scored

#: By id of a model, what makes the caches of its calls in this thread or task.
suppliers: ContextVar[Mapping[int, Callable[[], LogicalCache]] | None]
suppliers = ContextVar("suppliers", default=None)

_INSTALLED: dict[int, Hooks] = {}
_LOCK = threading.RLock()


class DeepStack:
    """Features to be added to visual tokens behind the first layers.

    mask: (batch, n) of the unpruned sequence, True on visual tokens
    features: of each layer, (visual tokens of the batch, d)
    """

    def __init__(self, mask: Tensor, features: list[Tensor]) -> None:
        self.mask, self.features = mask, features
        self.number = mask.flatten().cumsum(0).sub(1).clamp(min=0).view_as(mask)

    def add(self, index: int, hidden: Tensor, layout: TokenLayout) -> Tensor:
        """What layer `index` returned, (batch, m, d) of the last m tokens of `layout`, with its
        features."""
        if index >= len(self.features):
            return hidden
        mask, number = (moved(values, hidden.device) for values in (self.mask, self.number))
        if layout.columns is not None:
            mask, number = (values.gather(1, layout.columns) for values in (mask, number))
        features = self.features[index].to(hidden.device, hidden.dtype)[number]
        m = hidden.shape[1]
        return hidden + features.where(mask[..., None], 0)[:, -m:]


class _Under:
    """A prefill under way: `enter` and `leave` of `Prefill`, with what stock code gives."""

    def __init__(self, prefill: Prefill, inputs: StockInputs | OwnInputs, deep: DeepStack | None):
        self.prefill, self.inputs, self.deep = prefill, inputs, deep
        self.rope: Rope | None = None

    def enter(self, index: int, hidden: Tensor, given: dict[str, Any]) -> tuple[Tensor, dict]:
        rope = given["position_embeddings"]
        if isinstance(self.inputs, StockInputs):
            self.inputs.offer(given["attention_mask"], self._joined(rope))
        hidden = self.leave(index, hidden) if index else self.prefill.begin(hidden)
        hidden, arguments = self.prefill.enter(index, hidden)
        arguments = _changed(arguments)
        if hidden.shape[1] != rope[0].shape[-2]:
            arguments["position_ids"] = None
        if rope[0].dim() == 4:
            tables = arguments["position_embeddings"]
            arguments["position_embeddings"] = tuple(t.expand(3, *t.shape) for t in tables)
        return hidden, arguments

    def _joined(self, rope: Rope) -> Rope:
        """Tables (batch, n, head_dim). Up to transformers 5.8 or so Qwen2-VL's attention gets one
        for each of time, height and width, (3, batch, n, head_dim), and joins them itself."""
        if rope[0].dim() == 3:
            return rope
        if self.rope is None:
            sections = self.prefill.decoder.config.rope_parameters["mrope_section"] * 2
            cos, sin = (
                torch.cat([part[i % 3] for i, part in enumerate(table.split(sections, -1))], -1)
                for table in rope
            )
            self.rope = cos, sin
        return self.rope

    def leave(self, index: int, hidden: Tensor) -> Tensor:
        """What goes on from layer `index` - 1."""
        if self.deep is not None:
            hidden = self.deep.add(index - 1, hidden, self.prefill.returned)
        return self.prefill.leave(hidden)


class _Compact:
    """A step after a prefill with compact positions, whose masks and tables are this package's."""

    def __init__(self, decoding: Decoding) -> None:
        self.decoding = decoding

    def enter(self, index: int, hidden: Tensor, given: dict[str, Any]) -> tuple[Tensor, dict]:
        hidden, arguments = self.decoding.enter(index, hidden)
        return hidden, _changed(arguments) | {"position_ids": None}


def _changed(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of a layer's arguments that stock code does not give: it gives the whole cache."""
    handed = isinstance(arguments["past_key_values"], Handed)
    kept = ("use_cache",) if handed else ("use_cache", "past_key_values")
    return {name: value for name, value in arguments.items() if name not in kept}


class Hooks:
    """Those of one model, counted by who needs them."""

    def __init__(self, model: Any) -> None:
        self.model, self.family, self.users = model, family_of(model), 0
        self.decoder = model.get_decoder()
        self.tower: TowerScores | None = None
        layers = self.decoder.layers[: self.decoder.config.num_hidden_layers]
        self._handles = [
            model.register_forward_pre_hook(self._call, with_kwargs=True),
            self.decoder.register_forward_pre_hook(self._take_features, with_kwargs=True),
            layers[-1].register_forward_hook(self._end, with_kwargs=True),
        ]
        for index, layer in enumerate(layers):
            hook = self._entering(index)
            self._handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        self._configs = [(layer.self_attn, layer.self_attn.config) for layer in layers]
        watch_attention(layers)

    def look_at_tower(self) -> None:
        """From now on, know the scores of the tower."""
        if self.tower is None:
            self.tower = TowerScores(self.model)
            self._handles.append(self.tower.handle)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        for attention, config in self._configs:
            attention.config = config

    def _call(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Before a call of the model: its cache, and the layout of a prompt."""
        given = kwargs.get("past_key_values")
        if not isinstance(given, LogicalCache):
            supplier = (suppliers.get() or {}).get(id(self.model))
            if supplier is None or (given is not None and given.get_seq_length()):
                return None
            _demand_plain(given, kwargs)
            given = supplier()
        if given.model_id != id(self.model):
            raise ValueError(ANOTHER)
        if kwargs.get("output_attentions") or kwargs.get("output_hidden_states"):
            raise ValueError(
                "per-layer outputs are not collected, since layers hold different tokens; what was "
                "kept is in past_key_values.trace"
            )
        if self.model.training and getattr(self.model, "is_gradient_checkpointing", False):
            raise ValueError("gradient checkpointing runs layers without a cache: switch it off")
        labels = kwargs.get("labels")
        if labels is not None and (labels != -100).any():  # PaliGemma's processor gives only these
            raise ValueError("labels need every token: train without a pruner")
        backend_of(self.decoder.config)
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise ValueError("pruning reads input_ids to know visual tokens from text: give them")
        if given.is_empty:
            mask, config = kwargs.get("attention_mask"), self.model.config
            if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
                raise ValueError("attention_mask must be (batch, n); static caches make others")
            given.layout = layout_of(config, self.family.pictures, ids, mask, kwargs)
            keep = kwargs.get("logits_to_keep")
            given.last_only = isinstance(keep, int) and keep == 1
        elif ids.shape[1] > 1:
            known = torch.tensor([*placeholders(self.model.config)], device=ids.device)
            if torch.isin(ids, known).any():
                raise ValueError(
                    "visual tokens behind the prefill: begin a conversation with another picture "
                    "anew, and use no prefill_chunk_size, which cuts prompts"
                )
        unlabelled = {} if labels is None else {"labels": None}
        return args, kwargs | unlabelled | {"past_key_values": given}

    def _take_features(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        cache = kwargs.get("past_key_values")
        if not isinstance(cache, LogicalCache):
            return None
        features = kwargs.get("deepstack_visual_embeds")
        cache.deep = None
        if features is None:
            return None
        cache.deep = DeepStack(kwargs["visual_pos_masks"], features)
        return args, kwargs | {"deepstack_visual_embeds": None}

    def _entering(self, index: int) -> Callable[..., Any]:
        def hook(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
            cache = kwargs.get("past_key_values")
            if not isinstance(cache, LogicalCache):
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            if index == 0:
                cache.step = self._begin(cache, hidden)
            hidden, arguments = cache.step.enter(index, hidden, kwargs)
            kwargs = {k: v for k, v in kwargs.items() if k != "hidden_states"} | arguments
            return (hidden, *args[1:]), kwargs

        return hook

    def _begin(self, cache: LogicalCache, hidden: Tensor) -> Any:
        decoder, tokens = self.decoder, hidden.shape[1]
        backend = backend_of(decoder.config)
        if not cache.is_empty:
            if cache.positions == "compact":
                return _Compact(Decoding(hidden, decoder, cache, backend))
            return StockDecoding(cache, tokens, backend)
        layout, pruner = cache.layout, cache.pruner or Dense()
        if layout is None or (layout.batch, layout.n) != hidden.shape[:2]:
            raise ValueError("the cache knows no prompt of this shape: call the model itself")
        if self.tower is not None:
            scores = self.tower.take()
            layout = scored(layout, scores) if by_tower(pruner) else layout
        run = pruner.start(layout, DecoderShape.from_config(decoder.config))
        run.positions = getattr(pruner, "positions", "original")
        demand_positions(self.family, self.model, run.positions)
        layout = layout.to(hidden.device)
        _demand_visible(decoder, layout, backend)
        inputs: StockInputs | OwnInputs
        if run.positions == "compact":
            # Stock code may count padding, and later steps count what is held.
            rope = decoder.rotary_emb(hidden, layout.position)
            inputs = OwnInputs(rope, layout, "compact", backend)
        else:
            inputs = StockInputs(layout, backend, decoder.layers[0].self_attn.is_causal)
        last_only = cache.last_only and not isinstance(pruner, Dense)
        prefill = Prefill(run, layout, decoder, inputs, cache, last_only)
        return _Under(prefill, inputs, cache.deep)

    def _end(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """After the last layer."""
        given = kwargs.get("past_key_values")
        cache = given.cache if isinstance(given, Handed) else given
        if not isinstance(cache, LogicalCache):
            return None
        step, cache.step = cache.step, None
        # Layers of early transformers 5 may return a tuple.
        hidden, more = (output, ()) if isinstance(output, Tensor) else (output[0], output[1:])
        if not isinstance(step, _Under):
            cache.append(hidden.shape[1])
            return None
        hidden = step.leave(len(self.decoder.layers), hidden)
        step.prefill.finish()
        return hidden if isinstance(output, Tensor) else (hidden, *more)


def _demand_plain(given: Any, kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError for a call that the cache of a block cannot take part in."""
    if kwargs.get("use_cache") is False:
        raise ValueError("use_cache=False: a pruned model keeps what is left in its cache")
    plain = given is None or type(given) is DynamicCache
    offloaded = "an offloaded " if getattr(given, "offloading", False) else ""
    if not plain or offloaded:
        raise ValueError(
            "pruning keeps keys and values in a cache of its own, in place of a DynamicCache and "
            f"not of {offloaded}{type(given).__name__} (cache_implementation: static, quantized "
            "and offloaded caches are not pruned)"
        )


def _demand_visible(decoder: nn.Module, layout: TokenLayout, backend: str) -> None:
    """Raise ValueError where flash attention would count a window over what is left."""
    windows = [getattr(layer.self_attn, "sliding_window", None) for layer in decoder.layers]
    if backend == "flash_attention_2" and any(w and w < layout.n for w in windows):
        raise ValueError(
            "flash_attention_2 counts a sliding window over the tokens that are left, not over the "
            'unpruned sequence: use attn_implementation="sdpa" for a prompt longer than the window'
        )


def install(model: Any, pruner: Pruner) -> Hooks:
    """The hooks of a model, which one more user needs, for `pruner`."""
    with _LOCK:
        hooks = _INSTALLED.get(id(model)) or Hooks(model)
        _INSTALLED[id(model)] = hooks
        if by_tower(pruner):
            hooks.look_at_tower()
        hooks.users += 1
        return hooks


def release(hooks: Hooks) -> None:
    """One user less; the last takes the hooks along."""
    with _LOCK:
        hooks.users -= 1
        if not hooks.users:
            hooks.remove()
            del _INSTALLED[id(hooks.model)]


def new_cache(model: Any, pruner: Pruner) -> LogicalCache:
    """A cache whose hooks are on the model as long as it is there."""
    hooks = install(model, pruner)
    made_cache = LogicalCache(pruner, hooks.family, id(model))
    weakref.finalize(made_cache, release, hooks).atexit = False
    return made_cache


@contextmanager
def supplied(model: Any, pruner: Pruner, supplier: Callable[[], LogicalCache]) -> Iterator[None]:
    """Calls of the model in this thread or task that have no cache of ours get one from
    `supplier`."""
    hooks = install(model, pruner)
    token = suppliers.set({**(suppliers.get() or {}), id(model): supplier})
    try:
        yield
    finally:
        suppliers.reset(token)
        release(hooks)
