"""The selection against a slow one in plain lists: what stays, where, and what is averaged.

The reference is written from the docstrings of `selectors`, `images` and `layout`, a sample at a
time and without padding; what is compared is what others see: counts, the layout after a
selection, and what `apply` makes of hidden states. 20 runs of 34 batches, three selections in a row
each: 2,040 problems.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from llava.pruning.layout import NEWLINE, TEXT, Segment, TokenLayout
from llava.pruning.selection import Selection, apply
from llava.pruning.selectors import keep_top
from tests.closeness import FLOAT64, ROUNDED, assert_close

from .test_density_peaks import reference as density_peaks

BATCHES, ROUNDS = 34, 3
WIDTH = 3
Points = list[list[float]]


@dataclass(frozen=True)
class Token:
    """One token of a sample; `state` is its hidden state."""

    image: int
    patch: int
    position: int
    cls: float
    newline: bool
    state: list[float]


@dataclass(frozen=True)
class Wish:
    """What is asked for of one sample: counts, a score and a feature for each token, targets."""

    keep: int
    pool: int
    clusters: int
    scores: list[float]
    features: Points
    targets: list[float] | None


def share_out(total: int, weights: Sequence[float], caps: Sequence[int]) -> list[int]:
    """`total` in proportion to `weights` by largest remainder, none above its cap."""
    parts = list(caps)
    places = list(range(len(caps)))
    left = min(total, sum(caps))
    while places:
        even = not any(weights[i] for i in places)
        exact = {i: Fraction(1 if even else weights[i]) for i in places}
        whole = sum(exact.values())
        exact = {i: left * weight / whole for i, weight in exact.items()}
        rounded = {i: int(value) for i, value in exact.items()}
        by_remainder = sorted(places, key=lambda i: (rounded[i] - exact[i], i))
        for i in by_remainder[: left - sum(rounded.values())]:
            rounded[i] += 1
        full = [i for i in places if rounded[i] >= caps[i]]
        if not full:
            for i in places:
                parts[i] = rounded[i]
            break
        left -= sum(caps[i] for i in full)
        places = [i for i in places if i not in full]
    return parts


def ranking(tokens: Sequence[Token], wish: Wish) -> list[int]:
    """Visual tokens, first those that stay: the best, of each image its share if there are shares;
    then the others. Newlines rank below every patch, and ties go to the lower index."""
    visual = [i for i, token in enumerate(tokens) if token.image != TEXT]
    ranked = sorted(
        visual, key=lambda i: (tokens[i].newline, -wish.scores[i] * (not tokens[i].newline), i)
    )
    if wish.targets is None:
        return ranked
    images = sorted({tokens[i].image for i in visual})
    members = [[i for i in ranked if tokens[i].image == image] for image in images]
    counts = share_out(
        wish.keep, [wish.targets[image] for image in images], [len(own) for own in members]
    )
    first = {i for own, count in zip(members, counts) for i in own[:count]}
    return sorted(ranked, key=lambda i: i not in first)


def clustered(points: Points, clusters: int) -> tuple[list[int], list[int]]:
    """Cluster of each point, and the points that are centres."""
    return ([0] * len(points), [0]) if clusters == 1 else density_peaks(points, clusters)


def selected(tokens: Sequence[Token], wish: Wish, policy: str) -> list[Token]:
    """The tokens of a sample after a selection under a position policy."""
    order = ranking(tokens, wish)
    stays, pool = set(order[: wish.keep]), order[wish.keep : wish.keep + wish.pool]
    behind: dict[int, list[Token]] = {}
    if wish.clusters:
        cluster, centres = clustered([wish.features[i] for i in pool], wish.clusters)
        for number, centre in enumerate(centres):
            members = [tokens[i].state for i, own in zip(pool, cluster) if own == number]
            mean = [sum(values) / len(members) for values in zip(*members)]
            token = replace(tokens[pool[centre]], state=mean)
            place = max(i for i, other in enumerate(tokens) if other.image == token.image)
            if policy == "original":
                place = pool[centre]
            behind.setdefault(place, []).append(token)
    after = []
    for i, token in enumerate(tokens):
        if token.image == TEXT or i in stays:
            after.append(token)
        after += behind.get(i, [])
    return after


def random_runs(rng: random.Random, tiled: bool) -> list[Segment]:
    """Text, and up to three images with text before, between and behind them."""
    runs, images = [Segment(rng.randint(0, 3))], rng.choice([0, 1, 1, 1, 2, 3])
    for image in range(images):
        n = rng.randint(1, 14)
        tile = torch.arange(n) // 5 if tiled and rng.random() < 0.8 else None
        if tile is not None:
            tile[3 :: rng.randint(2, 5)] = NEWLINE
        cls = torch.tensor([rng.random() for _ in range(n)], dtype=torch.float32)
        runs += [Segment(n, image, torch.arange(n), cls, tile=tile), Segment(rng.randint(0, 2))]
    return [*runs, Segment(rng.randint(1, 4))]


def tokens_of(runs: Sequence[Segment], rng: random.Random) -> list[Token]:
    tokens: list[Token] = []
    first_patch = 0
    for run in runs:
        for i in range(run.length):
            state = [rng.gauss(0, 1) for _ in range(WIDTH)]
            image, patch, cls, newline = run.image, TEXT, 0.0, False
            if image != TEXT:
                patch, cls = first_patch + i, float(run.cls[i])
                newline = run.tile is not None and int(run.tile[i]) == NEWLINE
            tokens.append(Token(image, patch, len(tokens), cls, newline, state))
        first_patch += run.length * (run.image != TEXT)
    return tokens


def random_pool(rng: random.Random, kind: str, dropped: int) -> tuple[int, int]:
    """How many of the dropped tokens are pooled, and into how many clusters."""
    if kind == "mixed":
        kind = rng.choice(["none", "one", "mean", "clusters"])
    if kind == "none" or not dropped:
        return 0, 0
    pool = 1 if kind == "one" else rng.randint(1, dropped)
    return pool, rng.randint(1, min(pool, 5)) if kind == "clusters" else 1


def random_wishes(
    rng: random.Random, samples: Sequence[Sequence[Token]], images: Sequence[int], double: bool
) -> list[Wish]:
    kind = rng.choice(["none", "one", "mean", "clusters", "mixed"])
    few, shared = rng.random() < 0.5, rng.random() < 0.3
    wishes = []
    for tokens, count in zip(samples, images):
        have = sum(token.image != TEXT for token in tokens)
        keep = rng.choice([0, have, *[rng.randint(0, have)] * 6])
        pool, clusters = random_pool(rng, kind, have - keep)
        scores = [rng.randint(-2, 1) if few else rng.gauss(0, 1) for _ in tokens]
        targets = [rng.randint(0, 8) / 2 for _ in range(count)] if shared else None
        wish = Wish(keep, pool, clusters, stored(scores, double), [], targets)
        while not wish.features or not (double or is_clear(tokens, wish, rng)):
            drawn = [stored([rng.gauss(0, 1) for _ in range(4)], double) for _ in tokens]
            alike = [rng.choice(drawn[:6]) for _ in tokens]
            wish = replace(wish, features=alike if few else drawn)
        wishes.append(wish)
    return wishes


def stored(values: Sequence[float], double: bool) -> list[float]:
    """`values` as the tensor's type holds them."""
    kind = torch.float64 if double else torch.float32
    return torch.tensor(values, dtype=kind).tolist()


