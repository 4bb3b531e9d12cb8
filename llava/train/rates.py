"""The learning rate of a stage of training."""

from __future__ import annotations

import math


def warm_cosine(peak: float, step: int, steps: int, warmup: int) -> float:
    """The rate at a step, counted from 0: a linear warm-up, then a cosine to a twentieth.

    Of transformers' two such schedules, one begins at rate 0 and one leaves the peak a step early;
    the embedded checkpoints were made with neither, and a function of the step needs no state.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return peak * (0.525 + 0.475 * math.cos(math.pi * share))
