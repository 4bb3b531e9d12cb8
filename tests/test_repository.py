"""Promises about the tree itself."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from llava.cli import SUB_COMMANDS

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "llava").rglob("*.py"))


def tracked() -> list[Path]:
    """The files git tracks, or everything outside ignored folders in an export."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def imports(path: Path) -> set[str]:
    """What a file imports, modules and the names from them; relative ones are resolved."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*package, node.module or ""]).rstrip(".")
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_dependencies_point_one_way(path: Path) -> None:
    names = imports(path)
    roots = {name.split(".")[0] for name in names}
    inside = path.relative_to(ROOT / "llava").parts[0]
    assert not roots & {"torchvision", "gradio", "lmms_eval"}
    assert "matplotlib" not in roots or inside == "analysis"
    shows = inside in ("analysis", "serve")
    assert shows or not any(name.startswith("llava.analysis") for name in names)
    if inside == "pruning":
        allowed = {"cache.py"} if "transformers" in roots else set()
        assert "transformers" not in roots or path.name in allowed
        assert not any(name.startswith(("llava.model", "llava.eval")) for name in names)
    if inside == "model":
        assert not any(name.startswith("llava.eval") for name in names)
    if inside != "train":  # which the wheel leaves out
        assert not any(name.startswith("llava.train") for name in names)


def test_no_file_grows_out_of_hand() -> None:
    long = {p.name: n for p in SOURCES if (n := len(p.read_text().splitlines())) > 350}
    assert not long


def test_no_path_of_a_machine_in_any_file() -> None:
    pattern = re.compile(r"(?<![\w.])/(?:work|root|home)/\w")
    found = []
    for path in tracked():
        if path.suffix in (".safetensors", ".model", ".jpg", ".png"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if pattern.search(line) and path != Path(__file__):
                found.append(f"{path.relative_to(ROOT)}:{number}")
    assert not found


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").rglob("*.sh")), ids=lambda p: p.name)
def test_scripts_parse(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], capture_output=True).returncode == 0


def test_the_commands_of_the_documents_exist() -> None:
    """Modules, sub-commands, scripts and pictures that README.md and EVAL.md name can be found."""
    for document in ("README.md", "EVAL.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for module in set(re.findall(r"python -m (llava[\w.]*)", text)):
            path = ROOT / module.replace(".", "/")
            assert any(p.is_file() for p in (path.with_suffix(".py"), path / "__main__.py")), module
        commands = set(re.findall(r"^autoprune (\w+)|`autoprune (\w+) ", text, re.MULTILINE))
        assert commands and {first or second for first, second in commands} <= SUB_COMMANDS.keys()
        for script in set(re.findall(r"bash (scripts/[\w/.]+\.sh)", text)):
            assert (ROOT / script).is_file(), (document, script)
        for picture in re.findall(r"!\[[^\]]*\]\(([^)#]+)\)", text):
            assert (ROOT / picture).is_file(), (document, picture)
