"""One file a benchmark: how its questions are recovered, joined with annotations and scored.

`BENCHMARKS` has them by name, in the order of AutoPrune's tables, then Senna's plans. Importing it
needs no torch.
"""

from __future__ import annotations

from . import gqa, mme, mmvet, pope, scienceqa, textvqa, vizwiz, vqav2
from .base import Benchmark
from .mmbench import MMBENCH, MMBENCH_CN
from .senna import benchmark as senna

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        vqav2.BENCHMARK,
        gqa.BENCHMARK,
        vizwiz.BENCHMARK,
        scienceqa.BENCHMARK,
        textvqa.BENCHMARK,
        textvqa.BENCHMARK_NO_OCR,
        pope.BENCHMARK,
        mme.BENCHMARK,
        MMBENCH,
        MMBENCH_CN,
        mmvet.BENCHMARK,
        senna.BENCHMARK,
    )
}

__all__ = ["BENCHMARKS", "Benchmark"]
