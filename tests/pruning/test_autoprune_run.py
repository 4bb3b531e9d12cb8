"""AutoPrune's run on made-up attention: whom it prunes, what it measures, what it keeps."""

from __future__ import annotations

import math

import pytest
import torch

from llava import pruning
from llava.pruning.base import Observation
from llava.pruning.indicators import mutual_information, text_relevance
from llava.pruning.layout import TEXT, Segment, TokenLayout
from llava.pruning.methods.autoprune import AutoPrune
from llava.pruning.methods.autoprune.budget import budget, solve_plan

from .common import kept, layout, observe, vicuna, walk


def test_only_samples_above_their_budget_are_active() -> None:
    run = AutoPrune(target_token_num=16).start(layout(15, 16, 17, 0), vicuna())
    assert run.active == [False, False, True, False]
    exact = AutoPrune(target_flops=1.0).start(layout(15, 0), vicuna())
    assert exact.active == [False, False]


@pytest.mark.parametrize("visual", [0, 8])
def test_nothing_is_measured_or_dropped_without_an_active_sample(visual: int) -> None:
    tokens = layout(visual, visual)
    run = AutoPrune(target_token_num=8).start(tokens, vicuna(4))
    for layer in range(4):
        assert run.rows(layer, tokens) == 0
        hidden = torch.zeros(2, tokens.n, 3)
        assert run.after_layer(Observation(layer, tokens, hidden)) is None
    assert run.complexity() == []


def test_one_layer() -> None:
    with pytest.raises(ValueError, match="mi_layer 1 of a decoder of 1 layer"):
        AutoPrune().start(layout(8), vicuna(1))
    shape = vicuna(1)
    bare = AutoPrune(mi_layer=0, target_token_num=4, preselect_ratio=None, recycle_ratio=0)
    assert solve_plan(bare, shape, budget(bare, shape, 16, 4), 0.2, 5.0).leaving == (4,)
    # What leaves the only layer is 2.5 budgets, whatever the budget; what enters it is everything.
    for mode in ("published", "strict"):
        with pytest.raises(ValueError, match="below the floor of 16"):
            AutoPrune(mi_layer=0, target_token_num=4, budget_mode=mode).start(layout(16), shape)


@pytest.mark.parametrize("mode", ["published", "strict"])
def test_a_decoder_too_shallow_to_drop_anything_refuses_a_budget(mode: str) -> None:
    config = pruning.build("autoprune", preset="paper", target_token_num=4, budget_mode=mode)
    with pytest.raises(ValueError, match="below the floor of 16"):
        config.start(layout(16), vicuna(2))


def test_text_after_the_image_and_cls_scores_are_required() -> None:
    with pytest.raises(ValueError, match="needs text after the last image"):
        AutoPrune(target_token_num=2).start(layout(8, text=0), vicuna(4))
    bare = TokenLayout.from_segments([[Segment(8, 0, torch.arange(8)), Segment(2)]])
    with pytest.raises(ValueError, match="preselect_ratio"):
        AutoPrune(target_token_num=4).start(bare, vicuna(4))
    assert AutoPrune(target_token_num=4, preselect_ratio=None).start(bare, vicuna(4)).active[0]


def ragged() -> TokenLayout:
    """A large image, a text without one, a small image, two images."""
    cls = torch.rand(60, generator=torch.Generator().manual_seed(9))
    part = {n: Segment(n, 0, torch.arange(n), cls[:n]) for n in (60, 9, 20)}
    second = Segment(25, 1, torch.arange(25), cls[-25:])
    return TokenLayout.from_segments(
        [
            [Segment(2), part[60], Segment(5)],
            [Segment(3)],
            [Segment(1), part[9], Segment(2)],
            [part[20], Segment(1), second, Segment(7)],
        ]
    )


