"""The trace of a prefill, recorded by hand from selections."""

from __future__ import annotations

import json

import torch

from llava.pruning.layout import Segment, TokenLayout
from llava.pruning.selectors import keep_top
from llava.pruning.trace import PruneTrace


def recorded() -> PruneTrace:
    """8 visual tokens beside a text; layer 0 keeps all, layer 1 keeps 4 and merges 3 into 1."""
    image = Segment(8, 0, torch.arange(8))
    layout = TokenLayout.from_segments([[Segment(1), image, Segment(3)], [Segment(5)]])
    scores = torch.arange(layout.n, dtype=torch.float32).expand(2, -1)
    selection = keep_top(
        layout,
        scores,
        [4, 0],
        pools=[3, 0],
        clusters=[1, 0],
        features=torch.randn(2, layout.n, 4),
    )
    trace = PruneTrace(first=layout, complexity=[{"mi": 0.5}, {}])
    trace.record(layout, 0, None, layout)
    trace.record(layout, 2, selection, layout.select(selection), ahead=5)
    return trace


def test_samples_count_what_entered_and_left_each_layer() -> None:
    pruned, text = recorded().samples
    assert (pruned.n_visual, pruned.n_text) == (8, 4)
    assert pruned.entering == [8, 8]
    assert pruned.leaving == [8, 5]
    assert pruned.pools == [0, 3]
    assert pruned.rows == [0, 2]
    assert pruned.ahead == [0, 3], "of 5 rows those of its text behind the image"
    assert pruned.complexity == {"mi": 0.5}
    assert (text.n_visual, text.n_text) == (0, 5)
    assert text.entering == text.leaving == text.pools == [0, 0]
    assert text.rows == text.ahead == [0, 0]


def test_patches_that_stayed_and_that_were_merged() -> None:
    trace = recorded()
    # The best four are patches 4 to 7; the next three are merged and stand for patch 3.
    assert trace.kept_patches(0) == [list(range(8))] * 2 + [[4, 5, 6, 7, 3]]
    assert trace.kept_patches(1) == [[], [], []]
    assert [{c: sorted(m) for c, m in layer.items()} for layer in trace.merged_patches(0)] == [
        {},
        {3: [1, 2, 3]},
    ]
    assert trace.merged_patches(1) == [{}, {}]


def test_patches_of_a_shorter_sample_leave_out_its_padding() -> None:
    image = Segment(8, 0, torch.arange(8))
    layout = TokenLayout.from_segments([[image, Segment(2)]] * 2)
    selection = keep_top(layout, torch.arange(10.0).expand(2, -1), [6, 3])
    trace = PruneTrace(first=layout)
    trace.record(layout, 2, selection, layout.select(selection))
    assert trace.kept_patches(0)[-1] == [2, 3, 4, 5, 6, 7]
    assert trace.kept_patches(1)[-1] == [5, 6, 7]


def test_json() -> None:
    first, second = json.loads(json.dumps(recorded().to_json()))
    assert first["leaving"] == [8, 5]
    assert first["kept"][-1] == [4, 5, 6, 7, 3]
    assert second["kept"] == [[], [], []]


def test_a_trace_that_nothing_filled_has_no_samples() -> None:
    assert PruneTrace().samples == []
