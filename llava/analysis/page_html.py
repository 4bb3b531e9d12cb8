"""The report page as HTML text: everything inside one file, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

from PIL import Image

from llava.eval.compare.report import cells, notes

from .chart import chart, line_class
from .differences import GAINED, LOST, Changes, Difference
from .overlay import merged_on
from .page_tables import ALONE, changes_matrix, html_table
from .traced import TracedAnswer
from .tradeoff import FLOPS_HEADING, TOWER, Series
from .views import View

_QUALITY = 80  # of the JPEG pictures
_CHANGE = {LOST: "right → wrong", GAINED: "wrong → right", "other": "another answer"}


@dataclass(frozen=True)
class Card:
    """A difference to show, and the answer asked for again with its trace; None without a model."""

    difference: Difference
    trace: TracedAnswer | None


@dataclass(frozen=True)
class Content:
    """What a page shows.

    table:      a comparison (`llava.eval.compare.comparison.compare`)
    drawn:      its series (`tradeoff.series`); left_out: its rows that cannot be drawn;
                others: the series that keep less (`tradeoff.foremost`)
    settings:   by the name of a run, what it ran with
    again:      name of the checkpoint that was asked again, None without one
    """

    title: str
    table: Mapping[str, Any]
    drawn: Sequence[Series]
    left_out: Sequence[str]
    others: Sequence[str]
    settings: Mapping[str, Mapping[str, Any]]
    changes: Sequence[Changes]
    cards: Sequence[Card]
    differences: int
    again: str | None = None


def render(content: Content) -> str:
    """The page."""
    files = resources.files(__package__)
    style = files.joinpath("page.css").read_text(encoding="utf-8")
    script = files.joinpath("page.js").read_text(encoding="utf-8")
    pictures, ids = _pictures(content.cards)
    traces = {f"card-{n}": _trace(c.trace) for n, c in enumerate(content.cards) if c.trace}
    sections = [
        ("answers", "Answers that differ most", _cards(content, ids)),
        ("scores", "Scores and costs", _scores(content)),
        ("plots", "Accuracy against cost", _plots(content)),
        ("changes", "What pruning changed", changes_matrix(content.changes)),
        ("settings", "Settings", _settings(content)),
    ]
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, title, _ in sections)
    body = "".join(
        f'<section aria-labelledby="{key}"><h2 id="{key}">{title}</h2>{text}</section>'
        for key, title, text in sections
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(content.title)}</title><style>{style}</style></head><body>"
        '<a class="skip" href="#answers">Skip to the answers</a>'
        f'<header><h1>{escape(content.title)}</h1><nav aria-label="Sections"><ul>{links}</ul></nav>'
        f"</header><main>{body}</main>{pictures}"
        f'<script type="application/json" id="traces">{_json(traces)}</script>'
        f"<script>{script}</script></body></html>\n"
    )


def _scores(content: Content) -> str:
    told = (line.removeprefix("- ").replace("`", "") for line in notes(content.table))
    lines = "".join(f"<li>{escape(line)}</li>" for line in told)
    return f'{html_table("Scores and costs", *cells(content.table))}<ul class="notes">{lines}</ul>'


def _plots(content: Content) -> str:
    if not content.drawn:
        return "<p>No run has every benchmark: nothing to draw.</p>"
    tower = TOWER[content.table["vision_apart"]]
    charts = "".join(
        chart(content.drawn, name, heading)
        for name, heading in (
            ("tokens", "visual tokens entering a layer, mean"),
            ("flops", FLOPS_HEADING),
            ("prefill_ms", f"prefill, ms a question{tower}"),
        )
    )
    legend = "".join(
        f'<li><svg viewBox="0 0 32 10" aria-hidden="true"><path class="{line_class(n, line)}" '
        f'stroke-width="2" d="M0 5H32"/></svg> {escape(line.label)}</li>'
        for n, line in enumerate(content.drawn)
    )
    note = "".join(
        f"<li>Left out, for it lacks a benchmark or tokens: {escape(row)}.</li>"
        for row in content.left_out
    )
    if content.others:
        note += f"<li>Not drawn, for they keep less: {escape(', '.join(content.others))}.</li>"
    return (
        f'<ul class="legend">{legend}</ul><div class="charts">{charts}</div>'
        '<ul class="notes"><li>Accuracy: mean of the scores, in percent of the best. Level lines '
        "are the unpruned model and runs without a picture; dashed are the methods that look at "
        f"nothing.</li>{note}</ul>"
    )


def _cards(content: Content, pictures: Mapping[int, Sequence[str]]) -> str:
    if not content.changes:
        return f"<p>{ALONE}</p>"
    if not content.cards:
        return (
            f"<p>{content.differences} answers differ from the unpruned model's; none is shown.</p>"
        )
    shown = [card.difference for card in content.cards]
    options = {
        "benchmark": (difference.result.benchmark.name for difference in shown),
        "hardness": (difference.hardness for difference in shown),
        "method": (difference.method for difference in shown),
        "budget": (difference.budget for difference in shown),
        "change": (difference.change for difference in shown),
    }
    selects = "".join(_select(name, values) for name, values in options.items())
    articles = "".join(
        _card(number, card, pictures.get(number, ())) for number, card in enumerate(content.cards)
    )
    return (
        f"<p>{len(shown)} of {content.differences} answers that differ from the unpruned model's. "
        "Move a slider to see the patches that enter each layer: dropped ones are dark, a framed "
        "one is the mean of several, tinted ones are in it, lines mark padding. Where each token "
        "shows a whole picture, as Senna's do, that is the darker, the fewer are left."
        f"{_asked(content)}</p>"
        f'<form id="filters">{selects}<button type="reset">Show all</button>'
        f'<output id="shown" aria-live="polite"></output></form>'
        "<noscript><p>Filters and sliders need JavaScript.</p></noscript>"
        f'<div class="cards">{articles}</div>'
    )


def _asked(content: Content) -> str:
    """Who was asked again, where it is not the model of the answers."""
    answered = content.table["made_with"]["model"]
    if content.again is None or content.again in answered:
        return ""
    by, other = escape(", ".join(answered)), escape(content.again)
    return (
        f" Answers and costs are of {by}; {other} was asked again, patches are of that, and "
        "missing where it cannot be asked so."
    )


def _select(name: str, values: Iterable[str]) -> str:
    options = "".join(
        f'<option value="{escape(value)}">{escape(_CHANGE.get(value, value))}</option>'
        for value in dict.fromkeys(values)
        if value
    )
    every = '<option value="">all</option>'
    return f'<label>{name}<select name="{name}">{every}{options}</select></label>'


def _card(number: int, card: Card, pictures: Sequence[str]) -> str:
    difference, trace = card.difference, card.trace
    data = {
        "benchmark": difference.result.benchmark.name,
        "hardness": difference.hardness,
        "method": difference.method,
        "budget": difference.budget,
        "change": difference.change,
    }
    cost = difference.pruned.metadata["cost"]
    facts = [f"{cost['tokens_entering']:.1f} tokens enter a layer"]
    facts.append(
        f"{cost['prefill_flops'] / cost['dense_prefill_flops']:.1%} of the prefill FLOPs "
        "(published counting)"
    )
    if "computed_flops" in cost:
        facts.append(f"{cost['computed_flops'] / cost['dense_prefill_flops']:.1%} computed")
    measured = difference.pruned.metadata.get("complexity") or {}
    if "mi" in measured:
        facts.append(f"MI {measured['mi']:.3f}")
    asked_again = ""
    if trace is not None and trace.text != difference.pruned.text:
        asked_again = f"<dt>asked again</dt><dd>{escape(trace.text)}</dd>"
    question = difference.question.model_text
    if difference.question.views:  # a line each for the name and the place of a picture
        question = " ".join(question.split())
    reference = ""
    if difference.reference is not None:
        reference = f"<dt>reference</dt><dd>{escape(difference.reference)}</dd>"
    attributes = " ".join(f'data-{key}="{escape(value)}"' for key, value in data.items())
    heading = difference.method + (f" at {difference.budget}" if difference.budget else "")
    return (
        f'<article id="card-{number}" {attributes}>'
        f"<h3>{escape(difference.result.benchmark.name)}, {escape(difference.hardness)}, "
        f"{escape(heading)}: "
        f'<span class="{difference.change}">{_CHANGE[difference.change]}</span></h3>'
        f"{_seen(number, card, pictures)}"
        f'<p class="question">{escape(question)}</p>'
        f"<dl>{reference}<dt>unpruned</dt><dd>{escape(difference.dense.text)}</dd>"
        f"<dt>pruned</dt><dd>{escape(difference.pruned.text)}</dd>{asked_again}</dl>"
        f'<p class="small">{", ".join(facts)}</p></article>'
    )


def _seen(number: int, card: Card, pictures: Sequence[str]) -> str:
    if card.trace is None or not pictures:
        names = ", ".join(card.difference.question.images)
        return f'<p class="small">Picture: {escape(names)}</p>'
    layers = card.trace.layers
    paths = "".join(f'<path class="{n}" d=""/>' for n in ("dropped", "tint", "frame", "padding"))
    views = "".join(
        f'<figure style="flex-grow:{view.columns}"><svg class="seen" '
        f'viewBox="0 0 {view.columns} {view.rows}" role="img" aria-label="The '
        f"picture{', ' if view.title else ''}{escape(view.title)}, with the patches kept in the "
        f'layer of the slider"><use href="#{picture}"/>{paths}</svg>'
        + (f"<figcaption>{escape(view.title)}</figcaption>" if view.title else "")
        + "</figure>"
        for view, picture in zip(card.trace.views, pictures, strict=True)
    )
    many = " many" if len(pictures) > 2 else ""
    return (
        f'<div class="views{many}">{views}</div>'
        f'<div class="layer"><label for="layer-{number}">layer</label>'
        f'<input type="range" id="layer-{number}" min="0" max="{layers}" '
        f'value="{min(layers // 3, layers)}" autocomplete="off"><output for="layer-{number}">'
        "</output></div>"
    )


def _settings(content: Content) -> str:
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(', '.join(values))}</dd>"
        for name, values in content.table["made_with"].items()
    )
    runs = "".join(
        f'<details><summary>{escape(name)}</summary><dl class="facts">'
        + "".join(
            f"<dt>{escape(key)}</dt><dd>{escape(json.dumps(value))}</dd>"
            for key, value in settings.items()
        )
        + "</dl></details>"
        for name, settings in content.settings.items()
    )
    folded = f"<details><summary>Settings of each run</summary>{runs}</details>"
    return f'<dl class="facts">{facts}</dl>{folded}'


def _pictures(cards: Sequence[Card]) -> tuple[str, dict[int, list[str]]]:
    """The pictures, each once, and by the number of a card the ids of what was seen of its own."""
    ids: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    of_card: dict[int, list[str]] = {}
    parts: list[str] = []
    for number, card in enumerate(cards):
        if card.trace is None:
            continue
        difference = card.difference
        key = difference.result.benchmark.folder, difference.question.images
        if key not in ids:
            ids[key] = []
            for view in card.trace.views:
                ids[key].append(f"picture-{len(parts)}")
                parts.append(
                    f'<image id="{ids[key][-1]}" width="{view.columns}" height="{view.rows}" '
                    f'preserveAspectRatio="none" href="{_data_uri(view.picture)}"/>'
                )
        of_card[number] = ids[key]
    return f'<svg class="pictures" aria-hidden="true"><defs>{"".join(parts)}</defs></svg>', of_card


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _trace(trace: TracedAnswer) -> dict[str, Any]:
    """What `page.js` draws: counts by layer, and of each view by layer its tokens, the kept patches
    as bits and the merged ones with what is in them (-1 for those of other views)."""
    return {
        "counts": [len(kept) for kept in trace.kept],
        "views": [_view(view, trace) for view in trace.views],
    }


def _view(view: View, trace: TracedAnswer) -> dict[str, Any]:
    count = view.columns * view.rows
    return {
        "columns": view.columns,
        "rows": view.rows,
        "title": view.title,
        "mixed": view.mixed,
        "of": len(view.tokens),
        "tokens": [view.count(kept) for kept in trace.kept],
        "kept": [_bits(view.patches(kept), count) for kept in trace.kept],
        "merged": [list(merged_on(view, groups).items()) for groups in trace.merged],
        "padding": _bits(view.patches(view.padding), count),
    }


def _bits(ids: Iterable[int], patches: int) -> str:
    """Patches as hexadecimal digits, four each, the first in the lowest bit of the first."""
    digits = [0] * -(-patches // 4)
    for patch in ids:
        if patch < patches:
            digits[patch >> 2] |= 1 << (patch & 3)
    return "".join(f"{digit:x}" for digit in digits)


def _json(value: Any) -> str:
    """JSON that cannot end the element it stands in."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
