"""Two more tables of the official repository's EVAL.md: more benchmarks on 7B, and 13B.

Rows, budgets and columns are those of the page (AutoLab-SAI-SJTU/AutoPrune). Its scores are not
filled in: those cells are empty. Two kinds of rows have numbers, each with a source of its own:
the unpruned models as LLaVA publishes them (haotian-liu/LLaVA, docs/MODEL_ZOO.md), and the floor
of no image at all from Theia-4869/FasterVLM's table. MME is perception only on this page, other
than in Table 1.
"""

from __future__ import annotations

from .base import OFFICIAL_TILES, Counted, PublishedRow, PublishedTable
from .columns import GQA, MMB, MMB_CN, MME_PERCEPTION, POPE, SQA, TEXTVQA, VQAV2

_LLAVA = "LLaVA's model zoo (haotian-liu/LLaVA, docs/MODEL_ZOO.md)"
_FASTERVLM = "table of Theia-4869/FasterVLM (f5d5f12)"
_PAGE = "EVAL.md of AutoLab-SAI-SJTU/AutoPrune (rows and columns; its scores are not filled in)"

# How each of the page's methods counts its budget.
_METHODS: dict[str, tuple[str, Counted]] = {
    "tome": ("ToMe", "entering"),
    "fastv": ("FastV", "kept"),
    "sparsevlm": ("SparseVLM", "leaving"),
    "prumerge+": ("PruMerge+", "entering"),
    "visionzip": ("VisionZip", "entering"),
    "fastervlm": ("FasterVLM", "entering"),
    "autoprune": ("AutoPrune", "leaving"),
}


def _rows(methods: tuple[str, ...], budgets: tuple[int, ...]) -> tuple[PublishedRow, ...]:
    return tuple(
        PublishedRow(_METHODS[method][0], method, tokens, _METHODS[method][1])
        for tokens in budgets
        for method in methods
    )


EXTENDED = PublishedTable(
    name="extended",
    title="Extended table of the official page: LLaVA-1.5-7B, seven benchmarks",
    model="llava-v1.5-7b",
    source=_PAGE,
    columns=(GQA, SQA, TEXTVQA, POPE, MME_PERCEPTION, MMB, MMB_CN),
    derived=("ratio",),
    rows=(
        PublishedRow(
            "LLaVA-1.5-7B", "none", 576, None,
            {
                "gqa": 62.0, "sqa": 66.8, "textvqa": 58.2, "pope": 85.9, "mme": 1510.7,
                "mmb": 64.3, "mmb_cn": 58.3,
            },
            {"sqa": "a"},
            source=_LLAVA,
        ),
        *_rows(tuple(_METHODS), (128, 64)),
        PublishedRow(
            "no image", "no-image", 0, None,
            {"gqa": 37.38, "sqa": 63.06, "textvqa": 41.43, "pope": 47.21, "mme": 719.1},
            {"textvqa": "b"},
            source=_FASTERVLM,
        ),
    ),
    notes={
        "a": "Those who run LLaVA's code again report 67.9 to 69.5 (LLaVA issues 927 and 1770).",
        "b": "The prompt holds OCR tokens of the image.",
    },
)  # fmt: skip

THIRTEEN_B = PublishedTable(
    name="13b",
    title="13B table of the official page: LLaVA-1.5-13B, five benchmarks",
    model="llava-v1.5-13b",
    source=_PAGE,
    columns=(VQAV2, GQA, TEXTVQA, POPE, MME_PERCEPTION),
    derived=("ratio",),
    tiled=OFFICIAL_TILES,
    rows=(
        PublishedRow(
            "LLaVA-1.5-13B",
            "none",
            576,
            None,
            {"vqav2": 80.0, "gqa": 63.3, "textvqa": 61.3, "pope": 85.9, "mme": 1531.3},
            source=_LLAVA,
        ),
        *_rows(("fastv", "sparsevlm", "fastervlm", "autoprune"), (288, 144, 58)),
    ),
)
