"""Numbers on a command line, for the `type` of a flag; argparse names the flag in a refusal."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

#: The largest size of a number, unless a flag says another: what no flag here can mean.
MOST = 2**31 - 1
_SHOWN = 40  # characters of a wrong value that a message shows


def whole(least: int = -MOST, most: int = MOST) -> Callable[[str], int]:
    """A whole number from `least` to `most`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:  # no number, or one of thousands of digits
            raise argparse.ArgumentTypeError(
                f"expected a whole number of usual size, got {text[:_SHOWN]!r}"
            ) from None
        return _within(value, least, most, text)

    return read


def number(least: float = -MOST, most: float = MOST) -> Callable[[str], float]:
    """A finite number from `least` to `most`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isnan(value):
            raise argparse.ArgumentTypeError(f"expected a number, got {text[:_SHOWN]!r}")
        return _within(value, least, most, text)

    return read


def _within(value: float, least: float, most: float, text: str) -> float:
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"must be from {least:,} to {most:,}, got {text[:_SHOWN]}")
    return value
