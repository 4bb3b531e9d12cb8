"""The positions that small towers start with."""

from __future__ import annotations

from math import cos, exp, sin

import pytest

from llava.train.architecture import sine_positions


def test_rows_and_columns_have_half_of_the_channels_each() -> None:
    table = sine_positions(10, -3, 0.5)
    assert table.shape == (576, 10)
    row, column, slow = 2, 5, exp(-3)
    expected = [
        sin(row),
        sin(row * slow),
        cos(row),
        cos(row * slow),
        sin(column),
        sin(column * slow),
        cos(column),
        cos(column * slow),
    ]
    assert table[24 * row + column].tolist() == pytest.approx([0.5 * x for x in expected] + [0, 0])