@pytest.mark.parametrize("preset", ["released", "paper"])
def test_every_layer_follows_the_plan_of_each_sample(preset: str) -> None:
    config = pruning.build("autoprune", preset=preset, target_token_num=12, x0=3.0)
    tokens = ragged()
    run = config.start(tokens, vicuna(6))
    seen = walk(run, tokens, 6)
    assert run.active == [True, False, False, True]
    for i, active in enumerate(run.active):
        counts = [after.n_visual[i] for after in seen]
        text = [((after.image[i] == TEXT) & after.valid[i]).sum() for after in seen]
        assert set(map(int, text)) == {run.n_text[i]}
        if active:
            assert counts == [*run.plans[i].entering, run.plans[i].leaving[-1]]
            assert counts[-1] < counts[0]
        else:
            assert len(set(counts)) == 1
            assert run.plans[i] is None
    assert [bool(measured) for measured in run.complexity()] == run.active
    assert run.positions == ("compact" if preset == "released" else "original")


def test_rows_are_measured_only_where_something_is_decided() -> None:
    tokens = ragged()
    released = AutoPrune(target_token_num=10).start(tokens, vicuna(6))
    assert [released.rows(layer, tokens) for layer in range(6)] == [7, 7, 0, 0, 0, 0]
    walk(released, tokens, 6)
    assert [released.rows(layer, tokens) for layer in range(6)] == [7] * 6
    config = pruning.build("autoprune", preset="paper", target_token_num=20, x0=3.0)
    paper = config.start(tokens, vicuna(6))
    walk(paper, tokens, 6)
    assert [paper.rows(layer, tokens) for layer in range(6)] == [0, 7, 7, 7, 7, 0]


@pytest.mark.parametrize("sharpness", [1.0, 20.0])
@pytest.mark.parametrize("preset", ["released", "paper"])
@pytest.mark.parametrize("mi_rows", ["text", "last"])
def test_slope_and_inflection(preset: str, sharpness: float, mi_rows: str) -> None:
    config = pruning.build(
        "autoprune", preset=preset, target_token_num=8, beta=0.7, gamma=0.9, mi_rows=mi_rows
    )
    tokens = layout(40)
    run = config.start(tokens, vicuna(6))
    seen = walk(run, tokens, 6, sharpness)
    measured = run.complexity()[0]
    at = observe(run, seen[1], 1, sharpness)
    rows, mask = (at.rows, at.row_mask) if mi_rows == "text" else (at.rows[:, :, -1:], None)
    mask = torch.ones(1, 1, dtype=torch.bool) if mask is None else mask
    if preset == "released":
        mi = mutual_information(rows, mask, seen[1].is_visual, eps=1e-6).sum().item()
        k = max(0.4 - 0.9 * mi, 0.0)
        x0 = 14.9 + k
    else:
        nats = mutual_information(rows, mask, seen[1].is_visual, normalise=True, base=math.e)
        mi = nats.mean().item()
        k, x0 = 0.4 - 0.9 * mi, 14.9 + 0.7 * mi
    assert measured["mi"] == pytest.approx(mi, abs=1e-9)
    assert measured["k"] == pytest.approx(k, abs=1e-9)
    assert measured["x0"] == pytest.approx(x0, abs=1e-9)
    if sharpness > 1 and mi_rows == "text":
        assert measured["k"] == 0 if preset == "released" else measured["k"] < 0


def first_cut(cls: torch.Tensor, letterbox: torch.Tensor | None = None, **chosen) -> list[int]:
    """Patches that the pre-selection keeps of 12 (5 unless told), 4 tokens of text behind them."""
    image = Segment(12, 0, torch.arange(12), cls, letterbox)
    tokens = TokenLayout.from_segments([[image, Segment(4)]])
    settings = {"target_token_num": 2, "recycle_ratio": 0.0, **chosen}
    run = AutoPrune(**settings).start(tokens, vicuna(6))
    after = tokens.select(run.after_layer(observe(run, tokens, 0)))
    return [patch for patch in after.patch[0].tolist() if patch != TEXT]


