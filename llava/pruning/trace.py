"""What happened in a prefill: every count and every figure is derived from this, nothing else.

Counts are host integers. The ids of the kept patches stay on the device until somebody asks, so
keeping a trace costs the prefill nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .layout import TEXT, TokenLayout
from .selection import Selection


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
    choices: list[tuple[TokenLayout, Selection] | None] = field(default_factory=list)
    ahead: list[tuple[int, ...]] = field(default_factory=list)
    ran: list[tuple[int, ...]] = field(default_factory=list)
    projected: list[bool] = field(default_factory=list)
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
        *,
        source: TokenLayout | None = None,
        ran: tuple[int, ...] = (),
        projected: bool = False,
    ) -> None:
        """Add a layer: what entered it, rows measured in it and in the next, what was chosen.

        A sample is charged for the rows of its own text behind an image, and only where it is one
        of those that needed them (None: all are). source: what `selection` chose from, None for
        `layout`; ran, projected: as in `SampleTrace`, empty for all.
        """
        tails: Sequence[int] = layout.tail
        if needed is not None:
            tails = [tail if need else 0 for tail, need in zip(tails, needed, strict=True)]
        self.entered.append(layout)
        self.rows.append(tuple(min(rows, tail) for tail in tails))
        self.ahead.append(tuple(min(ahead, tail) for tail in tails))
        self.choices.append(None if selection is None else (source or layout, selection))
        self.ran.append(ran or layout.lengths)
        self.projected.append(projected)
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
                choice[1].merge.pools[i] if choice and choice[1].merge else 0
                for choice in self.choices
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
                    ran=[tokens[i] for tokens in self.ran],
                    projected=[
                        layout.lengths[i] if first else 0
                        for layout, first in zip(self.entered, self.projected)
                    ],
                )
            )
        return result

    def kept_patches(self, sample: int) -> list[list[int]]:
        """Patch ids that entered each layer, and after the last layer; merged: the centre's id."""
        return [[p for p in layout.patch[sample].tolist() if p != TEXT] for layout in self._layouts]

    def merged_patches(self, sample: int) -> list[dict[int, list[int]]]:
        """Per layer, for every merged token made after it: id of the centre -> ids merged there."""
        return [
            _merged(layout.patch[sample], layout.n, selection, sample)
            for layout, selection in (choice or (self.entered[0], None) for choice in self.choices)
        ]

    def to_json(self) -> list[dict[str, Any]]:
        """The samples, with the patches kept in each layer, as plain JSON."""
        return [
            {**vars(sample), "kept": self.kept_patches(i), "merged": self.merged_patches(i)}
            for i, sample in enumerate(self.samples)
        ]


def _merged(
    patch: Tensor, columns: int, selection: Selection | None, sample: int
) -> dict[int, list[int]]:
    """Id of the centre of each merged token of a sample -> ids merged into it.

    patch: (columns,) ids of what `selection` chose from.
    """
    merge = None if selection is None else selection.merge
    if selection is None or merge is None:
        return {}
    members = patch[merge.source[sample]].tolist()
    if merge.cluster is None:
        joined = members[: merge.pools[sample]]
        return {joined[0]: joined} if joined else {}
    centre = patch[selection.index[sample]].tolist()
    if merge.index is not None:
        stands = merge.index[sample].tolist()
        centres = {s - columns: c for s, c in zip(stands, centre) if s >= columns}
    else:
        assert merge.place is not None, "of several clusters"
        centres = dict(enumerate(centre[merge.place : merge.place + merge.clusters]))
    groups: dict[int, list[int]] = {}
    for member, cluster in zip(members, merge.cluster[sample].tolist()):
        if cluster in centres:
            groups.setdefault(centres[cluster], []).append(member)
    return groups