def is_clear(tokens: Sequence[Token], wish: Wish, rng: random.Random) -> bool:
    """Whether the clusters are the same when float32 rounds a little differently."""
    if wish.clusters < 2:
        return True
    pool = ranking(tokens, wish)[wish.keep : wish.keep + wish.pool]
    points = [wish.features[i] for i in pool]
    # What is equal stays equal.
    moves = {tuple(point): [rng.uniform(-1e-5, 1e-5) for _ in point] for point in points}
    shaken = [[a + b for a, b in zip(point, moves[tuple(point)])] for point in points]
    return clustered(points, wish.clusters) == clustered(shaken, wish.clusters)


def padded(rows: Sequence[Sequence[object]], filling: object, double: bool) -> Tensor:
    """Rows aligned at the right, as the layout has them."""
    width = max(map(len, rows))
    kind = torch.float64 if double else torch.float32
    return torch.tensor([[filling] * (width - len(row)) + list(row) for row in rows], dtype=kind)


def choose(
    layout: TokenLayout, wishes: Sequence[Wish], double: bool, policy: str
) -> Selection | None:
    merges = any(wish.clusters for wish in wishes)
    shared = any(wish.targets is not None for wish in wishes)
    return keep_top(
        layout,
        padded([wish.scores for wish in wishes], 9.0, double),
        [wish.keep for wish in wishes],
        pools=[wish.pool for wish in wishes] if merges else None,
        clusters=[wish.clusters for wish in wishes] if merges else None,
        features=padded([wish.features for wish in wishes], [1e3] * 4, double) if merges else None,
        targets=[wish.targets or [] for wish in wishes] if shared else None,
        positions=policy,
    )


