"""The stages of training, from easy to the benchmarks' own scenes, as data.

First the tower alone learns to see small windows under dense labels (cheap: no decoder), then whole
pictures; then, with the tower held still, the decoder learns to describe them and to answer, from
an eighth of their patches, then from all; then where to look, and at last, with the tower, what it
finds there and how it compares. A window keeps its items' true size and its place in the position
table, so that what is learned there carries over. Validation is on whole pictures (576 visual
tokens).
"""

from __future__ import annotations

from dataclasses import dataclass

from llava.train.rates import warm_cosine
from llava.train.scenes import Style


@dataclass(frozen=True)
class Stage:
    """One stage. `turns` is the number of questions a picture, 0 to train the tower alone, and
    `lists` the share of pictures that are also described; what goes beyond `length` tokens is left
    out.

    `visual` is how many patches of a picture the decoder gets, None for all. Scenes go from style
    `start` to style `end` over the share `ramp` of the steps. `rate` is the peak learning rate: a
    short linear warm-up, then a cosine to a twentieth. The tower's rate is `tower` times as high;
    with 0 the tower is held still, which saves its backward pass. `pointing` is the weight of the
    losses of `llava.train.pointing` and `llava.train.readouts`.
    """

    name: str
    steps: int
    batch: int
    start: Style
    end: Style
    rate: float
    turns: int = 0
    lists: float = 1.0
    length: int | None = None
    visual: int | None = None
    pointing: float = 0.0
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
        return warm_cosine(self.rate, step, self.steps, self.warmup)

    def guidance(self, step: int) -> float:
        """The weight `pointing` at a step: it grows to its full size during four warm-ups, in which
        fresh heads learn without disturbing the decoder."""
        return self.pointing * min(1.0, (step + 1) / (4 * self.warmup))


_EASY = Style(window=112, things=(1, 1), signs=(0, 1), letters=(20, 30), clutter=(0, 3), tilt=3.0)
_WINDOW = Style(window=112, things=(1, 2), signs=(0, 1), clutter=(1, 4))
_FEW = Style(things=(1, 2), signs=(0, 1))
_PICTURE = Style()
_ALIKE = Style(things=(4, 7), signs=(1, 3), repeated=0.12, same_colour=0.4, made_up=0.6)

DEMO = (
    Stage("see windows", 1500, 32, _EASY, _WINDOW, rate=2e-3),
    Stage("see more windows", 1500, 32, _WINDOW, _WINDOW, rate=1.5e-3),
    Stage("see pictures", 700, 8, _PICTURE, _PICTURE, rate=1e-3),
    Stage("see more pictures", 300, 8, _PICTURE, _PICTURE, rate=6e-4),
    Stage("see still more pictures", 700, 8, _PICTURE, _PICTURE, rate=1e-3),
    Stage(
        "answer pictures",
        steps=1400,
        batch=8,
        start=_FEW,
        end=_PICTURE,
        rate=2e-3,
        turns=12,
        length=340,
        visual=72,
        tower=0,
        ramp=0.3,
    ),
    Stage(
        "answer more questions",
        steps=600,
        batch=8,
        start=_PICTURE,
        end=_PICTURE,
        rate=1.5e-3,
        turns=14,
        lists=0.2,
        length=340,
        visual=72,
        tower=0,
    ),
    Stage(
        "answer still more questions",
        steps=480,
        batch=8,
        start=_PICTURE,
        end=_PICTURE,
        rate=1.5e-3,
        turns=14,
        lists=0.1,
        length=340,
        visual=72,
        tower=0,
    ),
    Stage(
        "answer from all patches",
        steps=360,
        batch=8,
        start=_FEW,
        end=_PICTURE,
        rate=1.5e-3,
        turns=14,
        lists=0.1,
        length=300,
        tower=0,
        ramp=0.7,
    ),
    Stage(
        "answer more from all patches",
        steps=420,
        batch=8,
        start=_FEW,
        end=_PICTURE,
        rate=1.5e-3,
        turns=14,
        lists=0.0,
        length=300,
        tower=0,
        ramp=0.7,
    ),
    Stage(
        "learn where to look",
        steps=1500,
        batch=8,
        start=_FEW,
        end=_PICTURE,
        rate=1.5e-3,
        turns=22,
        lists=0.0,
        length=420,
        pointing=0.2,
        tower=0,
        ramp=0.3,
    ),
    Stage(
        "know what is named",
        steps=1620,
        batch=8,
        start=_PICTURE,
        end=_PICTURE,
        rate=1.5e-3,
        turns=36,
        lists=0.0,
        length=560,
        pointing=0.2,
        tower=0.4,
    ),
    Stage(
        "tell alike things apart",
        steps=1180,
        batch=8,
        start=_ALIKE,
        end=_PICTURE,
        rate=7e-4,
        turns=44,
        lists=0.0,
        length=680,
        pointing=0.2,
        tower=0.5,
        ramp=1.0,
    ),
)
