"""The README's Python lines run as they stand, on the embedded checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


def test_the_eight_lines_answer_prune_and_draw(monkeypatch, tmp_path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, code = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line]) == 8
    # The picture that the lines save goes where nobody's file is.
    (tmp_path / "playground").symlink_to(ROOT / "playground")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(code, scope)
    answer = scope["answer"]
    assert answer.text and answer.sample.n_visual == 576 and answer.layers == 12
    # The published convention: 64 tokens leave a layer on average, about half a token of rounding.
    assert sum(answer.sample.leaving) / 12 == pytest.approx(64, abs=1.5)
    with Image.open(tmp_path / "kept.png") as saved:
        drawn = saved.convert("RGB")
    assert drawn.size == (336, 336)
    # A kept patch that stands for itself alone is there as it was; a dropped one is grey.
    kept, merged = set(answer.kept[6]), answer.merged[6]
    dropped = set(range(576)) - kept - {patch for group in merged.values() for patch in group}
    alone = kept - merged.keys() - {patch for group in merged.values() for patch in group}
    assert alone and dropped

    def middle(patch: int) -> tuple[int, int]:
        return patch % 24 * 14 + 7, patch // 24 * 14 + 7

    for patch in alone:
        assert drawn.getpixel(middle(patch)) == answer.picture.getpixel(middle(patch))
    for patch in dropped:
        assert len(set(drawn.getpixel(middle(patch)))) == 1
