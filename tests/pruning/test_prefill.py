"""One prefill, layer by layer: what a layer is called with, and what a layout costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from llava.model.language_model.attention import watch_attention
from llava.pruning import prefill as prefill_module
from llava.pruning.base import Observation, PrunerRun
from llava.pruning.cache import PrunedCache
from llava.pruning.inputs import OwnInputs
from llava.pruning.layout import Segment, TokenLayout
from llava.pruning.prefill import Handed, Prefill
from llava.pruning.selection import Selection
from llava.pruning.selectors import keep_top
from tests import tiny
from tests.closeness import assert_close

LAYERS = 4


class Scripted(PrunerRun):
    """Keeps `keep[layer][sample]` visual tokens after a layer, those with the highest patch ids."""

    def __init__(self, keep: dict[int, Sequence[int]], positions: str, looks: int = 0) -> None:
        self.keep, self.positions, self.looks = keep, positions, looks
        self.observed: list[Observation] = []

    def rows(self, layer: int, layout: TokenLayout) -> int:
        return self.looks

    def leaving(self, layer: int, layout: TokenLayout) -> Sequence[int] | None:
        keep = self.keep.get(layer, layout.n_visual)
        return [n - k for n, k in zip(layout.n_visual, keep)]

    def after_layer(self, observation: Observation) -> Selection | None:
        self.observed.append(observation)
        layout = observation.layout
        keep = self.keep.get(observation.layer, layout.n_visual)
        return keep_top(layout, layout.patch.double(), keep)


@pytest.fixture(autouse=True)
def _few_are_worth_it(monkeypatch) -> None:
    """These batches have few tokens."""
    monkeypatch.setattr(prefill_module, "LEAST", 0)


@pytest.fixture(scope="module")
def decoder() -> LlamaModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    config._attn_implementation = "sdpa"
    model = tiny.double(LlamaModel(config).eval())
    watch_attention(model.layers)
    return model


def layout_of(*visual: int) -> TokenLayout:
    """Samples of two tokens of text, an image, and five of text."""
    return TokenLayout.from_segments(
        [[Segment(2), Segment(n, 0, torch.arange(n)), Segment(5)] for n in visual]
    )


class Walk:
    """A prefill of random states: arguments of every layer, and what was left after each."""

    @torch.no_grad()
    def __init__(
        self,
        decoder: LlamaModel,
        layout: TokenLayout,
        run: PrunerRun,
        backend: str = "sdpa",
        last_only: bool = False,
    ) -> None:
        self.run, self.cache = run, PrunedCache()
        generator = torch.Generator().manual_seed(1)
        hidden = torch.randn(layout.batch, layout.n, 32, generator=generator)
        rope = decoder.rotary_emb(hidden, layout.position)
        inputs = OwnInputs(rope, layout, run.positions, backend)
        prefill = Prefill(run, layout, decoder, inputs, self.cache, last_only)
        self.arguments: list[dict[str, Any]] = []
        self.layouts, self.hidden = [layout], []
        hidden = prefill.begin(hidden)
        for index, layer in enumerate(decoder.layers):
            hidden, arguments = prefill.enter(index, hidden)
            self.arguments.append(arguments)
            hidden = prefill.leave(layer(hidden, **arguments))
            self.layouts.append(prefill.layout)
            self.hidden.append(hidden)
        prefill.finish()


#: The second cut loses few tokens, so its layer runs first.
KEEP = {0: [9, 9], 2: [8, 8]}


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("visual", [(20,), (20, 20), (20, 12)], ids=str)
def test_layers_get_the_rotary_tables_of_what_is_there(decoder, visual, positions) -> None:
    keep = {layer: counts[: len(visual)] for layer, counts in KEEP.items()}
    walk = Walk(decoder, layout_of(*visual), Scripted(keep, positions))
    for index in range(1, LAYERS):
        layout, rope = walk.layouts[index], walk.arguments[index]["position_embeddings"]
        expected = decoder.rotary_emb(walk.hidden[0], layout.positions(positions))
        for mine, theirs in zip(rope, expected):
            mine = mine.expand(layout.batch, -1, -1)
            assert torch.equal(mine[layout.valid], theirs[layout.valid])
    # Positions of what is left have gaps under one policy alone.
    after = walk.layouts[1].positions(positions)[0, -7:].diff().tolist()
    assert (set(after) == {1}) and (walk.layouts[1].positions(positions)[0, 2] == 2) == (
        positions == "compact"
    )


def test_a_batch_without_padding_has_no_mask(decoder) -> None:
    """Nor has one whose samples become equally long, once they are."""
    for visual, masked in (((20,), []), ((20, 20), []), ((20, 12), [0])):
        keep = {1: [9] * len(visual)}
        walk = Walk(decoder, layout_of(*visual), Scripted(keep, "compact"))
        # Where the choice comes first, those that stay see all keys: there is a mask for that.
        given = {i for i, a in enumerate(walk.arguments) if a["attention_mask"] is not None}
        assert given == {*masked, 1}
        assert "valid" not in vars(walk.layouts[-1])
        assert not any("position_ids" in arguments for arguments in walk.arguments)


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_masks_are_made_once_for_each_length(decoder, backend, positions) -> None:
    walk = Walk(decoder, layout_of(20, 12), Scripted({0: [9, 4]}, positions), backend)
    _, second, third, fourth = (arguments["attention_mask"] for arguments in walk.arguments)
    assert second is third is fourth
    n, valid = walk.layouts[-1].n, walk.layouts[-1].valid
    seen = second if backend == "sdpa" else second == 0
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    expected = (causal & valid[:, None, None, :]) | torch.eye(n, dtype=torch.bool)
    assert torch.equal(seen.expand_as(expected), expected)
    tables = [arguments["position_embeddings"] for arguments in walk.arguments[1:]]
    assert tables[0] is tables[1] is tables[2]


def test_a_layer_that_chooses_first_runs_for_what_stays(decoder) -> None:
    walk = Walk(decoder, layout_of(20, 12), Scripted({0: [9, 4], 2: [8, 4]}, "original"))
    first, _, third, _ = walk.arguments
    # 16 and 11 tokens of 27 and 19 stay; keys and values are of all.
    assert first["position_embeddings"][0].shape[1] == 16
    assert first["attention_mask"].shape == (2, 1, 16, 27)
    assert isinstance(first["past_key_values"], Handed)
    assert walk.cache.held(0).shape[2] == 27 and walk.cache.held(1).shape[2] == 16
    assert walk.hidden[0].shape[1] == 16
    observed = walk.run.observed
    assert observed[0].hidden is None and observed[0].keys is walk.cache.held(0)
    # One of 27 is not worth it: the third layer runs for all and its output can be seen.
    assert third["past_key_values"] is walk.cache.layers[2]
    assert observed[2].hidden.shape[1] == 16 and observed[2].ahead is not None
    assert [s.projected for s in walk.cache.trace.samples] == [[27, 0, 0, 0], [19, 0, 0, 0]]
    assert [s.ran for s in walk.cache.trace.samples] == [[16, 16, 16, 15], [11, 11, 11, 11]]


@pytest.mark.parametrize("visual", [(20,), (20, 12)], ids=str)
def test_the_last_layer_alone_runs_for_the_last_token(decoder, visual) -> None:
    keep = [9, 4][: len(visual)]
    runs = [Scripted({0: keep, 3: [3, 2][: len(visual)]}, "compact") for _ in range(2)]
    whole, last = (
        Walk(decoder, layout_of(*visual), run, last_only=only)
        for run, only in zip(runs, (False, True))
    )
    assert last.hidden[-1].shape[1] == 1
    assert_close(last.hidden[-1], whole.hidden[-1][:, -1:])
    assert last.arguments[-1]["position_embeddings"][0].shape[1] == 1
    assert (last.arguments[-1]["attention_mask"] is None) == (len(visual) == 1)
    assert [s.ran[-1] for s in last.cache.trace.samples] == [1] * len(visual)
    for mine, theirs in zip(last.cache.layers, whole.cache.layers):
        assert_close(mine.keys, theirs.keys)
    assert last.cache.trace.last.n_visual == whole.cache.trace.last.n_visual == (3, 2)[: len(keep)]


def test_rows_are_those_that_follow_the_image(decoder) -> None:
    """Of six rows the first belongs to the image; where all do follow it there is no mask."""
    for looks, mask in ((6, [[False] + [True] * 5] * 2), (5, None), (1, None)):
        run = Scripted({1: [9, 4]}, "compact", looks=looks)
        Walk(decoder, layout_of(20, 12), run)
        for observation in run.observed:
            rows, row_mask = observation.measured()
            assert rows.shape == (2, 4, looks, observation.layout.n)
            assert_close(rows.sum(-1), torch.ones(2, 4, looks))
            assert not rows[1, :, :, : observation.layout.n - observation.layout.lengths[1]].any()
            assert (None if row_mask is None else row_mask.tolist()) == mask


def test_nothing_is_asked_where_nothing_is_kept(decoder) -> None:
    """Training, for one, has no cache: the layers run as they are."""
    layout, run = layout_of(20), Scripted({0: [9]}, "compact", looks=2)
    hidden = torch.randn(1, layout.n, 32)
    rope = decoder.rotary_emb(hidden, layout.position)
    inputs = OwnInputs(rope, layout, "compact", "sdpa")
    prefill = Prefill(run, layout, decoder, inputs, None)
    _, arguments = prefill.enter(0, hidden)
    assert arguments["past_key_values"] is None and not arguments["use_cache"]
    assert prefill.leave(hidden) is hidden and prefill.layout is layout
    prefill.finish()
    assert run.observed == []


LOOKED_UP = ("image", "patch", "position", "cls", "letterbox", "tile", "is_patch")


class Blind(Scripted):
    """Keeps tokens by scores of its own and looks at nothing."""

    def after_layer(self, observation: Observation) -> Selection | None:
        layout = observation.layout
        keep = self.keep.get(observation.layer, layout.n_visual)
        return keep_top(layout, torch.ones(layout.batch, layout.n).cumsum(1), keep)


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("visual", [(20,), (20, 12)], ids=str)
def test_nothing_is_looked_up_that_nobody_asks_for(decoder, visual, positions) -> None:
    keep = {0: [12, 9], 1: [9, 9], 2: [4, 3]}
    keep = {layer: counts[: len(visual)] for layer, counts in keep.items()}
    walk = Walk(decoder, layout_of(*visual), Blind(keep, positions))
    assert len({id(layout) for layout in walk.layouts}) == 4
    for layout in walk.layouts[1:]:
        assert not set(LOOKED_UP) & vars(layout).keys()
        assert layout.tokens is walk.layouts[0].tokens
    assert walk.layouts[-1].patch[0].tolist() == [-1, -1, 16, 17, 18, 19, *[-1] * 5]


def test_tables_follow_selections_that_begin_in_padding() -> None:
    """Random selections of a ragged batch: each token's table is that of its position."""
    generator = torch.Generator().manual_seed(0)
    layout = layout_of(20, 12, 3)
    table = torch.randn(layout.n, 6, generator=generator)

    def rope(position: Tensor) -> tuple[Tensor, Tensor]:
        return table[position][..., :3], table[position][..., 3:]

    for policy in ("compact", "original"):
        inputs, here = OwnInputs(rope(layout.position), layout, policy, "sdpa"), layout
        for keep in ([15, 12, 3], [9, 2, 3], [1, 2, 0]):
            scores = torch.rand(3, here.n, generator=generator)
            here = here.select(keep_top(here, scores, keep))
            expected = rope(here.positions(policy))
            inputs.enter(here, torch.zeros(3, here.n, 1))
            for mine, theirs in zip(inputs.rope, expected):
                assert mine.shape == theirs.shape
                assert torch.equal(mine[here.valid], theirs[here.valid])


