"""Not a test: llava.eval.benchmark with another answering program.

    python tests/eval/replaced.py PROGRAM.py -m llava.eval.benchmark NAME TOKENS ...

PROGRAM.py answers, by its `main` or, on several devices, in processes of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

from llava.eval import benchmark

PERFORM, LAUNCH = benchmark.perform, benchmark.launch


def perform(module: str, *arguments: str) -> int:
    if module.startswith("llava.eval.model_vqa"):
        module = f"tests.eval.{Path(sys.argv[1]).stem}"
    return PERFORM(module, *arguments)


if __name__ == "__main__":
    assert sys.argv[2:4] == ["-m", "llava.eval.benchmark"], sys.argv
    benchmark.perform = perform
    benchmark.launch = lambda command, count: LAUNCH([sys.argv[1], *command[2:]], count)
    sys.exit(benchmark.main(sys.argv[4:]))
