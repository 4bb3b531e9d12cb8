"""The programs under scripts/ as functions, files for them, and a Python that notes its calls."""

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


# Stands in for Python: notes how it was called; ends as $ANSWERING says when asked to answer.
_RECORDER = """#!/usr/bin/env bash
[[ $1 == -c ]] && {asked}
until mkdir "$CALLS.lock" 2>/dev/null; do sleep 0.01; done  # several may be called at a time
printf '%s\\n' "cwd $PWD" "$@" end >> "$CALLS"
rmdir "$CALLS.lock"
[[ $2 == llava.eval.model_vqa* ]] && exit "${{ANSWERING:-0}}"
exit 0
"""


def write_recorder(path: Path, asked: str | None = None) -> None:
    """A program that notes its calls in the file that $CALLS names.

    `asked` is the Python that answers what scripts ask with -c; without one there is no answer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_RECORDER.format(asked=f'exec {asked} "$@"' if asked else "exit 0"))
    path.chmod(0o755)


# Stands in for Python: model_vqa_loader answers with the stub model, all else is as it is.
_STUB = """#!/usr/bin/env bash
[[ $2 == llava.eval.model_vqa_loader ]] || exec "{python}" "$@"
shift 2
PYTHONPATH="{root}" exec "{python}" "{root}/tests/eval/launched.py" "$@"
"""


def write_stub_python(path: Path) -> None:
    """A Python whose `llava.eval.model_vqa_loader` has the stub as its model."""
    path.write_text(_STUB.format(python=sys.executable, root=SCRIPTS.parent))
    path.chmod(0o755)


def calls(folder: Path) -> list[list[str]]:
    """What a recorder noted in `folder`/calls: for each call its folder and arguments."""
    text = (folder / "calls").read_text()
    return [call.splitlines() for call in text.split("\nend\n") if call]


def perform(call: list[str]) -> int:
    """Run a recorded call, `-m MODULE ...` or `scripts/NAME.py ...`, in this process, which is
    faster than starting one; returns its exit status."""
    if call[1] == "-m":
        return importlib.import_module(call[2]).main(call[3:])
    return script(Path(call[1]).stem)(*call[2:])


def value(call: list[str], flag: str) -> str:
    """What argparse takes: the last one given."""
    return call[len(call) - call[::-1].index(flag)]
