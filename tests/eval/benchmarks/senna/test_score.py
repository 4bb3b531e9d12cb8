"""Senna's scores on four answers, worked out by hand, and what is refused."""

from __future__ import annotations

import json

import pytest

from llava.eval import eval_senna, score
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.benchmarks.senna import benchmark
from llava.eval.benchmarks.senna.plan import Plan
from llava.eval.benchmarks.senna.score import score_plans
from tests import senna_files

ANSWERED = [
    (Plan("KEEP", "STRAIGHT"), "KEEP, STRAIGHT"),
    (Plan("STOP", "STRAIGHT"), "KEEP, STRAIGHT"),
    # Both words are there, in a sentence; and among others.
    (Plan("ACCELERATE", "LEFT_TURN"), "I ACCELERATE and take a LEFT_TURN."),
    (Plan("KEEP", "RIGHT_TURN"), "KEEP, ACCELERATE, STRAIGHT, RIGHT_TURN"),
]


def test_both_rules() -> None:
    result = score_plans(ANSWERED)
    assert result["samples"] == 4
    assert result["planning_accuracy"] == 75 and result["exact_accuracy"] == 25
    assert result["speed_accuracy"] == 25  # the first
    assert result["path_accuracy"] == 50  # the first two
    assert result["unreadable"] == 2


def test_by_class() -> None:
    assert score_plans(ANSWERED)["by_class"] == {
        "KEEP_RIGHT_TURN": {"planning_accuracy": 100, "exact_accuracy": 0, "samples": 1},
        "KEEP_STRAIGHT": {"planning_accuracy": 100, "exact_accuracy": 100, "samples": 1},
        "ACCELERATE_LEFT_TURN": {"planning_accuracy": 100, "exact_accuracy": 0, "samples": 1},
        "STOP_STRAIGHT": {"planning_accuracy": 0, "exact_accuracy": 0, "samples": 1},
    }


def test_f1_of_exactly_read_plans() -> None:
    f1 = score_plans(ANSWERED)["f1"]
    assert list(f1) == [
        *("KEEP", "ACCELERATE", "DECELERATE", "STOP"),
        *("RIGHT_TURN", "RIGHT_CHANGE", "LEFT_TURN", "LEFT_CHANGE", "STRAIGHT"),
    ]
    # KEEP: annotated in 1 and 4, read in 1 and 2.
    assert f1["KEEP"] == {"precision": 50, "recall": 50, "f1": 50, "samples": 2}
    assert f1["STRAIGHT"] == {"precision": 100, "recall": 100, "f1": 100, "samples": 2}
    assert f1["STOP"] == {"precision": None, "recall": 0, "f1": 0, "samples": 1}
    assert f1["LEFT_CHANGE"] == {"precision": None, "recall": None, "f1": None, "samples": 0}


def test_upstreams_f1() -> None:
    """KEEP occurs in 1, 2 and 4, the annotated speed in 1 and 4: precision 2/3, recall 1. That
    ACCELERATE occurs in 4 is a true positive, because the annotated KEEP does."""
    assert score_plans(ANSWERED)["upstream_f1"] == pytest.approx(
        {
            **{"KEEP": 80, "ACCELERATE": 100, "DECELERATE": 0, "STOP": 0},
            **{"RIGHT_TURN": 100, "LEFT_TURN": 100, "STRAIGHT": 100},
        }
    )


def test_nothing_answered_has_no_accuracy() -> None:
    result = score_plans([])
    assert result["planning_accuracy"] is result["exact_accuracy"] is None
    assert result["by_class"] == {}


@pytest.fixture
def folder(tmp_path):
    """Three questions about driving straight on: KEEP, STRAIGHT."""
    senna_files.write_questions(tmp_path)
    return tmp_path


def write_answers(folder, *texts: str):
    path = folder / "answers.jsonl"
    answers = ({"question_id": f"t{i}", "text": text} for i, text in enumerate(texts))
    path.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    return path


def test_the_programs_score_a_file(folder, capsys) -> None:
    answers = write_answers(folder, "KEEP, STRAIGHT", "STOP, STRAIGHT", "Surely KEEP, STRAIGHT")
    annotations = str(folder / "eval_plan_qa.json")
    command = ["--annotation-file", annotations, "--result-file", str(answers)]
    assert eval_senna.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert result["planning_accuracy"] == pytest.approx(200 / 3)
    assert result["exact_accuracy"] == pytest.approx(100 / 3) and result["missing"] == 0
    assert "Planning accuracy (both words occur, upstream's rule): 66.67%" in lines
    assert any(line.split() == ["KEEP_STRAIGHT", "3", "66.67", "33.33"] for line in lines)
    assert score.main(["--benchmark", "senna", "--data", str(folder), str(answers)]) == 0
    out = capsys.readouterr().out
    assert "planning_accuracy: 66.67 of 100" in out and "exact_accuracy: 33.33" in out


def test_missing_and_foreign_answers_are_named(folder, capsys) -> None:
    annotations = str(folder / "eval_plan_qa.json")
    command = ["--annotation-file", annotations, "--result-file"]
    few = str(write_answers(folder, "KEEP, STRAIGHT"))
    assert eval_senna.main([*command, few]) == 2
    assert "2 of 3 questions have no answer: t1; t2" in capsys.readouterr().err
    assert eval_senna.main([*command, few, "--allow-missing"]) == 0
    capsys.readouterr()
    many = str(write_answers(folder, *["KEEP, STRAIGHT"] * 4))
    assert eval_senna.main([*command, many]) == 2
    assert "t3" in capsys.readouterr().err


def test_it_is_a_benchmark_asked_as_upstream_asks() -> None:
    own = BENCHMARKS["senna"]
    assert own is benchmark.BENCHMARK
    assert (own.max_new_tokens, own.conv_mode) == (512, "llava_v1")
    others = {one.conv_mode for name, one in BENCHMARKS.items() if name != "senna"}
    assert others == {"vicuna_v1"}