def assert_same(layout: TokenLayout, samples: Sequence[Sequence[Token]]) -> None:
    """Everything that the layout says of each token, and padding."""
    lengths = [len(tokens) for tokens in samples]
    assert layout.lengths == tuple(lengths)
    assert layout.n == max(lengths)
    is_patch, cls = layout.is_patch.tolist(), layout.cls
    compact, original = (layout.positions(policy).tolist() for policy in ("compact", "original"))
    valid, image, patch = layout.valid.tolist(), layout.image.tolist(), layout.patch.tolist()
    for row, tokens in enumerate(samples):
        gap = layout.n - len(tokens)
        assert valid[row] == [False] * gap + [True] * len(tokens)
        assert image[row] == [TEXT] * gap + [token.image for token in tokens]
        assert patch[row] == [TEXT] * gap + [token.patch for token in tokens]
        shows = [token.image != TEXT and not token.newline for token in tokens]
        assert is_patch[row] == [False] * gap + shows
        assert compact[row][gap:] == list(range(len(tokens)))
        assert original[row][gap:] == [token.position for token in tokens]
        if cls is not None:
            assert cls[row, gap:].tolist() == [token.cls for token in tokens]


def assert_states(hidden: Tensor, samples: Sequence[Sequence[Token]], double: bool) -> None:
    expected = [token.state for tokens in samples for token in tokens]
    found = [states[hidden.shape[1] - len(own) :] for states, own in zip(hidden, samples)]
    assert_close(torch.cat(found), torch.tensor(expected, dtype=hidden.dtype), room(double))


def room(double: bool) -> float:
    return FLOAT64 if double else ROUNDED


@pytest.mark.parametrize("seed", range(20))
def test_a_selection_is_what_plain_lists_give(seed: int) -> None:
    rng = random.Random(seed)
    changed = 0
    for _ in range(BATCHES):
        double, tiled = rng.random() < 0.5, rng.random() < 0.3
        policy = rng.choice(["compact", "original"])
        runs = [random_runs(rng, tiled) for _ in range(rng.randint(1, 4))]
        images = [sum(run.image != TEXT for run in own) for own in runs]
        layout = TokenLayout.from_segments(runs)
        samples = [tokens_of(own, rng) for own in runs]
        assert_same(layout, samples)
        states = [[token.state for token in tokens] for tokens in samples]
        hidden = padded(states, [1e3] * WIDTH, double)
        for _ in range(ROUNDS):
            wishes = random_wishes(rng, samples, images, double)
            selection = choose(layout, wishes, double, policy)
            changes = [w.keep < n for w, n in zip(wishes, layout.n_visual)]
            assert (selection is not None) == any(changes)
            if selection is None:
                continue
            changed += 1
            samples = [selected(tokens, wish, policy) for tokens, wish in zip(samples, wishes)]
            assert selection.lengths == tuple(len(tokens) for tokens in samples)
            assert selection.n_visual == tuple(wish.keep + wish.clusters for wish in wishes)
            hidden, layout = apply(selection, hidden), layout.select(selection)
            assert layout.n_visual == selection.n_visual
            assert_same(layout, samples)
            assert_states(hidden, samples, double)
            # What padding holds must never matter.
            hidden = hidden.masked_fill(~layout.valid[..., None], 1e3)
    assert changed > BATCHES
