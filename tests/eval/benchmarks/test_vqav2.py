"""VQAv2's accuracy, worked out by hand from the official rules, and the file for the server."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from llava.eval.benchmarks import vqav2
from llava.eval.benchmarks.vqav2 import BENCHMARK
from llava.eval.score import main

SCRIPT = Path(__file__).parents[3] / "scripts" / "convert_vqav2_for_submission.py"
INSTRUCTION = "Answer the question using a single word or phrase."


def entry(question_id: int, kind: str, question: str, references: list[str]) -> dict:
    return {
        "question_id": question_id,
        "image_id": question_id // 1000,
        "answer_type": kind,
        "question_type": question,
        "multiple_choice_answer": references[0],
        "answers": [
            {"answer": reference, "answer_confidence": "yes", "answer_id": i}
            for i, reference in enumerate(references, start=1)
        ],
    }


ENTRIES = [
    entry(262148000, "yes/no", "is the", ["yes"] * 7 + ["no"] * 3),
    entry(262148001, "number", "how many", ["2", "2", "Two"] + ["3"] * 7),
    entry(393225000, "other", "what", ["the red", "Red!"] + ["blue"] * 8),
    entry(393226000, "other", "what", ["the cat"] * 10),
]
# 1: seven equal references. 0.9: three, once number words are digits. 0.6: two, without article
# and mark. 0: LLaVA drops the article, which the official code leaves in identical references.
TEXTS = ["Yes.", "two", "red", "the cat"]


def answers() -> list[dict]:
    return [
        {"question_id": e["question_id"], "prompt": f"What?\n{INSTRUCTION}", "text": text}
        for e, text in zip(ENTRIES, TEXTS)
    ]


def write_lines(path: Path, entries: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def write_questions(path: Path, *ids: int | str) -> Path:
    lines = [{"question_id": i, "image": f"{i}.jpg", "text": f"What?\n{INSTRUCTION}"} for i in ids]
    return write_lines(path, lines)


@pytest.fixture
def folder(tmp_path):
    """The benchmark's folder."""
    (tmp_path / vqav2.ANNOTATIONS).write_text(json.dumps({"annotations": ENTRIES}))
    return tmp_path


def run(folder: Path, entries: list[dict], *more: str) -> int:
    path = write_lines(folder / "answers" / "n_64.jsonl", entries)
    return main(["--benchmark", "vqav2", "--data", str(folder), str(path), *more])


@pytest.mark.parametrize(
    ("text", "references", "expected"),
    [
        # n equal references: (n * min(1, (n - 1) / 3) + (10 - n) * min(1, n / 3)) / 10
        ("x", ["y"] * 10, 0),
        ("x", ["x"] + ["y"] * 9, 0.3),
        ("x", ["x"] * 2 + ["y"] * 8, 0.6),
        ("x", ["x"] * 3 + ["y"] * 7, 0.9),
        ("x", ["x"] * 4 + ["y"] * 6, 1),
        # identical references are compared as they are with what LLaVA uploads
        ("Yes", ["yes"] * 10, 1),
        ("yes", ["Yes"] * 10, 0),
        ("cat", ["the cat"] * 10, 0),
        ("two", ["two"] * 10, 0),
        # one other reference, and all lose articles, number words and marks
        ("cat", ["the cat"] * 9 + ["dog"], 1),
        ("two", ["two"] * 9 + ["3"], 1),
        ("1,000", ["1,000"] * 2 + ["1000"] * 2 + ["x"] * 6, 1),
        ("dont", ["don't"] * 3 + ["x"] * 7, 0.9),
        ("A", ["a"] * 3 + ["x"] * 7, 0.9),  # both become empty
        # what only LLaVA's conversion does: "men 's" and "redwhite" are uploaded
        ("men's", ["men's"] * 9 + ["x"], 0),
        ("red,white", ["red,white"] * 9 + ["x"], 0),
        ("red, white", ["red,white"] * 9 + ["x"], 1),
    ],
)
def test_accuracy(text, references, expected):
    assert vqav2.accuracy(text, references) == pytest.approx(expected)


