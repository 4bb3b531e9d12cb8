"""How programs end when nobody takes their standard output."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FULL = Path("/dev/full")
#: A program that writes less than a buffer, more than one, and with flushes; and one that asks for
#: its help, which argparse ends.
PROGRAMS = {
    "short": "lambda: print('x')",
    "long": "lambda: print('x' * 1_000_000)",
    "flushed": "lambda: print('x', flush=True)",
    "lines": "lambda: [print('x' * 99) for _ in range(9999)] and 3",
    "help": "__import__('argparse').ArgumentParser().print_help",
}


def command(program: str) -> list[str]:
    return [sys.executable, "-c", f"from llava.common import program; program.run({program})"]


@pytest.mark.skipif(not FULL.exists(), reason="a system without /dev/full")
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_full_device_is_a_message_and_a_status(program: str) -> None:
    with FULL.open("w") as full:
        done = subprocess.run(
            command(program), stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "error: cannot write the standard output: No space left on device\n"


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_reader_that_has_gone_is_no_news(program: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            command(program), stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_the_status_is_that_of_main() -> None:
    done = subprocess.run(
        command("lambda: print('ü \\ud800') or 3"),
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (3, [rb"\xfc", rb"\ud800"])
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command("lambda: print('x') or 3")],
        stderr=subprocess.PIPE,
        cwd=ROOT,
        check=False,
    )
    assert (closed.returncode, closed.stderr) == (3, b"")


def test_every_program_ends_so() -> None:
    files = [path for folder in ("llava", "scripts") for path in (ROOT / folder).rglob("*.py")]
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    programs = {path: text for path, text in texts.items() if '__name__ == "__main__"' in text}
    assert len(programs) > 30
    for path, text in programs.items():
        ending = 'if __name__ == "__main__":\n    program.run(main)\n'
        assert text.endswith(ending), path
        imported = r"^from (llava\.|\.\.)common import .*\bprogram\b"
        assert re.search(imported, text, re.MULTILINE), path
