"""The console script: its sub-commands are the programs, by a shorter name."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llava import __version__, cli
from llava.common import program

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", cli.SUB_COMMANDS)
def test_every_sub_command_has_help_in_its_own_name(name: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.dispatch([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: autoprune {name} ")
    module = cli.SUB_COMMANDS[name].module
    assert program.name(module) == f"python -m {module}"


def test_a_sub_command_takes_the_rest_and_gives_its_status(tmp_path: Path, capsys) -> None:
    assert cli.dispatch(["score", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err
    assert cli.dispatch(["convert", str(tmp_path), str(tmp_path / "new"), "--to", "original"]) == 1
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("sweeep", "no command 'sweeep'; did you mean sweep?"),
        ("viewer", "no command 'viewer'; did you mean view?"),
        ("nothing-near", "no command 'nothing-near'\n"),
        ("--nothing", "unrecognized arguments: --nothing"),
    ],
)
def test_an_unknown_sub_command_is_refused(name: str, advice: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.dispatch([name])
    assert ended.value.code == 2
    assert advice in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.dispatch(["--version"])
    assert capsys.readouterr().out == f"{__version__}\n"


def test_the_script_that_is_installed(tmp_path: Path) -> None:
    """Its list needs no torch, and a signal in the imports of a sub-command ends it.

    In place of torch, which takes seconds, a module that sends the signal.
    """
    (entry,) = re.findall(r'scripts\]\nautoprune = "([\w.]+):(\w+)"$', _pyproject(), re.MULTILINE)
    script = tmp_path / "bin" / "autoprune"
    script.parent.mkdir()
    script.write_text(f"import sys\nfrom {entry[0]} import {entry[1]}\nsys.exit({entry[1]}())\n")
    (tmp_path / "torch.py").write_text(
        f"import os, time\nos.kill(os.getpid(), {int(signal.SIGTERM)})\ntime.sleep(60)\n"
    )

    def run(*arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, script, *arguments],
            env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout, done.stderr

    code, listed, said = run()
    assert (code, said) == (2, "")
    assert [name for name in cli.SUB_COMMANDS if f"\n  {name} " not in listed] == []
    assert run("view", "--help") == (130, "", "Interrupted.\n")


def _pyproject() -> str:
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8")
