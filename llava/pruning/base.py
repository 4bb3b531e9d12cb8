"""The contract between a pruning method and the decoder.

A method is a frozen dataclass (`Pruner`): its fields are its hyper-parameters, and their defaults
stand nowhere else. Each prefill starts a fresh `PrunerRun`, which may hold the state of that one
prefill; so a pruner can be shared by threads and calls, and the model holds nothing.

The decoder asks the run, in this order:
  at_entry(layout)          -> Selection | None     before layer 0
  rows(layer, layout)       -> int                  attention of how many last tokens to measure
  after_layer(observation)  -> Selection | None     with those rows, after the layer ran
"""

from __future__ import annotations

import abc
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor

from .cost import DecoderShape
from .layout import Selection, TokenLayout


@dataclass(frozen=True)
class Observation:
    """What a method may look at after a layer. Read-only.

    layer:     index, counted from 0
    layout:    the tokens that entered the layer
    hidden:    (batch, n, d), what the layer returned for them
    rows:      (batch, heads, r, n) float32, attention of the last r tokens over all keys of the
               layer, softmaxed; None when none were asked for
    row_mask:  (batch, r), True on rows of text tokens after the sample's last visual token
    """

    layer: int
    layout: TokenLayout
    hidden: Tensor
    rows: Tensor | None = None
    row_mask: Tensor | None = None


class PrunerRun:
    """One prefill of one batch. The base class keeps everything."""

    positions: str = "original"

    def at_entry(self, layout: TokenLayout) -> Selection | None:
        """Choose among the tokens before layer 0."""
        return None

    def rows(self, layer: int, layout: TokenLayout) -> int:
        """How many of the last tokens to measure attention rows for in `layer`; 0 for none."""
        return 0

    def after_layer(self, observation: Observation) -> Selection | None:
        """Choose among the tokens that entered the layer, after it ran."""
        return None

    def complexity(self) -> list[dict[str, float]]:
        """What was measured of each sample (one dict a sample), for the trace; may be empty."""
        return []


@dataclass(frozen=True, kw_only=True)
class Pruner(abc.ABC):
    """Settings of a method. `needs_cls` asks the vision tower for the attention of its CLS row."""

    method: ClassVar[str] = ""
    needs_cls: ClassVar[bool] = False

    @abc.abstractmethod
    def start(self, layout: TokenLayout, shape: DecoderShape) -> PrunerRun:
        """Begin a prefill of the samples in `layout` on a decoder of that shape.

        Raises ValueError when the samples or the model lack what the method needs.
        """

    def to_dict(self) -> dict[str, Any]:
        """Every setting and the method's name, JSON-serialisable; `pruning.build` takes it back."""
        return {"method": self.method, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Dense(Pruner):
    """No pruning: the unpruned model, run by the same loop and counted the same way."""

    method: ClassVar[str] = "none"

    def start(self, layout: TokenLayout, shape: DecoderShape) -> PrunerRun:
        return PrunerRun()
