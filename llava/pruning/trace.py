"""What happened in a prefill: every count and every figure is derived from this, nothing else.

Counts are host integers. The ids of the kept patches stay on the device until somebody asks, so
keeping a trace costs the prefill nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .layout import TEXT, Selection, TokenLayout


@dataclass(frozen=True)
class SampleTrace:
    """One sample. Lists have one entry a layer.

    n_visual:  visual tokens of the unpruned model, n_text: text tokens (padding is nobody's)
    entering, leaving: visual tokens before and after the layer, merged ones included
    rows:      attention rows measured for scoring in the layer, of text after the last image
    ahead:     the same of the next layer, computed after the layer
    pools:     dropped tokens that were clustered after the layer
    scoring:   FLOPs of scoring beyond these rows
    ran:       tokens, text included, that ran through the whole layer; empty: all that entered
    projected: tokens, text included, whose keys and values were computed before the layer ran;
               empty: none in any layer
    complexity: what the method measured, under its name, and what follows, such as mi, k, x0
    """

    n_visual: int
    n_text: int
    entering: list[int]
    leaving: list[int]
    rows: list[int]
    pools: list[int]
    complexity: dict[str, float] = field(default_factory=dict)
    ahead: list[int] = field(default_factory=list)
    scoring: int = 0
    ran: list[int] = field(default_factory=list)
    projected: list[int] = field(default_factory=list)


@dataclass
class PruneTrace:
    """The prefill of a batch, filled layer by layer."""

    first: TokenLayout | None = None
    entered: list[TokenLayout] = field(default_factory=list)
    rows: list[tuple[int, ...]] = field(default_factory=list)
    selections: list[Selection | None] = field(default_factory=list)
    ahead: list[tuple[int, ...]] = field(default_factory=list)
    last: TokenLayout | None = None
    complexity: list[dict[str, float]] = field(default_factory=list)
    scoring: list[int] = field(default_factory=list)

    def record(
        self,
        layout: TokenLayout,
        rows: int,
        selection: Selection | None,
        after: TokenLayout,
        ahead: int = 0,
        needed: Sequence[bool] | None = None,
    ) -> None:
        """Add a layer: what entered it, rows measured in it and in the next, what was chosen.

        A sample is charged for the rows of its own text behind an image, and only where it is one
        of those that needed them (None: all are).
        """
        tails: Sequence[int] = layout.tail
        if needed is not None:
            tails = [tail if need else 0 for tail, need in zip(tails, needed, strict=True)]
        self.entered.append(layout)
        self.rows.append(tuple(min(rows, tail) for tail in tails))
        self.ahead.append(tuple(min(ahead, tail) for tail in tails))
        self.selections.append(selection)
        self.last = after

    @property
    def _layouts(self) -> list[TokenLayout]:
        """What entered each layer and what left the last; empty before the first was recorded."""
        return [] if self.last is None else [*self.entered, self.last]

    @property
    def samples(self) -> list[SampleTrace]:
        layouts = self._layouts
        if self.first is None or not layouts:
            return []
        result = []
        for i in range(self.first.batch):
            counts = [layout.n_visual[i] for layout in layouts]
            pools = [
                s.merge.pools[i] if s is not None and s.merge is not None else 0
                for s in self.selections
            ]
            result.append(
                SampleTrace(
                    n_visual=self.first.whole[i],
                    n_text=self.first.lengths[i] - self.first.n_visual[i],
                    entering=counts[:-1],
                    leaving=counts[1:],
                    rows=[rows[i] for rows in self.rows],
                    pools=pools,
                    complexity=self.complexity[i] if self.complexity else {},
                    ahead=[rows[i] for rows in self.ahead],
                    scoring=self.scoring[i] if self.scoring else 0,
                )
            )
        return result

    def kept_patches(self, sample: int) -> list[list[int]]:
        """Patch ids that entered each layer, and after the last layer; merged: the centre's id."""
        return [[p for p in layout.patch[sample].tolist() if p != TEXT] for layout in self._layouts]

    def merged_patches(self, sample: int) -> list[dict[int, list[int]]]:
        """Per layer, for every merged token made after it: id of the centre -> ids merged there."""
        result: list[dict[int, list[int]]] = []
        for layout, selection in zip(self.entered, self.selections):
            groups: dict[int, list[int]] = {}
            if selection is not None and selection.merge is not None:
                merge = selection.merge
                source = layout.patch[sample][merge.source[sample]].tolist()
                after = layout.patch[sample][selection.index[sample]]
                centre = after[merge.column[sample]].tolist()
                for patch, cluster in zip(source, merge.cluster[sample].tolist()):
                    if cluster < len(centre):
                        groups.setdefault(centre[cluster], []).append(patch)
            result.append(groups)
        return result

    def to_json(self) -> list[dict[str, Any]]:
        """The samples, with the patches kept in each layer, as plain JSON."""
        return [
            {**vars(sample), "kept": self.kept_patches(i), "merged": self.merged_patches(i)}
            for i, sample in enumerate(self.samples)
        ]
