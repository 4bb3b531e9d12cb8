"""Scoring any answers file again: what is printed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.eval.score import main

INSTRUCTION = "Answer the question using a single word or phrase."


def write_lines(path: Path, entries: list[dict]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


@pytest.fixture
def textvqa(tmp_path) -> Path:
    """A folder with two questions."""
    data = [
        {"image_id": "i1", "question": "What?", "answers": ["red"] * 2 + ["blue"] * 8},
        {"image_id": "i2", "question": "Who?", "answers": ["x"] * 10},
    ]
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": data}))
    return tmp_path


def textvqa_answers(folder: Path, *texts: str, ocr: str = "") -> Path:
    asked = zip((("i1", "What?"), ("i2", "Who?")), texts)
    return write_lines(
        folder / "n_64.jsonl",
        [
            {"question_id": i, "prompt": f"{q}\n{ocr}{INSTRUCTION}", "text": text}
            for (i, q), text in asked
        ],
    )


def run(benchmark: str, folder: Path, answers: Path, *more: str) -> int:
    return main(["--benchmark", benchmark, "--data", str(folder), str(answers), *more])


def test_headline_other_numbers_and_json(textvqa, capsys) -> None:
    answers = textvqa_answers(textvqa, "Red.", "y")  # 0.6 and 0
    assert run("textvqa-noocr", textvqa, answers) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == [
        f"TextVQA (no OCR): {answers}",
        "accuracy: 30.00 of 100",
        "prompts: without OCR tokens",
        "samples: 2",
        "missing: 0",
    ]
    result = json.loads(last)
    assert result["accuracy"] == pytest.approx(30)
    assert (result["metric"], result["benchmark"]) == ("accuracy", "textvqa-noocr")
    assert result["result_file"] == str(answers)


def test_a_score_of_its_own_scale(tmp_path, capsys) -> None:
    """MME: one task of 200 points; three of four answers and one of two pictures are right."""
    task = tmp_path / "MME_Benchmark_release_version" / "count"
    task.mkdir(parents=True)
    questions, answers = [], []
    for picture, said in (("a", ("Yes", "No")), ("b", ("Yes", "Yes"))):
        lines = []
        for number, truth, text in zip((1, 2), ("Yes", "No"), said):
            lines.append(f"Are there {number}? Please answer yes or no.\t{truth}\n")
            asked = f"Are there {number}?\n{INSTRUCTION}"
            name = f"count/{picture}.png"
            questions.append({"question_id": name, "image": name, "text": asked})
            answers.append({"question_id": name, "prompt": asked, "text": text})
        (task / f"{picture}.txt").write_text("".join(lines))
    write_lines(tmp_path / "llava_mme.jsonl", questions)
    assert run("mme", tmp_path, write_lines(tmp_path / "n_64.jsonl", answers)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "total: 125.00 of 200"
    assert "perception: 125.00" in lines
    assert not any(line.startswith(("cognition", "best", "tasks")) for line in lines)
    assert json.loads(lines[-1])["tasks"]["count"]["accuracy"] == 75


def test_missing_answers_are_refused_unless_allowed(textvqa, capsys) -> None:
    answers = textvqa_answers(textvqa, "blue")
    assert run("textvqa-noocr", textvqa, answers) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: scoring {answers} as TextVQA (no OCR): 1 of 2 ")
    assert "--allow-missing" in captured.err
    assert run("textvqa-noocr", textvqa, answers, "--allow-missing") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "accuracy: 100.00 of 100" and "missing: 1" in lines


def test_nothing_to_score_is_none(textvqa, capsys) -> None:
    answers = textvqa_answers(textvqa)
    assert run("textvqa", textvqa, answers, "--allow-missing") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "accuracy: none" and json.loads(lines[-1])["accuracy"] is None


def test_answers_to_another_benchmark_are_refused(textvqa, capsys) -> None:
    answers = textvqa_answers(textvqa, "a", "b", ocr="Reference OCR token: A\n")
    assert run("textvqa-noocr", textvqa, answers) == 2
    assert "prompts of these answers are with OCR tokens" in capsys.readouterr().err
    answers = write_lines(answers, [{"question_id": "i9", "prompt": "Q\nA", "text": "x"}])
    assert run("textvqa", textvqa, answers) == 2
    assert "answer to image i9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "line 1: expected a JSON object"), ('{"text": "x"}\n', "question_id is missing")],
)
def test_wrong_lines_are_named(textvqa, capsys, content, message) -> None:
    answers = textvqa / "n_64.jsonl"
    answers.write_text(content)
    assert run("textvqa", textvqa, answers) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("n_64.jsonl") == 1


def test_missing_files_are_named(textvqa, capsys) -> None:
    answers = textvqa_answers(textvqa, "a", "b")
    assert run("textvqa", textvqa, textvqa / "none.jsonl") == 2
    assert "none.jsonl not found" in capsys.readouterr().err
    assert run("textvqa", textvqa / "nowhere", answers) == 2
    assert "nowhere not found: expected the files of TextVQA" in capsys.readouterr().err
    assert run("gqa", textvqa, answers) == 2
    assert "testdev_balanced_questions.json" in capsys.readouterr().err


def test_a_record_says_what_was_answered(tmp_path, capsys) -> None:
    """The benchmark by its question file, the folder by where that lies."""
    folder = tmp_path / "textvqa"
    folder.mkdir()
    question = {"question_id": "i1", "image": "a.jpg", "text": f"What?\n{INSTRUCTION}"}
    file = write_lines(folder / "llava_textvqa_val_v051.jsonl", [question])
    data = [{"image_id": "i1", "question": "What?", "answers": ["red"] * 10}]
    (folder / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": data}))
    answers = textvqa_answers(tmp_path, "Red.")
    record = tmp_path / "n_64.run.json"
    record.write_text(json.dumps({"settings": {"question_file": str(file)}}))
    assert main([str(answers)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["benchmark"], result["accuracy"]) == ("textvqa-noocr", 100)
    record.write_text(json.dumps({"settings": {"question_file": "elsewhere/mine.jsonl"}}))
    assert main([str(answers)]) == 2
    assert "error: give --benchmark and --data: " in capsys.readouterr().err


def test_without_a_record_the_benchmark_must_be_given(textvqa, capsys) -> None:
    assert main([str(textvqa_answers(textvqa, "a", "b"))]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: give --benchmark and --data: ") and "no run record" in err


@pytest.mark.parametrize("flags", [["--benchmark", "vqa"], ["--bench", "gqa"]])
def test_wrong_flags_are_a_usage_error(flags, textvqa, capsys) -> None:
    answers = textvqa_answers(textvqa, "a", "b")
    with pytest.raises(SystemExit, match="2"):
        main([*flags, "--data", str(textvqa), str(answers)])
    assert "--benchmark" in capsys.readouterr().err


@pytest.mark.parametrize("end", ["", "\n\n", "\r\n"])
def test_lines_may_end_as_other_programs_end_them(textvqa, capsys, end) -> None:
    answers = textvqa_answers(textvqa, "Red.", "y")
    answers.write_bytes(
        (end or "\n").join(answers.read_text().splitlines()).encode() + end.encode()
    )
    assert run("textvqa-noocr", textvqa, answers) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["samples"] == 2
