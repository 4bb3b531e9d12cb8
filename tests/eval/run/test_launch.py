"""Several processes are started as one: the status that comes back, with torch's own launcher."""

from __future__ import annotations

import signal

import pytest

from llava.eval.run.launch import launch

PROGRAM = """import os, signal
print(os.environ["WORLD_SIZE"], file=open(f"{__file__}.{os.environ['RANK']}", "w"))
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),  # as a shell says it
    ],
)
def test_the_status_is_that_of_the_processes(end, status, tmp_path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM + end)
    before = signal.getsignal(signal.SIGTERM)
    assert launch([str(program)], 2) == status
    assert signal.getsignal(signal.SIGTERM) is before
    assert status or sorted(p.read_text() for p in tmp_path.glob("*.py.*")) == ["2\n", "2\n"]
