"""The programs under scripts/ as functions, files for them, and Pythons that note or replace."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from llava.eval import benchmark

SCRIPTS = Path(__file__).parents[2] / "scripts"


def script(name: str) -> Callable[..., int]:
    """The command line of scripts/NAME.py: arguments to exit status."""
    path = SCRIPTS / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *arguments: module.main([str(argument) for argument in arguments])


def write_lines(path: Path, entries: Iterable[Any]) -> Path:
    """A JSON-lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


# Stands in for Python: notes how it was called, what is to run a benchmark for `run_script`.
_RECORDER = """#!/usr/bin/env bash
[[ $1 == -c ]] && exit 0
if [[ $2 == llava.eval.benchmark ]]; then
    {{ printf '%s\\0' "$#" "$PWD" "$@"; env -0; }} > "$CALLS.asked"
    exit 0
fi
printf '%s\\n' "cwd $PWD" "$@" end >> "$CALLS"
"""


def write_recorder(path: Path) -> None:
    """A Python that notes calls in the file that $CALLS names, see `run_script`."""
    _write_python(path, _RECORDER)


def run_script(
    words: list[str], cwd: Path, env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a script. `llava.eval.benchmark` under a recorder then runs in this process, which is
    faster than starting one, and notes the programs that it runs instead of running them.

    The answering program ends as $ANSWERING says.
    """
    asked = Path(f"{env['CALLS']}.asked")
    asked.unlink(missing_ok=True)
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    if done.returncode or not asked.is_file():
        return done
    count, folder, *rest = asked.read_text().split("\0")[:-1]
    command, variables = rest[: int(count)], rest[int(count) :]
    assert command[:2] == ["-m", "llava.eval.benchmark"], command

    def note(*program: str) -> int:
        with Path(env["CALLS"]).open("a") as file:
            file.write("\n".join([f"cwd {Path.cwd()}", *program, "end", ""]))
        answering = any(word.startswith("llava.eval.model_vqa") for word in program[:4])
        return int(env.get("ANSWERING", 0)) if answering else 0

    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(os, "environ", dict(v.split("=", 1) for v in variables))
        patch.setattr(benchmark, "perform", lambda *words: note("-m", *words))
        patch.setattr(
            benchmark, "launch", lambda words, count: note("torchrun", str(count), *words)
        )
        try:
            status = benchmark.main(command[2:])
        except SystemExit as stop:  # of argparse
            status = int(stop.code or 0)
    said = done.stdout + out.getvalue(), done.stderr + err.getvalue()
    return subprocess.CompletedProcess(words, status, *said)


# Stands in for Python: runs a benchmark whose answering program is another.
_REPLACED = """#!/usr/bin/env bash
[[ $1 == -c ]] && exit 0
PYTHONPATH="{root}" exec "{python}" "{root}/tests/eval/replaced.py" "{root}/tests/eval/{name}" "$@"
"""


def write_replacing_python(path: Path, name: str) -> None:
    """A Python whose answering program is tests/eval/NAME, see `replaced`."""
    _write_python(path, _REPLACED, name)


def _write_python(path: Path, text: str, name: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.format(python=sys.executable, root=SCRIPTS.parent, name=name))
    path.chmod(0o755)


def calls(folder: Path) -> list[list[str]]:
    """What a recorder noted in `folder`/calls: for each call its folder and arguments."""
    text = (folder / "calls").read_text()
    return [call.splitlines() for call in text.split("\nend\n") if call]


def perform(call: list[str]) -> int:
    """Run a recorded call, `-m MODULE ...`, in this process; returns its exit status."""
    return importlib.import_module(call[2]).main(call[3:])


def value(call: list[str], flag: str) -> str:
    """What argparse takes: the last one given."""
    return call[len(call) - call[::-1].index(flag)]
