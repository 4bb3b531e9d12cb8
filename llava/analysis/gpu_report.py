"""`autoprune bench --gpu-report OUT.md`: time to first token over everything, as one document.

See `llava.analysis.first_token` for what is measured. Numbers that only a CUDA device has are "-"
elsewhere, and what is absent, does not fit in memory or had no time becomes a line at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from ..eval.run.environment import device_name
from .first_token import Report
from .prefills import SHAPES

ATTENTIONS = ("sdpa", "flash_attention_2")
SECONDS = 540.0  # of the ten minutes; starting up and the last cell come on top
LEGEND = """\
Times are medians over turns: dense (transformers' own LlamaModel) and pruned runs alternate, and
the speed-up is the median of dense / pruned within a turn. A run is the prefill of embeddings,
the norm, the output head on the last token, and the token read back; image encoding is not in
it. *FLOPs allow* is the ratio of prefill FLOPs by the published counting: tokens entering a
layer, without scoring and merging. Of two numbers in a cell the first is the dense run's.
*Operators* that do work, and *waits* for the host, are counted by torch
(`llava/analysis/launches.py`); *kernels* and *copies* between host and device by the profiler;
*peak* is memory beyond weights and input."""

_COLUMNS = (
    "attention",
    "layers",
    "batch",
    "target",
    "entering",
    "dense ms",
    "pruned ms",
    "speed-up",
    "FLOPs allow",
    "operators",
    "waits",
    "kernels",
    "copies",
    "peak GiB",
    "turns",
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as Markdown; of two numbers in a cell the first is the dense run's."""

    def pair(row: dict[str, Any], name: str, form: str = "{}") -> str:
        values = [row[f"dense_{name}"], row[name]]
        shown = ["-" if value is None else form.format(value) for value in values]
        return shown[0] if shown[0] == shown[1] == "-" else " / ".join(shown)

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else form.format(value)

    lines = ["| " + " | ".join(_COLUMNS) + " |", "| --- " * len(_COLUMNS) + "|"]
    for row in rows:
        cells = [
            row["attention"],
            "compiled" if row["compiled"] else "eager",
            row["batch"],
            number(row["target"], "{:g}"),
            number(row["tokens_entering"], "{:.1f}"),
            number(row["dense_ms"], "{:.2f}"),
            number(row["ms"], "{:.2f}"),
            number(row["speedup"], "{:.2f}"),
            number(row["flops_speedup"], "{:.2f}"),
            pair(row, "operators"),
            pair(row, "waits"),
            pair(row, "kernels"),
            pair(row, "copies"),
            pair(row, "peak_gib", "{:.2f}"),
            row["turns"],
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def tables(report: Report) -> str:
    """A table for each shape and prompt, then the notes."""
    order = list(SHAPES)

    def kind(row: dict[str, Any]) -> tuple[int, int]:
        return order.index(row["shape"]), row["visual_tokens"]

    parts = [
        f"{order[shape]}, {tokens} visual tokens:\n\n{table(list(rows))}"
        for (shape, tokens), rows in groupby(sorted(report.rows, key=kind), key=kind)
    ]
    if report.notes:
        parts.append("\n".join(f"- {note}" for note in report.notes))
    return "\n\n".join(parts)


def write(
    path: Path,
    command: str,
    method: str,
    measure: Callable[[Callable[[Report], None]], Report],
    device: torch.device,
    dtype: str,
) -> Report:
    """Run `measure`, and write the document at its start and each time it calls its argument.

    Raises OSError where `path` cannot be written, before anything is measured.
    """
    start = time.monotonic()

    def save(report: Report) -> None:
        seconds = time.monotonic() - start
        path.write_text(document(report, command, method, device, dtype, seconds), encoding="utf-8")

    save(Report())
    report = measure(save)
    save(report)
    return report


def document(
    report: Report, command: str, method: str, device: torch.device, dtype: str, seconds: float
) -> str:
    """The whole Markdown: what was measured where and how, then the tables."""
    versions = [f"torch {torch.__version__}", f"transformers {version('transformers')}"]
    if device.type == "cuda":
        versions.append(f"CUDA {torch.version.cuda}")
    with suppress(PackageNotFoundError):
        versions.append(f"flash-attn {version('flash-attn')}")
    return f"""# Time to first token

{device_name(device)}, {", ".join(versions)}, random weights in {dtype}.
Method {method}; {seconds:.0f} s:

```bash
{command}
```

{LEGEND}

{tables(report)}
"""
