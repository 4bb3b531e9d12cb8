"""One file a benchmark: its files and sources, how it is asked, and how answers are scored.

`BENCHMARKS` has them by name, in the order of AutoPrune's tables, then Senna's plans. A benchmark
from outside joins them by `register`. Importing this needs no torch.
"""

from __future__ import annotations

from importlib import import_module

from .base import BENCHMARKS, Benchmark, register

# Each registers what it defines.
for _module in (
    "vqav2",
    "gqa",
    "vizwiz",
    "scienceqa",
    "textvqa",
    "pope",
    "mme",
    "mmbench",
    "mmvet",
    "senna.benchmark",
):
    import_module(f".{_module}", __name__)

__all__ = ["BENCHMARKS", "Benchmark", "register"]
