"""Table 4 of the paper: what measures a sample's complexity (a), and which curve it shapes (b).

LLaVA-1.5-7B, TextVQA and GQA at 64 and 128 tokens; AutoPrune with one field changed. The best row
of either is AutoPrune itself, so its run is that of Table 1.
Source: "Each Complexity Deserves a Pruning Policy", NeurIPS 2025, arXiv 2509.23931.
"""

from __future__ import annotations

from dataclasses import replace

from .base import Column, PublishedRow, PublishedTable
from .columns import GQA, TEXTVQA


def _at(column: Column, tokens: int) -> Column:
    return replace(
        column, key=f"{column.key}_{tokens}", heading=f"{column.heading} {tokens}", tokens=tokens
    )


_COLUMNS = tuple(_at(column, tokens) for column in (TEXTVQA, GQA) for tokens in (64, 128))


def _row(label: str, settings: dict[str, str], *values: float) -> PublishedRow:
    keys = (column.key for column in _COLUMNS)
    scores = dict(zip(keys, values, strict=True))
    return PublishedRow(label, "autoprune", None, "leaving", scores, settings=settings)


TABLE_A = PublishedTable(
    name="4a",
    title="Table 4a: indicators of complexity, LLaVA-1.5-7B",
    model="llava-v1.5-7b",
    source="Table 4 (a) of the AutoPrune paper (arXiv 2509.23931)",
    columns=_COLUMNS,
    rows=(
        _row("Static logistic", {"indicator": "static"}, 55.1, 55.9, 55.6, 57.6),
        _row("Cosine similarity", {"indicator": "cosine_similarity"}, 55.8, 56.7, 56.1, 57.9),
        _row("Average attention", {"indicator": "mean_attention"}, 56.2, 56.9, 56.7, 58.4),
        _row("Mutual information", {}, 57.1, 57.4, 57.7, 59.9),
    ),
)

TABLE_B = PublishedTable(
    name="4b",
    title="Table 4b: curves of the schedule, LLaVA-1.5-7B",
    model="llava-v1.5-7b",
    source="Table 4 (b) of the AutoPrune paper (arXiv 2509.23931)",
    columns=_COLUMNS,
    rows=(
        _row("Linear", {"curve": "linear"}, 54.1, 55.5, 52.7, 54.9),
        _row("Tanh", {"curve": "tanh"}, 56.6, 56.9, 55.2, 57.5),
        _row("Exponential", {"curve": "exponential"}, 56.1, 56.6, 54.2, 56.3),
        _row("Logistic", {}, 57.1, 57.4, 57.7, 59.9),
    ),
)
