"""Small published tables over the benchmarks of `benchmark_files`, with made-up numbers."""

from __future__ import annotations

from llava.eval.compare.published import Column, PublishedRow, PublishedTable

ALPHA = Column("a", "Alpha", "alpha", "percent")
BETA = Column("b", "Beta", "beta", "points of 200")

TABLE = PublishedTable(
    name="1",
    title="Table 1: tiny",
    model="llava-v1.5-tiny",
    source="a paper",
    columns=(ALPHA, BETA),
    derived=("ratio", "flops"),
    rows=(
        PublishedRow("Tiny", "none", 576, None, {"a": 80.0, "b": 150, "ratio": 100, "flops": 100}),
        PublishedRow(
            "Other", "magic", 32, "kept", {"a": 40.0}, {"row": "x", "a": "y"}, source="another"
        ),
        PublishedRow("Ours", "autoprune", 32, "leaving", {"a": 60.5, "b": 120}),
    ),
    notes={"x": "Copied.", "y": "Misprinted."},
)
ABLATION = PublishedTable(
    name="4",
    title="Table 4: tiny",
    model="llava-v1.5-tiny",
    source="a paper",
    columns=(
        Column("a_8", "Alpha 8", "alpha", "percent", tokens=8),
        Column("a_16", "Alpha 16", "alpha", "percent", tokens=16),
    ),
    rows=(
        PublishedRow("Late", "autoprune", None, "leaving", {"a_8": 1.5}, settings={"mi_layer": 2}),
        PublishedRow("Ours", "autoprune", None, "leaving", {"a_8": 2.5, "a_16": 3.5}),
    ),
)
TABLES = {"1": TABLE, "4": ABLATION}
