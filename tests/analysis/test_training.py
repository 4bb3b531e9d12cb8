"""The log of a training becomes stages and a picture, or is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.analysis.training import figure, main, read

LOG = Path(__file__).parents[2] / "playground/demo/training.jsonl"
LINES = (
    {"stage": "see", "step": 50, "minutes": 1.0, "kind_right": 0.5, "text_right": 0.1},
    {"stage": "see", "step": 90, "minutes": 2.5, "kind_right": 0.75, "text_right": 0.25},
    {"stage": "answer", "step": 50, "minutes": 4.0, "answer": 0.5},
    {"stage": "answer", "step": 60, "minutes": 4.5, "validation": 0.625},
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


def test_a_stage_begins_where_the_one_before_ended(log: Path) -> None:
    assert [stage.told() for stage in read(log)] == [
        {"stage": "see", "steps": 90, "minutes": 2.5, "kind_right": 0.75, "text_right": 0.25},
        {"stage": "answer", "steps": 60, "minutes": 2.0, "answer": 0.5, "validation": 0.625},
    ]


def test_every_value_is_drawn_at_its_minute(log: Path) -> None:
    pytest.importorskip("matplotlib")
    above, below = figure(read(log)).axes
    loss = above.lines[0]
    assert (list(loss.get_xdata()), list(loss.get_ydata())) == ([4.0], [0.5])
    drawn = {line.get_label(): list(line.get_ydata()) for line in below.lines[:3]}
    assert drawn == {
        "shapes right at a patch": [50, 75],
        "words right at a patch": [10, 25],
        "questions right in validation": [62.5],
    }


def test_the_command_draws_the_log_of_the_embedded_checkpoint(tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "training.png"
    assert main([str(LOG), "--out", str(out)]) == 0 and out.stat().st_size > 10_000
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert stages[-1]["validation"] > 0.9


def test_what_is_no_log_is_refused(tmp_path: Path, capsys) -> None:
    for text, message in (
        ('{"loss": 1}\n', "expected stage and, as numbers, step"),
        ("", "is empty"),
    ):
        (tmp_path / "log.jsonl").write_text(text)
        assert main([str(tmp_path / "log.jsonl"), "--out", str(tmp_path / "a.png")]) == 2
        assert message in capsys.readouterr().err
