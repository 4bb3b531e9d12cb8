"""Not a test: llava.eval.benchmark, noting which programs it runs instead of running them.

    python tests/eval/recorded.py CALLS -m llava.eval.benchmark NAME TOKENS ...

Each call is noted in the file CALLS as its folder and its arguments, a line each. The answering
program ends as $ANSWERING says.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from llava.eval import benchmark


def note(*words: str) -> int:
    with Path(sys.argv[1]).open("a") as file:
        file.write("\n".join([f"cwd {Path.cwd()}", *words, "end", ""]))
    answering = any(word.startswith("llava.eval.model_vqa") for word in words[:4])
    return int(os.environ.get("ANSWERING", 0)) if answering else 0


def launch(command: list[str], count: int) -> int:
    return note("torchrun", str(count), *command)


if __name__ == "__main__":
    assert sys.argv[2:4] == ["-m", "llava.eval.benchmark"], sys.argv
    benchmark.perform = lambda *words: note("-m", *words)
    benchmark.launch = launch
    sys.exit(benchmark.main(sys.argv[4:]))
