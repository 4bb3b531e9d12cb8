"""scripts/convert_mmbench_for_submission.py: LLaVA's flags to files, and what it needs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from llava.eval.benchmarks.mmbench import MMBENCH

from .benchmarks.test_mmbench import TEXTS, write
from .programs import script, write_lines

convert = script("convert_mmbench_for_submission")
NAME = "llava-v1.5-7b"  # its dot is no ending


@pytest.fixture
def folder(tmp_path) -> Path:
    write(tmp_path / "mmbench_dev_20230712.tsv")
    answers = [
        {"question_id": q.question_id, "prompt": q.text, "text": text}
        for q, text in zip(MMBENCH.load_questions(tmp_path), TEXTS)
    ]
    write_lines(tmp_path / "answers" / f"{NAME}.jsonl", answers)
    return tmp_path


def run(folder: Path, experiment: str = NAME) -> int:
    return convert(
        *("--annotation-file", folder / "mmbench_dev_20230712.tsv"),
        *("--result-dir", folder / "answers", "--upload-dir", folder / "upload"),
        *("--experiment", experiment),
    )


def test_the_workbook_has_every_answer(folder, capsys):
    openpyxl = pytest.importorskip("openpyxl")
    assert run(folder) == 0
    target = folder / "upload" / f"{NAME}.xlsx"
    assert json.loads(capsys.readouterr().out) == {"answers": len(TEXTS), "file": str(target)}
    header, *rows = openpyxl.load_workbook(target).active.values
    column = header.index("prediction")
    assert [row[column] for row in rows] == TEXTS


def test_what_is_missing_is_named(folder, capsys, monkeypatch):
    assert run(folder, "other") == 2
    assert f"{folder / 'answers' / 'other.jsonl'} not found" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert run(folder) == 2
    assert "pip install openpyxl" in capsys.readouterr().err
    assert not (folder / "upload").exists()
