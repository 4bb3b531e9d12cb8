"""The pruning package stands on torch alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
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
    # The cache is a transformers cache, and what fills and reads it is all that may pull it in.
    beside = ("__init__", "cache", "prefill", "decoding")
    names = [f"llava.pruning.{file.stem}" for file in files if file.stem not in beside]
    loaded = modules_after("llava.pruning", *names)
    assert {"torch", "llava.pruning.methods.autoprune.run", "llava.pruning.arguments"} <= loaded
    foreign = {
        name
        for name in loaded
        if name.split(".")[0] in ("transformers", "accelerate", "matplotlib", "torchvision")
        or name.startswith(("llava.model", "llava.eval", "llava.pruning.cache"))
    }
    assert foreign == set()


def imported(file: Path, package: Path) -> set[Path]:
    """Files of `package` that `file` imports, wherever in it; relatively, as they all do."""
    files = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            modules = [folder / alias.name for alias in node.names] + [folder]
            for module in modules:
                files |= {module.with_suffix(".py"), module / "__init__.py"}
    return {path for path in files if path.is_file() and package in path.parents and path != file}


def test_imports_form_no_circle_even_for_type_checkers() -> None:
    package = ROOT / "llava" / "pruning"
    graph = {file: imported(file, package) for file in package.rglob("*.py")}
    assert package / "checks.py" in graph[package / "base.py"]
    order = list(TopologicalSorter(graph).static_order())
    assert order.index(package / "base.py") < order.index(package / "methods" / "fastv.py")