def test_pre_selection_ranks_by_cls_attention() -> None:
    cls = torch.zeros(12)
    cls[[11, 3, 8, 5, 0]] = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    assert first_cut(cls) == [0, 3, 5, 8, 11]


def test_letterbox_patches_score_nothing() -> None:
    cls = torch.arange(12.0)
    box = torch.arange(12) >= 9
    assert first_cut(cls, box) == [4, 5, 6, 7, 8]
    assert first_cut(cls, box, letterbox_mask=False) == [7, 8, 9, 10, 11]


def test_text_weighs_in_with_the_information_of_layer_0() -> None:
    tokens = TokenLayout.from_segments(
        [[Segment(12, 0, torch.arange(12), torch.zeros(12)), Segment(4)]]
    )
    at = observe(AutoPrune(target_token_num=3).start(tokens, vicuna(6)), tokens, 0)
    relevance = text_relevance(at.rows, at.row_mask)[0, :12]
    assert first_cut(torch.zeros(12)) == sorted(relevance.topk(5).indices.tolist())
    assert first_cut(torch.zeros(12), preselect_text=0.0) == [0, 1, 2, 3, 4]
    information = mutual_information(at.rows, at.row_mask, tokens.is_visual, eps=1e-6).sum() / 4
    best, worst = relevance.argmax().item(), relevance.argmin().item()
    term = 0.3 * information * (relevance[best] - relevance[worst])
    assert term > 0
    # A lead in CLS attention that the text term can make up for, and one that it cannot.
    for lead, winner in ((0.9 * term, best), (1.1 * term, worst)):
        cls = torch.full((12,), -9.0)
        cls[best], cls[worst] = 0.0, lead
        assert first_cut(cls, target_token_num=1, preselect_ratio=1.0) == [winner]


@pytest.mark.parametrize("rank_rows", ["text", "last"])
def test_survivors_are_ranked_by_the_text_of_the_same_layer(rank_rows: str) -> None:
    config = pruning.build("autoprune", preset="paper", target_token_num=8, rank_rows=rank_rows)
    tokens = layout(40)
    run = config.start(tokens, vicuna(6))
    seen = walk(run, tokens, 6)
    at = observe(run, seen[1], 1)
    rows = at.rows if rank_rows == "text" else at.rows[:, :, -1:]
    score = rows.mean((1, 2))[0].masked_fill(~seen[1].is_visual[0], -1)
    best = score.topk(seen[2].n_visual[0]).indices
    assert sorted(seen[1].patch[0, best].tolist()) == [
        patch for patch in seen[2].patch[0].tolist() if patch != TEXT
    ]


def test_a_pre_selection_at_entry_spares_layer_0() -> None:
    """By CLS attention alone; what layer 0 saves, later layers have."""
    config = AutoPrune(
        target_token_num=16, budget_mode="strict", preselect_at="entry", preselect_ratio=2.0
    )
    tokens = layout(64, 8, 0)
    run = config.start(tokens, vicuna(8))
    assert run.active == [True, False, False]
    selection = run.at_entry(tokens, torch.zeros(3, tokens.n, 3))
    assert selection is not None and tokens.cls is not None
    best = tokens.cls.masked_fill(~tokens.is_patch, -1)[0].topk(32).indices.tolist()
    assert kept(tokens, selection)[0] == sorted(column - 1 for column in best)
    entered = tokens.select(selection)
    assert list(entered.n_visual) == [32, 8, 0] and run.rows(0, entered) == 0
    counts = [step.n_visual[0] for step in walk(run, entered, 8)]
    assert counts[0] == 32 and sum(counts[:-1]) == 8 * 16


def test_a_pre_selection_at_entry_needs_cls_attention() -> None:
    bare = TokenLayout.from_segments([[Segment(8, 0, torch.arange(8)), Segment(2)]])
    with pytest.raises(ValueError, match="preselect_ratio"):
        AutoPrune(target_token_num=4, preselect_at="entry").start(bare, vicuna(4))
