"""The pruning package stands on torch alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def modules_after(*imports: str) -> set[str]:
    """Names of the modules that a fresh interpreter has loaded after `imports`."""
    code = "; ".join([*(f"import {name}" for name in imports), "import sys; print(*sys.modules)"])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_pruning_imports_neither_transformers_nor_the_model() -> None:
    files = (ROOT / "llava" / "pruning").glob("*.py")
    # The cache is a transformers cache, and nothing else of the package may pull it in.
    names = [
        f"llava.pruning.{file.stem}" for file in files if file.stem not in ("__init__", "cache")
    ]
    loaded = modules_after("llava.pruning", *names)
    assert {"torch", "llava.pruning.methods.autoprune.run", "llava.pruning.arguments"} <= loaded
    foreign = {
        name
        for name in loaded
        if name.split(".")[0] in ("transformers", "accelerate", "matplotlib", "torchvision")
        or name.startswith(("llava.model", "llava.eval", "llava.pruning.cache"))
    }
    assert foreign == set()
