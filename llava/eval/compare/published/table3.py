"""Table 3 of the paper: Senna's planning accuracy at 26 to 51 of 128 tokens a view.

It prints accuracies relative to the unpruned model only, and budgets a view; Senna sees six, so
`tokens` is six times what is printed: 156, 192, 228, 270 and 306 of 768.
Source: "Each Complexity Deserves a Pruning Policy", NeurIPS 2025, arXiv 2509.23931.
"""

from __future__ import annotations

from .base import Counted, PublishedRow, PublishedTable
from .columns import SENNA

VIEWS = 6
#: Tokens a view, as printed.
PRINTED = (26, 32, 38, 45, 51)


def _rows(
    label: str, method: str, counted: Counted, *ratios: float, **marks: str
) -> list[PublishedRow]:
    return [
        PublishedRow(label, method, VIEWS * tokens, counted, {"ratio": ratio}, marks)
        for tokens, ratio in zip(PRINTED, ratios, strict=True)
    ]


def _in_order(*methods: list[PublishedRow]) -> tuple[PublishedRow, ...]:
    """By budget, then by method, as the other tables are."""
    return tuple(row for same in zip(*methods, strict=True) for row in same)


TABLE = PublishedTable(
    name="3",
    title="Table 3: planning accuracy of Senna",
    model="Senna",
    source="Table 3 of the AutoPrune paper (arXiv 2509.23931)",
    columns=(SENNA,),
    derived=("ratio",),
    rows=(
        PublishedRow("Senna", "none", 768, None, {"ratio": 100.0}, {"row": "a"}),
        *_in_order(
            _rows("FasterVLM", "fastervlm", "entering", 55.05, 52.81, 47.19, 45.50, 49.43, row="b"),
            _rows("SparseVLM", "sparsevlm", "leaving", 84.29, 93.83, 95.52, 97.76, 101.13),
            _rows("PyramidDrop", "pdrop", "entering", 94.94, 98.89, 96.07, 98.29, 100.55),
            _rows("AutoPrune", "autoprune", "leaving", 96.63, 111.23, 106.75, 105.06, 104.51),
        ),
    ),
    notes={
        "a": (
            "Budgets are totals of six views: 156, 192, 228, 270, 306 of 768 are the printed 26, "
            "32, 38, 45, 51 of 128 a view. The accuracy that 100 % stands for is not printed, nor "
            "which of its questions were asked: Senna's authors have not published theirs."
        ),
        "b": (
            "FasterVLM ranks patches by CLS attention, and after Senna's adapter no token is a "
            "patch; how these numbers were made is not said. Here the method refuses, so its "
            "measured cells stay empty."
        ),
    },
)
