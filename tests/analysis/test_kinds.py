"""Right answers are counted by kind, beside the best single answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.analysis.kinds import count, main
from llava.analysis.question_metadata import Answered
from llava.eval.run.questions import Question

from ..eval.sweep_files import Asked, write_benchmark, write_run

ASKED = [
    Asked("a.jpg", 1, None, text="Red.", reference="red"),
    Asked("b.jpg", 1, None, text="blue", reference="red"),
    Asked("b.jpg", 1, None, text="blue", reference="blue"),
    Asked("c.jpg", 2, None, kind="beside", text="circle", reference="star"),
    Asked(None, 1, None, kind="fact", text="green", reference="green"),
    Asked("d.jpg", 2, None, kind="place", text="top", reference=None),
]
OPTIONS = ("A. red\nB. blue", "A. red\nB. blue\nC. green\nD. white\nAnswer with a letter.")
BLIND = [Asked(a.image, a.hops, None, a.kind, text="blue", reference=a.reference) for a in ASKED]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    write_benchmark(tmp_path / "data", "gqa", ASKED)
    write_run(tmp_path / "out/gqa/none.jsonl", ASKED)
    write_run(tmp_path / "out/gqa/no-image.jsonl", BLIND)
    return tmp_path


def _run(sweep: Path, *arguments: str) -> int:
    return main([str(sweep / "out"), "--data", str(sweep / "data"), *arguments])


def test_shares_by_kind_beside_the_best_single_answer(sweep: Path, capsys) -> None:
    assert _run(sweep, "--runs", "none", "no-image") == 0
    shown = capsys.readouterr().out.splitlines()
    head = "| benchmark |  | questions | best single answer | guessing | none | no-image |"
    assert shown[0] == head
    assert shown[2] == "| gqa | all | 4 | 75.0 |  | 50.0 | 25.0 |"
    found = json.loads(shown[-1])["benchmarks"]["gqa"]
    assert list(found) == ["all", "beside", "color"]
    assert found["color"] == {
        **{"questions": 3, "best single answer": 66.7, "guessing": None},
        **{"none": 66.7, "no-image": 33.3},
    }


def test_guessing_counts_the_options() -> None:
    asked = [Question(i, i, f"What?\n{lines}", "a.jpg") for i, lines in enumerate(OPTIONS)]
    answers = [Answered(q, {"text": "A"}, {"kind": "color", "answer": "A"}, "") for q in asked]
    shares = count({"none": answers}, "kind")["all"].shares()
    assert shares["guessing"] == 37.5  # a half and a quarter
    assert shares["best single answer"] == shares["none"] == 100.0


def test_any_field_of_the_metadata_groups(sweep: Path, capsys) -> None:
    assert _run(sweep, "--runs", "none", "--by", "hops") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["benchmarks"]["gqa"]
    assert {group: row["questions"] for group, row in found.items()} == {"all": 4, "1": 3, "2": 1}


def test_what_cannot_be_compared_is_refused(sweep: Path, capsys) -> None:
    assert _run(sweep, "--runs", "none", "--by", "mood") == 2
    assert "has no 'mood' in its metadata" in capsys.readouterr().err
    write_run(sweep / "out/gqa/short.jsonl", ASKED[:3])
    assert _run(sweep, "--runs", "none", "short") == 2
    assert "none and short answer different questions" in capsys.readouterr().err
    lines = (sweep / "out/gqa/none.jsonl").read_text().replace('"text": "Red."', '"text": null')
    (sweep / "out/gqa/none.jsonl").write_text(lines)
    assert _run(sweep, "--runs", "none") == 2
    assert "line 1: expected an answer with a text, got None" in capsys.readouterr().err
    assert _run(sweep, "--runs", "other") == 2
    assert "has no run 'other'" in capsys.readouterr().err


def test_the_code_is_named_with_its_mark(sweep: Path, capsys) -> None:
    record = sweep / "out/gqa/none.run.json"
    code = {"environment": {"git_commit": "0123abc", "git_dirty": True}}
    record.write_text(json.dumps(json.loads(record.read_text()) | code))
    assert _run(sweep, "--runs", "none", "no-image") == 0
    out = capsys.readouterr().out
    assert "Made with git_commit 0123abc (with uncommitted changes)." in out
    assert json.loads(out.splitlines()[-1])["git_commits"] == ["0123abc (with uncommitted changes)"]
