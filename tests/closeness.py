"""How near two results must be that ought to be equal, on any machine and with any threads.

Bitwise is `torch.equal`. What cannot be is compared in float64, to 1e-9. Threads and processors
change the last bits of float32, so there a difference is relative to the largest value and has
ten times the room that it was seen to need.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLOAT64 = 1e-9
#: Float64 results that someone rounded to float32: half a unit in the last place, times ten.
ROUNDED = 6e-7
#: Float32 throughout, a few layers deep: 4e-6 was seen.
FLOAT32 = 4e-5


def difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected value."""
    size = float(expected.abs().max()) if expected.numel() else 0.0
    gap = float((actual - expected).abs().max()) if expected.numel() else 0.0
    return gap / size if size else gap


def assert_close(actual: Tensor, expected: Any, room: float = FLOAT64) -> None:
    """Fail unless both have one shape and differ by at most `room`, relative to the largest value.

    Without `room` both must be float64; numbers worked out by hand are taken as such.
    """
    if not isinstance(expected, Tensor):
        expected = torch.tensor(expected, dtype=torch.float64)
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    if room == FLOAT64:
        assert actual.dtype == expected.dtype == torch.float64, (actual.dtype, expected.dtype)
    gap = difference(actual, expected)
    assert gap <= room, f"differs by {gap:.3g} of the largest value, at most {room:.3g} expected"
