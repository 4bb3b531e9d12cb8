"""MM-Vet: the file for its grader, the score from the grader's file, and no score without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.eval import model_vqa
from llava.eval.benchmarks.mmvet import BENCHMARK
from llava.eval.eval_mmvet import main
from llava.eval.score import main as score_main

from ..programs import script, write_lines
from ..stub import StubModel, command, expected, read_answers, read_record, write_data

convert = script("convert_mmvet_for_eval")

QUESTIONS = [
    {"question_id": i, "image": f"v1_{i}.png", "text": text, "category": "conv"}
    for i, text in enumerate(["What is x?", "How many?", "Who is it?"])
]
TEXTS = ["x = -1\nand x = -5", "Two.", "A café owner"]
CAPABILITIES = {"v1_0": ["ocr", "math"], "v1_1": ["rec"], "v1_2": ["math", "ocr"]}
# Graded twice: totals of 100 * (0.5 + 1 + 0.3) / 3 = 60 and 100 * (0.7 + 0.2 + 0.3) / 3 = 40.
GRADES = {"v1_0": [0.5, 0.7], "v1_1": [1.0, 0.2], "v1_2": [0.3, 0.3]}


def answers() -> list[dict]:
    return [
        {"question_id": q["question_id"], "prompt": q["text"], "text": text}
        for q, text in zip(QUESTIONS, TEXTS)
    ]


@pytest.fixture
def folder(tmp_path) -> Path:
    write_lines(tmp_path / "llava-mm-vet.jsonl", QUESTIONS)
    write_lines(tmp_path / "answers" / "a.jsonl", answers())
    metadata = {key: {"question": "?", "capability": c} for key, c in CAPABILITIES.items()}
    (tmp_path / "mm-vet.json").write_text(json.dumps(metadata))
    return tmp_path


def write_grades(folder: Path, grades: dict[str, list]) -> Path:
    path = folder / "a_gpt-4-0613-grade-2runs.json"
    entries = {
        key: {"model": ["gpt-4-0613"] * 2, "content": [str(g) for g in scores], "score": scores}
        for key, scores in grades.items()
    }
    path.write_text(json.dumps(entries))
    return path


def test_questions(folder):
    questions = BENCHMARK.load_questions(folder)
    assert [(q.question_id, q.text) for q in questions] == [
        (q["question_id"], q["text"]) for q in QUESTIONS
    ]
    assert (BENCHMARK.folder, BENCHMARK.images) == ("mm-vet", "images")
    (folder / "llava-mm-vet.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"LLaVA's eval\.zip"):
        BENCHMARK.load_questions(folder)


def test_there_is_no_score_without_the_grader(folder, capsys):
    assert not BENCHMARK.scored_here
    path = folder / "answers" / "a.jsonl"
    assert score_main(["--benchmark", "mmvet", "--data", str(folder), str(path)]) == 2
    err = capsys.readouterr().err
    assert "graded by GPT-4" in err and "scripts/convert_mmvet_for_eval.py --src" in err
    assert "llava.eval.eval_mmvet --annotation-file" in err


def test_file_for_the_grader(folder, capsys):
    target = folder / "results" / "a.json"
    source = folder / "answers" / "a.jsonl"
    questions = folder / "llava-mm-vet.jsonl"
    assert convert("--src", source, "--dst", target, "--question-file", questions) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"answers": 3, "file": str(target)} and "graded by GPT-4" in err
    assert json.loads(target.read_text()) == {f"v1_{i}": text for i, text in enumerate(TEXTS)}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (answers()[:2], "1 of 3 questions have no answer: 2."),
        ([*answers(), answers()[0]], "two answers to question 0"),
        ([{**answers()[0], "question_id": 9}], "answer to question 9,"),
        ([], "no answers to grade"),
    ],
)
def test_wrong_answers_are_not_submitted(folder, capsys, entries, message):
    source = write_lines(folder / "b.jsonl", entries)
    questions = folder / "llava-mm-vet.jsonl"
    assert convert("--src", source, "--dst", folder / "o", "--question-file", questions) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "o").exists()


def grade(folder: Path, grades: dict[str, list], *more: str) -> int:
    files = ("--annotation-file", folder / "mm-vet.json", "--grade-file")
    return main([str(argument) for argument in (*files, write_grades(folder, grades), *more)])


def test_score_from_grades(folder, capsys):
    assert grade(folder, GRADES) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == [
        "Samples: 3, each graded 2 times",
        "Total: 50.00 (standard deviation 10.00)",
        "math: 45.00",
        "ocr: 45.00",
        "rec: 60.00",
    ]
    result = json.loads(last)
    assert result["total"] == pytest.approx(50) and result["missing"] == 0
    assert result["by_capability"]["math"] == {"accuracy": pytest.approx(45), "samples": 2}
    assert result["by_capabilities"] == {
        "math_ocr": {"accuracy": pytest.approx(45), "samples": 2},
        "rec": {"accuracy": pytest.approx(60), "samples": 1},
    }


@pytest.mark.parametrize(
    ("grades", "message"),
    [
        ({**GRADES, "v1_9": [1, 1]}, "grades of v1_9"),
        ({key: GRADES[key] for key in ("v1_0", "v1_1")}, "no answer: v1_2"),
        ({**GRADES, "v1_2": [0.3]}, "v1_2 was graded 1 times, other answers 2 times"),
        ({**GRADES, "v1_2": [0.3, 7]}, "grades from 0 to 1 were expected of v1_2"),
        ({**GRADES, "v1_2": [0.3, "x"]}, "v1_2, number 2: score must be a number, got x"),
        ({"v1_0": []}, "graded 0 times"),
        ({}, "has no grades"),
    ],
)
def test_wrong_grades_are_named(folder, capsys, grades, message):
    assert grade(folder, grades) == 2
    assert message in capsys.readouterr().err


def test_missing_grades_may_be_allowed(folder, capsys):
    assert grade(folder, {"v1_1": [1.0, 0.2]}, "--allow-missing") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["samples"], result["missing"]) == (1, 2)
    assert result["total"] == pytest.approx(60)


def test_the_evaluators_input_is_no_grade_file(folder, capsys):
    """Its name differs in the middle only."""
    wrong = folder / "results.json"
    wrong.write_text(json.dumps({"v1_0": "x = 1"}))
    annotations = str(folder / "mm-vet.json")
    assert main(["--annotation-file", annotations, "--grade-file", str(wrong)]) == 2
    assert "question v1_0: expected an object with score, got x = 1" in capsys.readouterr().err
    assert main(["--annotation-file", str(wrong), "--grade-file", str(wrong)]) == 2
    assert "Expected MM-Vet's mm-vet.json" in capsys.readouterr().err
    assert main(["--annotation-file", annotations, "--grade-file", str(folder / "none")]) == 2
    assert "Grade file" in capsys.readouterr().err


def test_program_has_room_for_long_answers(tmp_path, use):
    questions = write_data(tmp_path, 2)
    use(StubModel())
    assert model_vqa.main(command(tmp_path)) == 0
    got = [(a["metadata"]["index"], a["question_id"], a["prompt"], a["text"])
           for a in read_answers(tmp_path)]  # fmt: skip
    assert got == expected(questions)
    assert read_record(tmp_path)["settings"]["max_new_tokens"] == 1024
