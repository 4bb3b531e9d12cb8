"""Promises about the tree itself."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Mapping
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


def module(path: Path) -> str:
    """The dotted name of a source file; `__init__` is the name of a folder's door."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {module(path): path for path in SOURCES}


def imports(path: Path) -> set[str]:
    """What a file imports, wherever in it: modules of the package, and names from outside.

    Imports for type checkers and inside functions count.
    """
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            base = ".".join([*package, node.module or ""]).rstrip(".")
            members = {f"{base}.{alias.name}" for alias in node.names}
            # `from .layout import apply` is of the module layout, `from . import layout` as well
            names |= {m if {m, f"{m}.__init__"} & MODULES.keys() else base for m in members}
    return {f"{n}.__init__" if f"{n}.__init__" in MODULES else n for n in names}


GRAPH = {name: imports(path) & MODULES.keys() - {name} for name, path in MODULES.items()}

#: The floors of the house, from the ground up: what the names of their modules begin with. Of
#: several that fit the longest counts.
FLOORS = (
    ("llava.pruning",),
    ("llava.pruning.methods", "llava.pruning.__init__"),
    ("llava", "llava.common"),
    ("llava.model",),
    ("llava.hf",),
    ("llava.eval.run",),
    ("llava.eval.benchmarks",),
    ("llava.eval.compare",),
    ("llava.eval",),
    ("llava.analysis",),
    ("llava.serve",),
    ("llava.cli", "llava.__main__"),
    ("llava.train",),  # which the wheel leaves out
)


def floor(name: str) -> int:
    """The number of the floor that a module is on."""
    fitting = [
        (len(beginning), number)
        for number, beginnings in enumerate(FLOORS)
        for beginning in beginnings
        if f"{name}.".startswith(f"{beginning}.")
    ]
    return max(fitting)[1]


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The sets of nodes that can be reached from each other."""

    def reached(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            new = graph.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        return seen

    reach = {name: reached(name) for name in graph}
    rings = {
        tuple(sorted(other for other in reach[name] if name in reach.get(other, ())))
        for name in graph
        if name in reach[name]
    }
    return [list(ring) for ring in sorted(rings)]


def test_dependencies_point_one_way() -> None:
    """The engine knows no method, a run no comparison, and no floor one that is above it."""
    upwards = [
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        for other in sorted(others)
        if floor(other) > floor(name)
    ]
    assert not upwards


def test_no_circle_of_imports() -> None:
    """No circle of files, nor of folders, except between a folder and one inside it."""
    assert not circles(GRAPH)
    folders: dict[str, set[str]] = {}
    for name, others in GRAPH.items():
        folder = name.rpartition(".")[0]
        for target in {other.rpartition(".")[0] for other in others}:
            if not f"{folder}.".startswith(f"{target}.") and not target.startswith(f"{folder}."):
                folders.setdefault(folder, set()).add(target)
    assert not circles(folders)


def test_imports_of_every_kind_are_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    assert floor("llava.pruning.layout") < floor("llava.pruning.methods.fastv")
    assert floor("llava.mm_utils") < floor("llava.model.builder") < floor("llava.eval.run.runner")
    assert GRAPH["llava.model.__init__"] == {"llava.model.language_model.llava_llama"}
    assert "llava.pruning.__init__" in GRAPH["llava.analysis.attention"]
    assert "matplotlib.figure" in imports(MODULES["llava.analysis.curves"])  # for type checkers
    assert "llava.serve.download" in GRAPH["llava.serve.pictures"]  # in a function


def test_only_some_folders_use_some_packages() -> None:
    outside = {
        name: {i.split(".")[0] for i in imports(path)} - {"llava"} for name, path in MODULES.items()
    }

    def users(package: str) -> set[str]:
        return {name for name, packages in outside.items() if package in packages}

    assert not users("torchvision") | users("gradio")
    assert users("lmms_eval") == {"llava.eval.lmms.__init__", "llava.eval.lmms.model"}
    assert all(name.startswith("llava.analysis.") for name in users("matplotlib"))
    in_pruning = {name for name in users("transformers") if name.startswith("llava.pruning")}
    assert in_pruning == {"llava.pruning.cache", "llava.pruning.methods.cdpruner"}


def test_no_file_grows_out_of_hand() -> None:
    long = {p.name: n for p in SOURCES if (n := len(p.read_text().splitlines())) > 350}
    assert not long


def untidy(source: str) -> set[str]:
    """Names that are grammar, not nouns of the field, and tuples unpacked inside a list."""
    grammar, wrong = {"asked", "found", "made", "one", "own", "what"}, set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            wrong |= {node.id} & grammar
        elif isinstance(node, ast.arg):
            wrong |= {node.arg} & grammar
        elif isinstance(node, ast.Starred) and isinstance(node.value, ast.Tuple):
            wrong.add("*(")
    return wrong


def test_names_are_nouns_and_lists_are_plain() -> None:
    assert untidy("def f(own): found = [*(1, own), *own]") == {"own", "found", "*("}
    wrong = {name: untidy(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
    assert not {name: words for name, words in wrong.items() if words}


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


def test_the_architecture_page_has_the_sentence_of_each_folder() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    shown, parents = {}, []
    for line in re.findall(r"^ *\w+/ .+$", text.split("```")[1], flags=re.MULTILINE):
        name, _, sentence = line.strip().partition(" ")
        parents = [*parents[: (len(line) - len(line.lstrip())) // 2], name]
        shown["".join(parents)] = sentence.strip()
    folders = {}
    for path in SOURCES:
        if path.name == "__init__.py":
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            first = re.match(r".+?\.(?=\s|$)", text, flags=re.DOTALL)
            folders[f"{path.parent.relative_to(ROOT)}/"] = " ".join(first[0].split())
    assert shown == folders


def test_a_reader_finds_the_way_of_a_picture_and_of_a_budget() -> None:
    """The files that the architecture page leads through are there, and few."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    sections = dict(part.split("\n", 1) for part in text.split("\n## ")[1:])
    files = {name: set(re.findall(r"llava/[\w/]+\.py", body)) for name, body in sections.items()}
    assert 5 <= len(files["One picture"]) <= 9 and len(files["One budget"]) == 3
    assert all((ROOT / file).is_file() for named in files.values() for file in named)
    assert len(text.splitlines()) <= 110  # two screens


DOCUMENTS = [ROOT / f"{name}.md" for name in ("README", "EVAL", "CONTRIBUTING")]
DOCUMENTS += ROOT.glob("docs/*.md")


def test_the_commands_of_the_documents_exist() -> None:
    """Modules, sub-commands, scripts, files and headings that the documents name can be found."""
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for module in set(re.findall(r"python -m (llava[\w.]*)", text)):
            path = ROOT / module.replace(".", "/")
            assert any(p.is_file() for p in (path.with_suffix(".py"), path / "__main__.py")), module
        commands = set(re.findall(r"^autoprune (\w+)|`autoprune (\w+) ", text, re.MULTILINE))
        assert {first or second for first, second in commands} <= SUB_COMMANDS.keys()
        for script in set(re.findall(r"bash (scripts/[\w/.]+\.sh)", text)):
            assert (ROOT / script).is_file(), (document, script)
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            name, _, heading = link.partition("#")
            target = document.parent / name if name else document
            assert target.exists(), (document, link)
            assert not heading or heading in headings(target), (document, link)


def headings(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_the_front_page_is_short() -> None:
    sizes = {name: (ROOT / name).stat().st_size for name in ("README.md", "EVAL.md")}
    assert sizes["README.md"] <= 9 * 1024 and sizes["EVAL.md"] <= 20 * 1024
