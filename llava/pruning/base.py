"""The contract between a pruning method and the decoder.

A method is a frozen dataclass (`Pruner`): its fields are its hyper-parameters, and their defaults
stand nowhere else. Each prefill starts a fresh `PrunerRun`, which may hold the state of that one
prefill; so a pruner can be shared by threads and calls, and the model holds nothing.

In the vision tower the pruner itself is asked (see `vision`):
  tower_layers(ran)         -> (int, ...)           layers of the tower to probe
  tower_runs(groups, ...)   -> [TowerRun] | None    merges inside the tower, one a view
  reduce(features, groups)  -> [Reduced] | None     what goes on to the projector, one a view
The decoder asks the run, in this order:
  at_entry(layout, embeds)  -> Selection | None     before layer 0
  rows(layer, layout)       -> int                  attention of how many last tokens to measure
  leaving(layer, layout)    -> [int] | None         whether the choice may come before the layer
  after_layer(observation)  -> Selection | None     with those rows, who goes on to the next layer
"""

from __future__ import annotations

import abc
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Protocol

from torch import Tensor

from .checks import demand_declared
from .cost import DecoderShape
from .layout import TokenLayout
from .selection import Selection
from .vision import Groups, Reduced, TowerRun, VisionFeatures, ranking_layer


class Ahead(Protocol):
    """What the decoder computes only when a method asks for it, of what the layer returned."""

    def rows(self, count: int) -> Tensor:
        """Attention rows of the last `count` tokens in the *next* layer, as if nothing were
        dropped: (batch, heads, count, n) float32. Costs that layer's key projection once more.

        Raises ValueError after the last layer.
        """
        ...

    def final_norm(self) -> Tensor:
        """The layer's output through the norm before the output head: (batch, n, d)."""
        ...

    def next_norm(self) -> Tensor:
        """The layer's output through the next layer's first norm: (batch, n, d).

        Raises ValueError after the last layer.
        """
        ...


@dataclass(frozen=True)
class Observation:
    """What a method may look at after a layer. Read-only.

    layer:     index, counted from 0
    layout:    the tokens that entered the layer
    hidden:    (batch, n, d), what the layer returned for them; None where the method said by
               `leaving` that it does not look at it, and the layer has not run yet
    rows:      (batch, heads, r, n) float32, attention of the last r tokens over all keys of the
               layer, softmaxed; None when none were asked for
    row_mask:  (batch, r), True on rows of text tokens after the sample's last visual token; None
               where all are
    keys:      (batch, kv heads, n, head_dim), what the layer cached, rotated
    ahead:     more, computed on request; None where `hidden` is
    """

    layer: int
    layout: TokenLayout
    hidden: Tensor | None = None
    rows: Tensor | None = None
    row_mask: Tensor | None = None
    keys: Tensor | None = None
    ahead: Ahead | None = None

    def measured(self) -> tuple[Tensor, Tensor | None]:
        """`rows` and `row_mask` of a layer that was asked for rows."""
        assert self.rows is not None, "no rows were asked for"
        return self.rows, self.row_mask

    def returned(self) -> Tensor:
        """`hidden` of a layer that has run."""
        assert self.hidden is not None, "the layer has not run yet"
        return self.hidden

    def looked_ahead(self) -> Ahead:
        """`ahead`, which the decoder gives after every layer."""
        assert self.ahead is not None, "the layer has not run yet"
        return self.ahead


class PrunerRun:
    """One prefill of one batch. The base class keeps everything."""

    positions: str = "original"

    def at_entry(self, layout: TokenLayout, embeds: Tensor) -> Selection | None:
        """Choose among the tokens before layer 0; `embeds` (batch, n, d) is what would enter it."""
        return None

    def rows(self, layer: int, layout: TokenLayout) -> int:
        """How many of the last tokens to measure attention rows for in `layer`; 0 for none."""
        return 0

    def needed_by(self, layer: int, layout: TokenLayout) -> Sequence[bool]:
        """Which samples the rows of `layer`, or of the next, are for. A batch measures them of all;
        the others are not charged for it."""
        return [True] * layout.batch

    def leaving(self, layer: int, layout: TokenLayout) -> Sequence[int] | None:
        """How many tokens of each sample are about to leave after `layer`; those to be merged stay.

        A number, or a guess at it, says that the choice looks at attention rows and keys only:
        where many leave, `after_layer` is asked before the layer runs, and the layer runs for the
        others alone. None: the choice needs what the layer returns.
        """
        chooses = type(self).after_layer is not PrunerRun.after_layer
        return None if chooses else [0] * layout.batch

    def after_layer(self, observation: Observation) -> Selection | None:
        """Choose among the tokens that entered the layer those that go on to the next."""
        return None

    def complexity(self) -> list[dict[str, float]]:
        """What was measured of each sample (one dict a sample), for the trace; may be empty."""
        return []

    def scoring_flops(self) -> list[int]:
        """FLOPs (2 x multiply-accumulates) of scoring, one a sample, beyond the measured rows;
        empty for none. Leave out what grows with neither the width nor the square of the tokens."""
        return []