def test_a_selection_that_follows_is_carried_out_behind_the_layer(decoder) -> None:
    """Pooled tokens run through the layer, and are merged by what it returns."""

    class Merging(Scripted):
        def after_layer(self, observation: Observation) -> Selection | None:
            layout = observation.layout
            if observation.layer != 1:
                return None
            return keep_top(
                layout,
                layout.patch.double(),
                [6] * layout.batch,
                pools=[4] * layout.batch,
                clusters=[1] * layout.batch,
                features=observation.hidden,
                positions=self.positions,
            )

    layout = layout_of(20)
    walk = Walk(decoder, layout, Merging({1: [6]}, "compact"))
    sample = walk.cache.trace.samples[0]
    assert (sample.leaving[1], sample.ran[1], sample.pools[1]) == (7, 7 + 6 + 4, 4)
    assert walk.cache.trace.merged_patches(0)[1] == {13: [13, 12, 11, 10]}
    # Unpruned, the layer returns the same of the pooled tokens, and theirs is the mean.
    whole = Walk(decoder, layout, Scripted({}, "compact"))
    expected = whole.hidden[1][0, 2 + 10 : 2 + 14].mean(0)
    assert_close(walk.hidden[1][0, 8], expected)
    rest = [0, 1, *range(2 + 14, 2 + 20)]
    assert_close(walk.hidden[1][0, :8], whole.hidden[1][0, rest])