def test_score(folder):
    result = BENCHMARK.score(folder, answers())
    assert (result["benchmark"], result["samples"], result["missing"]) == ("vqav2", 4, 0)
    assert result[BENCHMARK.metric] == pytest.approx(100 * (1 + 0.9 + 0.6 + 0) / 4)
    assert result["by_answer_type"] == {
        "number": {"accuracy": pytest.approx(90), "samples": 1},
        "other": {"accuracy": pytest.approx(30), "samples": 2},
        "yes/no": {"accuracy": pytest.approx(100), "samples": 1},
    }
    assert result["by_question_type"] == {
        "how many": {"accuracy": pytest.approx(90), "samples": 1},
        "is the": {"accuracy": pytest.approx(100), "samples": 1},
        "what": {"accuracy": pytest.approx(30), "samples": 2},
    }


def test_references_are_left_out_by_position_not_by_content(folder):
    """Without answer_id, equal references are equal objects; they are still ten."""
    bare = {**ENTRIES[0], "answers": [{"answer": a} for a in ["yes"] * 9 + ["no"]]}
    (folder / vqav2.ANNOTATIONS).write_text(json.dumps({"annotations": [bare]}))
    assert BENCHMARK.score(folder, answers()[:1])["accuracy"] == 100


def test_spaces_around_references_do_not_make_them_differ(folder):
    spaced = entry(262148000, "other", "what", ["the cat", " the\tcat\n"] * 5)
    (folder / vqav2.ANNOTATIONS).write_text(json.dumps({"annotations": [spaced]}))
    # All ten are "the cat", hence unchanged; if they counted as different, "cat" would be right.
    assert BENCHMARK.score(folder, [{**answers()[0], "text": "cat"}])["accuracy"] == 0


def test_command_line(folder, capsys):
    assert run(folder, answers()[::-1]) == 0
    title, *lines, last = capsys.readouterr().out.splitlines()
    assert title.startswith("VQAv2") and title.endswith("n_64.jsonl")
    assert lines == ["accuracy: 62.50 of 100", "samples: 4", "missing: 0"]
    assert json.loads(last)["accuracy"] == pytest.approx(62.5)


def test_missing_answers_are_named_unless_allowed(folder, capsys):
    assert run(folder, answers()[:2]) == 2
    err = capsys.readouterr().err
    assert "2 of 4 questions have no answer: 393225000; 393226000." in err
    assert run(folder, answers()[:2], "--allow-missing") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["samples"], result["missing"]) == (2, 2)
    assert result["accuracy"] == pytest.approx(95)
    assert run(folder, [], "--allow-missing") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"] is None


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([*answers(), answers()[0]], "two answers to question 262148000"),
        ([*answers(), {"question_id": 1, "text": "x"}], "answer to question 1,"),
        ([{"question_id": 262148000}], "text is missing"),
        (
            [{"question_id": 1.5, "text": "x"}],
            "question_id must be a string or an integer, got 1.5",
        ),
    ],
)
def test_wrong_answers_are_named(folder, capsys, entries, message):
    assert run(folder, entries) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("n_64.jsonl") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Expected a VQA annotation file"),
        ('{"questions": []}', "Expected a VQA annotation file"),
        (json.dumps({"annotations": [{"question_id": 1}]}), "Expected a VQA annotation file"),
        (json.dumps({"annotations": ENTRIES[:1] * 2}), "two entries for question 262148000"),
        (
            json.dumps({"annotations": [{**ENTRIES[0], "answers": [{"answer": "x"}] * 9}]}),
            "annotation 1: expected 10 answers",
        ),
        (
            json.dumps({"annotations": [{**ENTRIES[0], "answers": [{"answer": 2}] * 10}]}),
            "Expected a VQA annotation file",
        ),
    ],
)
def test_wrong_annotations_are_named(folder, capsys, content, message):
    (folder / vqav2.ANNOTATIONS).write_text(content)
    assert run(folder, answers()) == 2
    assert message in capsys.readouterr().err