@dataclass(frozen=True, kw_only=True)
class Pruner(abc.ABC):
    """Settings of a method. `merges_in_tower` says that `tower_runs` gives runs. `needs_grid` says
    that it looks at where on the picture a token is, `reads_text` that it has to be told the
    question (`about`). `label` is its name in tables where that is not `method`. `depths` names the
    fields that are depths in layers of the decoder: numbers or tuples. `presets` has, by name,
    settings that go together: what each changes against the defaults.

    Raises ValueError for a field that is not of its declared type (`checks.demand_declared`).
    """

    method: ClassVar[str] = ""
    depths: ClassVar[tuple[str, ...]] = ()
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    merges_in_tower: ClassVar[bool] = False
    needs_grid: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False
    label: ClassVar[str] = ""

    def __post_init__(self) -> None:
        demand_declared(self)

    @property
    def needs_cls(self) -> bool:
        """Whether the layout needs the attention of the tower's CLS row, as the last layer that
        ran has it."""
        return False

    @property
    def needs_patches(self) -> bool:
        """Whether its tokens must be patches: it has to see the vision tower, or their places.

        Such a method cannot run where the tokens mix patches, see `TokenLayout.mixed`.
        """
        cls = type(self)
        sees_tower = cls.reduce is not Pruner.reduce or cls.tower_runs is not Pruner.tower_runs
        return cls.needs_grid or sees_tower

    @classmethod
    def takes_budget(cls) -> bool:
        """Whether a number of visual tokens can be set."""
        return "target_token_num" in {field.name for field in fields(cls)}

    def scaled(self, given_for: int, layers: int, names: Collection[str] | None = None) -> Pruner:
        """The same with each depth, given for a decoder of `given_for` layers, in one of `layers`.

        Whole numbers stay whole, and at least 1 where they were; others get six decimals.
        `names` are those of `depths` to move, None for all.
        """

        def here(depth: float) -> float:
            moved = depth * layers / given_for
            return max(round(moved), min(depth, 1)) if isinstance(depth, int) else round(moved, 6)

        def all_here(value: Any) -> Any:
            return tuple(map(here, value)) if isinstance(value, tuple) else here(value)

        moved = self.depths if names is None else names
        return replace(self, **{name: all_here(getattr(self, name)) for name in moved})

    def about(self, texts: Sequence[str]) -> Pruner:
        """The same for a batch whose samples ask these `texts`."""
        return self

    def demand_complete(self) -> None:  # noqa: B027, most methods have a default for everything
        """Raise ValueError where something is missing for which there is no default. A run asks
        before it starts; settings alone, as records have them, need not be complete."""

    def tower_layers(self, ran: int) -> tuple[int, ...]:
        """Which layers of the vision tower to probe, 0 .. `ran`, the number of layers that run."""
        return (ranking_layer(self, ran),) if self.needs_cls else ()

    def tower_runs(self, groups: Groups, patches: int, ran: int) -> Sequence[TowerRun] | None:
        """For each view, of `patches` patches, the run that merges its tokens in the `ran` layers
        of the tower; views that share one run are encoded together. None: nothing merges there.
        `groups`: see `vision`."""
        return None

    def reduce(self, features: VisionFeatures, groups: Groups) -> list[Reduced] | None:
        """What goes on to the projector, one a view; None: all patches, in order."""
        return None

    @abc.abstractmethod
    def start(self, layout: TokenLayout, shape: DecoderShape) -> PrunerRun:
        """Begin a prefill of the samples in `layout` on a decoder of that shape.

        Raises ValueError when the samples or the model lack what the method needs.
        """

    def to_dict(self) -> dict[str, Any]:
        """Every setting and the method's name, JSON-serialisable; `pruning.build` takes it back."""
        return {"method": self.method, **asdict(self)}
