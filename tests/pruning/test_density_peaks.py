"""Clustering by density peaks, against plain lists."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.pruning.selectors import density_peaks


def reference(points: list[list[float]], k: int) -> tuple[list[int], list[int]]:
    """Density peaks in plain Python: (cluster of each point, centres)."""
    n, d = len(points), len(points[0])
    distance = [[math.dist(a, b) / math.sqrt(d) for b in points] for a in points]
    density = [math.exp(-sum(x * x for x in sorted(row)[:k]) / k) for row in distance]
    widest = max(map(max, distance))
    peak = []
    for i in range(n):
        denser = [j for j in range(n) if (-density[j], j) < (-density[i], i)]
        peak.append(density[i] * min([distance[i][j] for j in denser], default=widest))
    centres = sorted(range(n), key=lambda i: (-peak[i], i))[:k]
    cluster = [min(range(k), key=lambda c: distance[i][centres[c]]) for i in range(n)]
    for c, i in enumerate(centres):
        cluster[i] = c
    return cluster, centres


@given(st.integers(0, 10_000), st.integers(2, 24), st.integers(1, 6), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_density_peaks(seed: int, n: int, d: int, k: int) -> None:
    k = min(k, n)
    points = torch.randn(1, n, d, generator=torch.Generator().manual_seed(seed))
    cluster, centre = density_peaks(points, [n], [k])
    if k == 1:
        assert (cluster.tolist(), centre.tolist()) == ([[0] * n], [[0]])
    else:
        assert (cluster[0].tolist(), centre[0].tolist()) == reference(points[0].tolist(), k)


def test_density_peaks_finds_groups_that_stand_apart() -> None:
    groups = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]]).repeat_interleave(4, 0)
    points = groups + 0.1 * torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    cluster, _ = density_peaks(points[None], [12], [3])
    found = cluster.view(3, 4)
    assert (found == found[:, :1]).all()
    assert sorted(found[:, 0].tolist()) == [0, 1, 2]


def test_density_peaks_of_a_padded_batch() -> None:
    sizes, wanted = [9, 4, 0, 1], [3, 2, 0, 1]
    points = torch.randn(4, 9, 3, generator=torch.Generator().manual_seed(3))
    cluster, centre = density_peaks(points, sizes, wanted)
    for i, (n, k) in enumerate(zip(sizes, wanted)):
        assert (cluster[i, n:] == 3).all()
        if k:
            expected = reference(points[i, :n].tolist(), k)
            assert (cluster[i, :n].tolist(), centre[i, :k].tolist()) == expected


def test_equal_points_make_clusters_of_the_lowest_indices() -> None:
    cluster, centre = density_peaks(torch.zeros(1, 5, 2), [5], [2])
    assert centre.tolist() == [[0, 1]]
    assert cluster.tolist() == [[0, 1, 0, 0, 0]]
