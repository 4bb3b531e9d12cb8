"""One prefill under way: what each layer is called with, and what follows from what it returns.

    hidden, arguments = prefill.enter(index, hidden)
    hidden = prefill.leave(layer(hidden, **arguments))

`enter` gives the mask and the rotary tables of the tokens that are there; `leave` measures rows,
lets the method choose, gathers and records. Everything else of a prefill belongs to the caller, be
it the patched forward or hooks on a stock model.

Decide first. What a method chooses from attention rows needs the queries of the text and all keys,
nothing that the layer returns. So where more than `MANY` of a layer's tokens are about to leave,
their choice comes first: `enter` computes keys and values of all tokens and the queries of the
text, asks the method, and calls the layer with the tokens that stay (and those that will be
merged), while its cache hands it the keys and values of all. A token that leaves has then cost the
layer two projections and nothing else. In generation the last layer likewise runs for the last
token alone.

Layers get rotary tables and never position ids: gaps in positions would be read as borders of
packed sequences by some attention backends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .attention import (
    LayersAhead,
    Projections,
    Watch,
    attention_rows,
    check_rows,
    device_of,
    has_rows,
    moved,
)
from .base import Observation, PrunerRun
from .cache import PrunedCache
from .inputs import LayerInputs
from .layout import TokenLayout
from .selection import Selection, apply, right_aligned

#: Share of a layer's tokens above which it is worth its two projections to choose before it runs,
#: and how many of a batch's tokens it is worth its two dozen launches for.
MANY, LEAST = 0.1, 64


class Handed:
    """In place of `cache`, for a layer that runs on a part of its tokens: gives its attention the
    keys and values of all of them, which the cache has already."""

    def __init__(self, cache: PrunedCache, keys: Tensor, values: Tensor) -> None:
        self.cache, self.keys, self.values = cache, keys, values

    def update(self, *ignored: Any, **also: Any) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


@dataclass
class Step:
    """A layer under way.

    rows:      how many attention rows are measured, for the samples that are `needed`
    watch:     where the layer leaves its queries; None where it is not asked
    projected: whether the choice came first, which is then `selection`
    ran:       tokens of each sample that the whole layer runs for; empty: all
    """

    index: int
    rows: int
    needed: Sequence[bool]
    watch: Watch | None = None
    projected: bool = False
    ran: tuple[int, ...] = ()
    selection: Selection | None = None


class Prefill:
    """See the module.

    run:       the method's state of this prefill
    layout:    the tokens that are there
    decoder:   has `layers`, `norm` and `config`
    inputs:    their masks and rotary tables
    cache:     what keeps keys, values and the trace; None: nothing is kept, and nothing chosen
    last_only: whether only the last token's output is wanted
    """

    def __init__(
        self,
        run: PrunerRun,
        layout: TokenLayout,
        decoder: Any,
        inputs: LayerInputs,
        cache: PrunedCache | None,
        last_only: bool = False,
    ) -> None:
        self.run, self.layout, self.decoder = run, layout, decoder
        self.inputs, self.cache = inputs, cache
        self._last = decoder.config.num_hidden_layers - 1 if last_only else -1
        self._row_masks: dict[Any, Tensor] = {}
        if cache is not None:
            cache.begin(layout, run.positions)
            cache.trace.first = layout

    def begin(self, hidden: Tensor) -> Tensor:
        """Let the method choose among the embeddings `hidden` (batch, n, d)."""
        selection = self.run.at_entry(self.layout, hidden)
        if selection is None:
            return hidden
        self.layout = self.layout.select(selection)
        return apply(selection, hidden)

    def enter(self, index: int, hidden: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """What to call layer `index` with, `hidden` (batch, n, d) being what would enter it."""
        layer = self.decoder.layers[index]
        hidden = moved(hidden, device_of(layer, hidden))
        self.layout = layout = self.layout.to(hidden.device)
        self.inputs.enter(layout, hidden)
        arguments: dict[str, Any] = {
            "attention_mask": self.inputs.mask,
            "position_embeddings": self.inputs.rope,
            "past_key_values": None if self.cache is None else self.cache.layer(index),
            "use_cache": self.cache is not None,
        }
        if self.cache is None:
            return hidden, arguments
        rows, needed = self.run.rows(index, layout), self.run.needed_by(index, layout)
        self._step = Step(index, rows, needed)
        self.cache.entered(layout)
        if self._chooses_first(layer):
            return self._choose_first(self.cache, layer, hidden, arguments)
        # Given to every layer, so that those that are asked need no compiled graph of their own.
        watch = arguments["watch"] = Watch()
        self._step.watch = watch if rows else None
        return hidden, arguments

    @property
    def returned(self) -> TokenLayout:
        """The tokens that the layer under way runs for; where only the last is wanted, all."""
        selection = self._step.selection
        return self.layout if selection is None else self.layout.select(selection)

    def leave(self, hidden: Tensor) -> Tensor:
        """What goes on to the next layer of what the layer returned."""
        if self.cache is None:
            return hidden
        step, before, ahead_rows = self._step, self.layout, 0
        selection, source = step.selection, before
        if not step.projected:
            rope = self.inputs.rope
            ahead = LayersAhead(self.decoder, step.index, hidden, before, rope, self.inputs)
            keys = self.cache.held(step.index)
            rows = self._rows(step.watch.queries, keys) if step.watch else None
            mask = self._row_mask(step.rows)
            selection = self.run.after_layer(
                Observation(step.index, before, hidden, rows, mask, keys, ahead)
            )
            ahead_rows = ahead.rows_computed
            if selection is not None:
                hidden = apply(selection, hidden)
        if selection is not None:
            self.layout = before.select(selection)
            if selection.then is not None:
                source, selection = self.layout, selection.then(self.layout, hidden)
                self.layout, hidden = source.select(selection), apply(selection, hidden)
        self.cache.trace.record(
            before,
            step.rows,
            selection,
            self.layout,
            ahead_rows,
            step.needed,
            source=source,
            projected=step.projected,
            ran=step.ran,
        )
        return hidden

    def finish(self) -> None:
        """Note what the method measured."""
        if self.cache is not None:
            trace = self.cache.trace
            trace.complexity, trace.scoring = self.run.complexity(), self.run.scoring_flops()

    def _keys(self) -> int:
        """Keys that an attention's window may be too narrow for."""
        return 0 if self.inputs.windowed else self.layout.n

    def _chooses_first(self, layer: Any) -> bool:
        layout, index = self.layout, self._step.index
        leaving = self.run.leaving(index, layout)
        if leaving is None or not has_rows(layer.self_attn, self._keys()):
            return False
        tokens = sum(leaving)
        return index == self._last or (tokens > MANY * sum(layout.lengths) and tokens >= LEAST)

    def _choose_first(
        self, cache: PrunedCache, layer: Any, hidden: Tensor, arguments: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """`enter` of a layer whose choice needs nothing that it returns."""
        step, layout, inputs = self._step, self.layout, self.inputs
        ahead = Projections(layer, hidden, inputs.rope, self._keys())
        keys, values = cache.update(ahead.keys(), ahead.values(), step.index)
        rows = self._rows(ahead.queries(step.rows), keys) if step.rows else None
        step.selection = selection = self.run.after_layer(
            Observation(step.index, layout, None, rows, self._row_mask(step.rows), keys)
        )
        step.projected = True
        arguments["past_key_values"] = Handed(cache, keys, values)
        if step.index == self._last and (selection is None or selection.then is None):
            step.ran = (1,) * layout.batch
            mask, rope = inputs.of_last(layout, hidden)
            hidden = hidden[:, -1:]
        elif selection is not None:
            step.ran = selection.lengths
            mask, rope = inputs.of_part(layout, selection.index, hidden)
            hidden = apply(selection, hidden)
        else:
            return hidden, arguments
        return hidden, arguments | {"attention_mask": mask, "position_embeddings": rope}

    def _rows(self, queries: Tensor | None, keys: Tensor) -> Tensor:
        """Attention rows of the last tokens in the layer under way."""
        layout, count = self.layout, self._step.rows
        attention = self.decoder.layers[self._step.index].self_attn
        check_rows(attention, self._keys())
        if queries is None:
            raise ValueError(
                "the layers' attention shows no queries: it has to be one of "
                "llava.model.language_model.attention"
            )
        seen = self.inputs.rows_seen(layout, count)
        return attention_rows(queries[:, :, -count:], keys, attention.scaling, seen)

    def _row_mask(self, count: int) -> Tensor | None:
        """(batch, count): True on those of the last `count` tokens that follow the last image;
        None where all do."""
        tails = tuple(min(tail, count) for tail in self.layout.tail)
        if min(tails) == count:
            return None
        key = (self.layout.device, count, tails)
        if key not in self._row_masks:
            self._row_masks[key] = right_aligned(tails, count, self.layout.device)
        return self._row_masks[key]
