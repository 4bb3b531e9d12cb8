"""The README's Python lines run as they stand, on the embedded checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_eight_lines_answer_and_prune(monkeypatch, capsys) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(ROOT)
    scope: dict = {}
    exec(code, scope)
    trace = scope["out"].past_key_values.trace.samples[0]
    assert trace.n_visual == 576 and len(trace.entering) == 12
    # The published convention: 64 tokens leave a layer on average, about half a token of rounding.
    assert sum(trace.leaving) / 12 == pytest.approx(64, abs=1.5)
    answer, counts = capsys.readouterr().out.strip().splitlines()[-1].split(" [")
    assert answer and counts == str(trace.entering)[1:]
