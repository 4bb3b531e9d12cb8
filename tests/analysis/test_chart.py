"""The panels of the report page: places, ticks and labels by hand."""

from __future__ import annotations

import re

import pytest

from llava.analysis.chart import _ticks, chart, line_class
from llava.analysis.tradeoff import Point, Series

UNPRUNED = Series("unpruned", "level", [Point(600, 100, 50, "", None)])
AUTO = Series("a <b>", "method", [Point(150, 25, 20, "64", 10.0), Point(300, 50, 40, "128", None)])
RANDOM = Series("random", "floor", [Point(300, 50, 10, "128", 5.0)])


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0, 576, [0, 200, 400, 600]),
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (62.5, 71, [62, 64, 66, 68, 70, 72]),
        (0, 0.3, [0, 0.1, 0.2, 0.3]),
    ],
)
def test_ticks_are_round_and_hold_everything(low, high, wanted) -> None:
    assert _ticks(low, high) == wanted


def test_one_value_still_has_two_ticks() -> None:
    first, *_, last = _ticks(50, 50)
    assert first <= 50 < last


def test_points_are_where_they_belong() -> None:
    text = chart([UNPRUNED, RANDOM, AUTO], "tokens", "tokens & more")
    # Between 44 and 398 for 0 to 600, between 12 and 256 for 50 down to 10.
    places = re.findall(r'<circle class="(\w+) (\w+) round0" cx="([\d.]+)" cy="([\d.]+)"', text)
    assert places == [
        ("c0", "level", "398.0", "12.0"),
        ("c1", "floor", "221.0", "256.0"),
        ("c2", "method", "132.5", "195.0"),
        ("c2", "method", "221.0", "73.0"),
    ]
    assert '<polyline class="c2 method round0" points="132.5,195.0 221.0,73.0"/>' in text
    assert 'd="M44 12.0H398"' in text and text.count("<polyline") == 2
    assert "<title>a &lt;b&gt; 64: 20.0 at 150.0</title>" in text
    assert text.count("tokens &amp; more") == 2 and "<b>" not in text


def test_what_was_not_measured_is_not_drawn() -> None:
    text = chart([UNPRUNED, RANDOM, AUTO], "prefill_ms", "ms")
    assert text.count("<circle") == 2 and "level" not in text
    assert chart([UNPRUNED], "prefill_ms", "ms") == ""


def test_colours_go_round() -> None:
    assert line_class(3, RANDOM) == "c3 floor round0"
    assert line_class(13, AUTO) == "c3 method round1"
