"""The stages of training, from easy to the benchmark's own scenes, as data.

First the tower alone learns to read small windows under dense labels (cheap: no decoder), then the
decoder learns to answer from windows (64, then 144 visual tokens), last both learn to do so on full
pictures (576). A window keeps its letters' true size and its place in the position table, so that
most of what is learned there carries over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llava.train.scenes import Style


@dataclass(frozen=True)
class Stage:
    """One stage. `turns` is the number of questions a picture, 0 to train the tower alone.

    Scenes go from style `start` to style `end` over the share `ramp` of the steps. `rate` is the
    peak learning rate: a short linear warm-up, then a cosine to a twentieth. The tower's rate is
    `tower` times as high: once it reads, the first wild gradients of the decoder would spoil it.
    """

    name: str
    steps: int
    batch: int
    start: Style
    end: Style
    rate: float
    turns: int = 0
    tower: float = 1.0
    ramp: float = 0.6
    warmup: int = 50

    def __post_init__(self) -> None:
        if self.start.window != self.end.window:
            raise ValueError(f"stage {self.name}: start and end need the same window")

    def style(self, step: int) -> Style:
        """The style of the scenes at a step."""
        return self.start.towards(self.end, min(1.0, step / max(1.0, self.ramp * self.steps)))

    def learning_rate(self, step: int) -> float:
        """The learning rate at a step, counted from 0."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        share = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (0.525 + 0.475 * math.cos(math.pi * share))


_EASY = Style(window=112, signs=(1, 1), letters=(24, 36), clutter=(0, 3), tilt=3.0)
_WINDOW = Style(window=112, signs=(1, 2), clutter=(1, 4))
_LARGER = Style(window=168, signs=(1, 3), clutter=(1, 6))
_PICTURE = Style()

DEMO = (
    Stage("read windows", 2500, 32, _EASY, _WINDOW, rate=2e-3),
    Stage("answer windows", 600, 16, _WINDOW, _WINDOW, rate=2e-3, turns=5, tower=0.15),
    Stage("answer larger windows", 300, 16, _LARGER, _LARGER, rate=1.5e-3, turns=6, tower=0.2),
    Stage("read pictures", 220, 16, _PICTURE, _PICTURE, rate=1e-3),
    Stage("answer pictures", 180, 8, _PICTURE, _PICTURE, rate=1e-3, turns=8, tower=0.3),
)
