"""The programs under scripts/ as functions, files for them, and Pythons that note or replace."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

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


# Stands in for Python: notes how it was called or, if to run a benchmark, which programs that runs.
_RECORDER = """#!/usr/bin/env bash
[[ $1 == -c ]] && exit 0
if [[ $2 == llava.eval.benchmark ]]; then
    PYTHONPATH="{root}" exec "{python}" "{root}/tests/eval/recorded.py" "$CALLS" "$@"
fi
printf '%s\\n' "cwd $PWD" "$@" end >> "$CALLS"
"""


def write_recorder(path: Path) -> None:
    """A Python that notes calls in the file that $CALLS names, see `recorded`."""
    _write_python(path, _RECORDER)


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