def test_missing_files_are_named(folder, capsys):
    (folder / vqav2.ANNOTATIONS).unlink()
    assert run(folder, answers()) == 2
    assert "visualqa.org" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="v2_OpenEnded_mscoco_val2014_questions"):
        BENCHMARK.load_questions(folder)


def test_questions_are_in_llavas_format(folder):
    write_questions(folder / "llava_vqav2_mscoco_val2014.jsonl", 262148000, 262148001)
    questions = BENCHMARK.load_questions(folder, 2, 1)
    assert [question.question_id for question in questions] == [262148001]


# What a user of LLaVA has: the whole test file, the questions of test-dev, and answers to these.
SPLIT = "llava_vqav2_mscoco_test-dev2015"


@pytest.fixture
def server(tmp_path):
    write_questions(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", 3, 1, 2, 4)
    write_questions(tmp_path / f"{SPLIT}.jsonl", 1, 3)
    given = [{"question_id": 1, "text": "The U.S.A."}, {"question_id": 3, "text": "Two"}]
    write_lines(tmp_path / "answers" / SPLIT / "llava" / "merge.jsonl", given)
    return tmp_path


EXPECTED = [
    {"question_id": 3, "answer": "2"},
    {"question_id": 1, "answer": "usa"},
    {"question_id": 2, "answer": ""},
    {"question_id": 4, "answer": ""},
]


def convert(*arguments: str | Path) -> int:
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([str(argument) for argument in arguments])


def convert_split(server: Path, *more: str) -> int:
    return convert("--dir", server, "--ckpt", "llava", "--split", SPLIT, *more)


def test_submission_from_llavas_layout(server, capsys):
    assert convert_split(server) == 0
    summary = json.loads(capsys.readouterr().out)
    target = server / "answers_upload" / SPLIT / "llava.json"
    assert summary == {"questions": 4, "answered": 2, "unanswered": 2, "file": str(target)}
    assert json.loads(target.read_text()) == EXPECTED


def test_submission_from_named_files(server):
    source = server / "answers" / SPLIT / "llava" / "merge.jsonl"
    test_file = write_questions(server / "t.jsonl", 3, 1, 2, 4)
    assert convert("--src", source, "--test-file", test_file, "--dst", server / "out.json") == 0
    assert json.loads((server / "out.json").read_text()) == EXPECTED


def test_a_hole_in_the_split_is_not_submitted_unless_allowed(server, capsys):
    write_lines(
        server / "answers" / SPLIT / "llava" / "merge.jsonl", [{"question_id": 1, "text": "x"}]
    )
    assert convert_split(server) == 2
    assert "1 of 2 questions have no answer: 3." in capsys.readouterr().err
    assert not (server / "answers_upload").exists()
    assert convert_split(server, "--allow-missing") == 0
    assert json.loads(capsys.readouterr().out)["answered"] == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"question_id": 9, "text": "x"}], "answer to question 9"),
        ([{"question_id": 1, "text": "x"}] * 2, "two answers to question 1"),
        ([], "no answers to submit"),
    ],
)
def test_wrong_submissions_are_named(server, capsys, given, message):
    write_lines(server / "answers" / SPLIT / "llava" / "merge.jsonl", given)
    assert convert_split(server, "--allow-missing") == 2
    assert message in capsys.readouterr().err


def test_wrong_test_files_are_named(server, capsys):
    test_file = server / "llava_vqav2_mscoco_test2015.jsonl"
    test_file.write_text(test_file.read_text() * 2)
    assert convert_split(server) == 2
    assert "question ids repeat" in capsys.readouterr().err
    test_file.unlink()
    assert convert_split(server) == 2
    assert "eval.zip" in capsys.readouterr().err


def test_half_named_files_are_a_usage_error(server, capsys):
    with pytest.raises(SystemExit, match="2"):
        convert("--src", server / "x", "--ckpt", "llava")
    assert "--ckpt and --split, or --src, --test-file and --dst" in capsys.readouterr().err
