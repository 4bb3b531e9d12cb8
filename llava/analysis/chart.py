"""Accuracy against cost as SVG text for a page: no library, colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from .tradeoff import Series

COLOURS = 10  # --c0 .. --c9 of the style sheet; the lines after them are dashed in another way
_WIDTH, _HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 22, 12, 44
_TICKS = 5


def chart(drawn: Sequence[Series], name: str, heading: str) -> str:
    """One panel: `name` of the points ("tokens", "flops", "prefill_ms") on the abscissa.

    A line a series; one that has no such number is left out. Empty if none has.
    """
    placed = [
        (
            number,
            series,
            [(getattr(p, name), p) for p in series.points if getattr(p, name) is not None],
        )
        for number, series in enumerate(drawn)
    ]
    placed = [(number, series, points) for number, series, points in placed if points]
    if not placed:
        return ""
    every = [(x, point.accuracy) for _, _, points in placed for x, point in points]
    xs = _ticks(0, max(x for x, _ in every) or 1)
    ys = _ticks(min(y for _, y in every), max(y for _, y in every))

    def across(x: float) -> float:
        return _LEFT + (x - xs[0]) / (xs[-1] - xs[0]) * (_WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        return _TOP + (ys[-1] - y) / (ys[-1] - ys[0]) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="Accuracy in percent of the best against {escape(heading)}; the numbers are '
        f'in the table">'
    ]
    for x in xs:
        parts.append(f'<path class="grid" d="M{across(x):.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        place = f'x="{across(x):.1f}" y="{_HEIGHT - _BOTTOM + 16}"'
        parts.append(f'<text {place} text-anchor="middle">{x:g}</text>')
    for y in ys:
        parts.append(f'<path class="grid" d="M{_LEFT} {down(y):.1f}H{_WIDTH - _RIGHT}"/>')
        place = f'x="{_LEFT - 6}" y="{down(y) + 4:.1f}"'
        parts.append(f'<text {place} text-anchor="end">{y:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    place = f'x="{middle}" y="{_HEIGHT - 6}"'
    parts.append(f'<text {place} text-anchor="middle">{escape(heading)}</text>')
    for number, series, points in placed:
        look = f'class="{line_class(number, series)}"'
        if series.kind == "level":
            parts.append(f'<path {look} d="M{_LEFT} {down(points[0][1].accuracy):.1f}')
            parts.append(f'H{_WIDTH - _RIGHT}"/>')
        else:
            corners = " ".join(f"{across(x):.1f},{down(p.accuracy):.1f}" for x, p in points)
            parts.append(f'<polyline {look} points="{corners}"/>')
        for x, point in points:
            label = f"{series.label} {point.budget}".strip()
            parts.append(
                f'<circle {look} cx="{across(x):.1f}" cy="{down(point.accuracy):.1f}" r="4">'
                f"<title>{escape(label)}: {point.accuracy:.1f} at {x:.1f}</title></circle>"
            )
    return "".join(parts) + "</svg>"


def line_class(number: int, series: Series) -> str:
    """The style of a series: its colour, its kind, and how often the colours went round before."""
    return f"c{number % COLOURS} {series.kind} round{number // COLOURS}"


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about five of them."""
    span = max(high - low, 1e-9 * max(abs(high), 1))
    step = 10 ** math.floor(math.log10(span / _TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= _TICKS)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    return [round(number * step, 10) for number in range(first, last + 1)]
