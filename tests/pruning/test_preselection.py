"""AutoPrune's pre-selection by what is new: by hand, in batches, and its cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llava import pruning
from llava.pruning.layout import Segment, TokenLayout
from llava.pruning.methods.autoprune import AutoPrune
from llava.pruning.methods.autoprune.preselection import novel_first

from .common import kept, layout, vicuna


def picture(*scores: float) -> TokenLayout:
    patches = Segment(len(scores), 0, torch.arange(len(scores)), torch.tensor(scores))
    return TokenLayout.from_segments([[patches, Segment(2)]])


def ranked(tokens: TokenLayout, embeds: torch.Tensor, *candidates: int) -> list[list[int]]:
    """The patches of each sample, best first."""
    assert tokens.cls is not None
    scores = novel_first(tokens, tokens.cls, embeds, candidates)
    order = scores.masked_fill(~tokens.is_patch, -1).sort(descending=True, stable=True).indices
    rows = zip(tokens.patch.tolist(), order.tolist(), tokens.n_visual)
    return [[patches[column] for column in columns[:n]] for patches, columns, n in rows]


def test_what_is_new_by_hand() -> None:
    """Patch 1 has the highest score; 3 is like it, 0 half, 2 is opposite, 4 does not take part."""
    tokens = picture(0.3, 0.5, 0.1, 0.4, 0.05)
    directions = [[1, 3**0.5], [1, 0], [-1, 0], [2, 0], [0, -1], [0, 0], [0, 0]]
    embeds = torch.tensor([directions])
    # Cosines to one with a higher score: 1 none, 3 1.0, 0 0.5, 2 -0.5.
    assert ranked(tokens, embeds, 4) == [[1, 2, 0, 3, 4]]
    # With 3 candidates, 2 is none, and stands behind them by its score.
    assert ranked(tokens, embeds, 3) == [[1, 0, 3, 2, 4]]
    assert ranked(tokens, embeds, 1) == [[1, 3, 0, 2, 4]]


def test_patches_alike_but_for_a_rounding_stay_in_their_order() -> None:
    tokens = picture(*(0.9 - 0.1 * i for i in range(8)))
    embeds = torch.ones(1, tokens.n, 64) * torch.rand(64)
    embeds = embeds * (1 + 1e-7 * torch.randn(1, tokens.n, 64))
    assert ranked(tokens, embeds, 8) == [list(range(8))]


def test_a_batch_ranks_as_its_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.rand(n, generator=generator) for n in (24, 16, 9)]
    samples = [[Segment(len(p), 0, torch.arange(len(p)), p), Segment(2)] for p in pictures]
    batch = TokenLayout.from_segments(samples)
    embeds = torch.randn(3, batch.n, 8, generator=generator, dtype=torch.float64)
    together = ranked(batch, embeds, 12, 16, 0)
    for i, (sample, candidates) in enumerate(zip(samples, (12, 16, 0))):
        alone = TokenLayout.from_segments([sample])
        own = embeds[i : i + 1, batch.n - alone.n :]
        assert candidates == 0 or ranked(alone, own, candidates) == [together[i]]
    assert together[2] == pictures[2].argsort(descending=True).tolist()


def test_the_run_keeps_the_new_ones_and_says_what_they_cost() -> None:
    config = AutoPrune(
        target_token_num=4,
        budget_mode="strict",
        preselect_at="entry",
        preselect_ratio=2.0,
        preselect_candidates=1.5,
    )
    tokens = layout(32, 3, 0)
    run = config.start(tokens, vicuna(8))
    embeds = torch.randn(3, tokens.n, 6, generator=torch.Generator().manual_seed(1))
    selection = run.at_entry(tokens, embeds)
    assert selection is not None
    assert kept(tokens, selection)[0] == sorted(ranked(tokens, embeds, 12, 0, 0)[0][:8])
    assert list(tokens.select(selection).n_visual) == [8, 3, 0]
    assert run.scoring_flops() == [2 * 12 * 12 * 6, 0, 0]
    # A published budget's pre-selection may pass all 32: then nothing is compared.
    published = replace(config, budget_mode="published", target_token_num=16)
    for ratio, flops in ((1.875, [2 * 32 * 32 * 6, 0, 0]), (2.0, [])):
        run = replace(published, preselect_ratio=ratio).start(tokens, vicuna(8))
        run.at_entry(tokens, embeds)
        assert run.scoring_flops() == flops


def test_it_compares_what_enters_layer_0() -> None:
    with pytest.raises(ValueError, match=r"preselect_candidates 2 .* set preselect_at='entry'"):
        pruning.build("autoprune", preselect_candidates=2)
    with pytest.raises(ValueError, match="preselect_candidates must be at least 1"):
        pruning.build("autoprune", preselect_candidates=0.5)
    assert not pruning.build("autoprune", preset="balanced", preselect_ratio=None).needs_cls
