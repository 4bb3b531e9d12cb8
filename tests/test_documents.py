"""Every command of the documents: its program and flags exist, and those that need nothing from
outside, and seconds, run."""

from __future__ import annotations

import io
import re
import shlex
from contextlib import redirect_stdout, suppress
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from llava.cli import SUB_COMMANDS

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "EVAL.md", "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
# What stands for files of a reader, and places where nothing is until somebody puts it there.
OUTSIDE = re.compile(
    r"models/|data/eval|RUNS|\$|PICTURE|ANSWERS|\.\.\.|questions\.jsonl|OUT\b|DIR\b|FRAMES|picture\.jpg"
)
# Programs that take minutes, or run until they are stopped.
LONG = ("llava.serve.viewer", "llava.eval.compare", "llava.train",
        "llava.analysis.latency", "llava.analysis.loading")  # fmt: skip


def commands() -> list[tuple[str, str]]:
    """Document and command, one line each, of all bash blocks."""
    result = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                if command := re.sub(r"(^|\s)#.*", "", line).strip():
                    result.append((Path(document).name, " ".join(command.split())))
    return result


def program_of(command: str) -> tuple[str, list[str]] | None:
    """The module that a command runs, and its arguments; None where it is no program of this
    package, or one of those that a script names."""
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
    if not words:
        return None
    if "-m" in words[:4] and words[words.index("-m") + 1].startswith("llava"):
        at = words.index("-m") + 1
        return words[at], words[at + 1 :]
    if Path(words[0]).name == "autoprune":
        sub_command = SUB_COMMANDS[words[1]]
        return sub_command.module, words[1:] if sub_command.shared else words[2:]
    return None


@cache
def help_of(module: str, first: str | None) -> str:
    """What the program says to --help."""
    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        import_module(module).main([*([first] if first else []), "--help"])
    # What these do not know themselves they hand on.
    handing_on = module.endswith((".tables", ".study", ".reproduce"))
    more = help_of(SUB_COMMANDS["sweep"].module, None) if handing_on else ""
    return text.getvalue() + more


def test_there_are_commands_in_every_kind_of_document() -> None:
    documents = {document for document, _ in commands()}
    assert {"README.md", "EVAL.md", "CONTRIBUTING.md", "results.md", "tools.md"} <= documents
    assert sum(program_of(command) is not None for _, command in commands()) > 20


@pytest.mark.parametrize("document, command", commands())
def test_its_script_or_program_and_flags_exist(document: str, command: str) -> None:
    for script in re.findall(r"(?:bash )?(\.ci/run|scripts/[\w/.]+\.sh)", command):
        assert (ROOT / script).is_file(), script
    if (named := program_of(command)) is None:
        return
    module, arguments = named
    first = arguments[0] if SUB_COMMANDS.get(arguments[0] if arguments else "") else None
    text = help_of(module, first if first in ("convert", "merge") else None)
    for word in arguments:
        if word.startswith("--"):
            assert re.search(rf"{re.escape(word.partition('=')[0])}\b", text), (document, word)


def quick() -> list[str]:
    """Commands that need neither files from outside nor minutes."""
    chosen = []
    for _, command in commands():
        named = program_of(command)
        if named is None or OUTSIDE.search(command) or named[0].startswith(LONG):
            continue
        chosen.append(command)
    return list(dict.fromkeys(chosen))


def test_some_commands_are_run() -> None:
    assert len(quick()) >= 4


@pytest.mark.parametrize("command", quick())
def test_it_runs_on_a_clone(command: str, tmp_path, monkeypatch, capsys) -> None:
    """In a folder that has the checkout's files, and takes what the command writes."""
    module, arguments = program_of(command) or ("", [])
    (tmp_path / "playground" / "figures").mkdir(parents=True)
    for name in ("demo", "data"):
        (tmp_path / "playground" / name).symlink_to(ROOT / "playground" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: "")  # an empty line ends a chat
    assert import_module(module).main(arguments) in (0, None), capsys.readouterr().err
