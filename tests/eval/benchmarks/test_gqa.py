"""GQA's score and predictions, on five questions worked out by hand from the official rules."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from llava.eval.benchmarks import gqa
from llava.eval.benchmarks.gqa import BENCHMARK
from llava.eval.score import main

SCRIPT = Path(__file__).parents[3] / "scripts" / "convert_gqa_for_eval.py"
INSTRUCTION = "Answer the question using a single word or phrase."


def entry(question: str, answer: str, types: str, operations: str, group: str | None) -> dict:
    structural, semantic = types.split()
    steps = [operation.split(": ") for operation in operations.split("; ")]
    return {
        "question": question,
        "answer": answer,
        "isBalanced": True,
        "imageId": "n1",
        "types": {"structural": structural, "semantic": semantic, "detailed": "x"},
        "semantic": [{"operation": o, "dependencies": [], "argument": a} for o, a in steps],
        "groups": {"global": group, "local": None},
    }


# The comments say how many steps remain without exist, query: name and choose name.
QUESTIONS = {
    "01": entry(  # 2
        "What color is the cat?", "black", "query attr", "select: cat (5); query: color", "color"
    ),
    "02": entry("Is there a dog?", "no", "verify obj", "select: dog (-); exist: ?", None),  # 1
    "03": entry(  # 2
        "Who is to the left of the man?",
        "boy",
        "query rel",
        "select: man (3); relate: person,to the left of,s (4); query: name",
        "person",
    ),
    "04": entry(  # 2
        "What color is the car?", "black", "query attr", "select: car (7); query: color", "color"
    ),
    "05": entry(  # 1
        "Is that a cat or a dog?", "cat", "choose cat", "select: this (8); choose name: cat", None
    ),
    "06": {
        **entry("Is it red?", "yes", "verify attr", "select: it (9)", None),
        "isBalanced": False,
    },
}
# Right are 01 and 05 without their full stops and 02 in lower case; articles are not removed.
TEXTS = {"01": "Black.", "02": "No", "03": "man", "04": "the black", "05": "Cat.."}


def answers(**texts: str) -> list[dict]:
    return [
        {"question_id": key, "prompt": f"{QUESTIONS[key]['question']}\n{INSTRUCTION}", "text": text}
        for key, text in (
            TEXTS | {key.removeprefix("q"): text for key, text in texts.items()}
        ).items()
    ]


def write_lines(path: Path, entries: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


@pytest.fixture
def folder(tmp_path):
    """The benchmark's folder."""
    (tmp_path / "data").mkdir()
    (tmp_path / gqa.ANNOTATIONS).write_text(json.dumps(QUESTIONS))
    return tmp_path


def run(folder: Path, entries: list[dict], *more: str) -> int:
    path = write_lines(folder / "answers" / "n_64.jsonl", entries)
    return main(["--benchmark", "gqa", "--data", str(folder), str(path), *more])


def group(accuracy: float, samples: int) -> dict:
    return {"accuracy": pytest.approx(accuracy), "samples": samples}


def test_score(folder):
    result = BENCHMARK.score(folder, answers())
    assert (result["benchmark"], result["samples"], result["missing"]) == ("gqa", 5, 0)
    assert result[BENCHMARK.metric] == pytest.approx(60)  # 3 of 5
    assert result["binary"] == 100  # 02 and 05, all that is not query
    assert result["open"] == pytest.approx(100 / 3)  # 01 of 01, 03, 04
    assert result["by_structural_type"] == {
        "choose": group(100, 1),
        "query": group(100 / 3, 3),
        "verify": group(100, 1),
    }
    assert result["by_semantic_type"] == {
        "attr": group(50, 2),
        "cat": group(100, 1),
        "obj": group(100, 1),
        "rel": group(0, 1),
    }
    assert result["by_steps"] == {"1": group(100, 2), "2": group(100 / 3, 3)}
    assert result["by_words"] == {
        "4": group(100, 1),
        "5": group(50, 2),
        "7": group(100, 1),
        "8": group(0, 1),
    }
    # color: black is annotated twice, predicted once, (1 - 2)^2 / 2 = 0.5, for 2 questions;
    # person: boy is annotated once, never predicted, (0 - 1)^2 / 1 = 1, for 1 question.
    assert result["distribution"] == pytest.approx((0.5 * 2 + 1 * 1) / 3 / 100)


def test_what_the_release_has_no_files_for_is_none_with_a_reason(folder):
    result = BENCHMARK.score(folder, answers())
    names = ("consistency", "validity", "plausibility", "grounding")
    assert all(result[name] is None for name in names)
    assert sorted(result["notes"]) == sorted(names)
    assert "choices.json" in result["notes"]["validity"]


def test_a_perfect_model_gets_the_best_score(folder):
    perfect = {f"q{key}": QUESTIONS[key]["answer"] for key in TEXTS}
    result = BENCHMARK.score(folder, answers(**perfect))
    assert (result["accuracy"], result["distribution"]) == (BENCHMARK.best, 0)


def test_lengths_are_ordered_as_numbers():
    annotations = {
        str(n): gqa.Annotation("x", "query", "obj", steps=n, words=n, group=None) for n in (10, 9)
    }
    result = gqa.score_answers(annotations, [{"question_id": i, "text": "x"} for i in (10, 9)])
    assert list(result["by_words"]) == list(result["by_steps"]) == ["9", "10"]
    assert result["distribution"] is None and result["binary"] is None


@pytest.mark.parametrize(
    ("text", "prediction"),
    [("Yes.", "yes"), ("T-Shirt", "t-shirt"), ("a.m..", "a.m"), (". x", ". x"), ("two ", "two ")],
)
def test_prediction(text, prediction):
    assert gqa.predict(text) == prediction


def test_missing_answers_are_named_unless_allowed(folder, capsys):
    assert run(folder, answers()[:4]) == 2
    assert "1 of 5 questions have no answer: 05." in capsys.readouterr().err
    assert run(folder, answers()[:4], "--allow-missing") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["samples"], result["missing"], result["accuracy"]) == (4, 1, 50)
    assert run(folder, [], "--allow-missing") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[1:] == ["accuracy: none", "samples: 0", "missing: 5"]
    assert json.loads(last)["binary"] is json.loads(last)["open"] is None


def test_command_line(folder, capsys):
    assert run(folder, answers()[::-1]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("GQA") and lines[0].endswith("n_64.jsonl")
    assert lines[1:3] == ["accuracy: 60.00 of 100", "samples: 5"]
    assert {"binary: 100.00", "open: 33.33"} <= set(lines)
    assert json.loads(last)["by_steps"]["1"] == {"accuracy": 100.0, "samples": 2}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([*answers(), answers()[0]], "two answers to question 01"),
        ([*answers(), {"question_id": "99", "text": "x"}], "answer to question 99"),
        ([*answers(), {"question_id": "06", "text": "x"}], "answer to question 06"),
        ([{"question_id": "01"}], "text is missing"),
        ([{"question_id": "01", "text": None}], "text must be a string, got None"),
    ],
)
def test_wrong_answers_are_named(folder, capsys, entries, message):
    assert run(folder, entries) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("n_64.jsonl") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Expected a GQA question file"),
        ("[]", "Expected a GQA question file"),
        (json.dumps({"1": {"question": "q", "isBalanced": True}}), "challenge files have no"),
        (
            json.dumps({"1": {**QUESTIONS["01"], "answer": None}}),
            "answer must be a string, got None",
        ),
        (json.dumps({"6": QUESTIONS["06"]}), "no balanced question"),
    ],
)
def test_wrong_annotations_are_named(folder, capsys, content, message):
    (folder / gqa.ANNOTATIONS).write_text(content)
    assert run(folder, answers()) == 2
    assert message in capsys.readouterr().err


def test_missing_files_are_named(folder, capsys):
    absent, command = str(folder / "none"), ["--benchmark", "gqa", "--data", str(folder)]
    assert main([*command, absent]) == 2
    assert "model_vqa_loader" in capsys.readouterr().err
    (folder / gqa.ANNOTATIONS).unlink()
    assert run(folder, answers()) == 2
    assert "gqadataset.org" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=r"eval\.zip"):
        BENCHMARK.load_questions(folder)


def test_questions_are_llavas(folder):
    lines = [
        {"question_id": key, "image": "n1.jpg", "text": f"Q {key}?\n{INSTRUCTION}"} for key in TEXTS
    ]
    write_lines(folder / "llava_gqa_testdev_balanced.jsonl", lines)
    questions = BENCHMARK.load_questions(folder)
    assert [question.question_id for question in questions] == list(TEXTS)
    assert len(BENCHMARK.load_questions(folder, 2, 0)) == 2


def convert(*arguments: str | Path) -> int:
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([str(argument) for argument in arguments])


def test_conversion_for_the_official_program(tmp_path, capsys):
    source = write_lines(tmp_path / "merge.jsonl", answers())
    target = tmp_path / "new" / "testdev_balanced_predictions.json"
    assert convert("--src", source, "--dst", target) == 0
    assert json.loads(capsys.readouterr().out)["predictions"] == 5
    assert json.loads(target.read_text()) == [
        {"questionId": "01", "prediction": "black"},
        {"questionId": "02", "prediction": "no"},
        {"questionId": "03", "prediction": "man"},
        {"questionId": "04", "prediction": "the black"},
        {"questionId": "05", "prediction": "cat"},
    ]


def test_conversion_of_wrong_answers_writes_nothing(tmp_path, capsys):
    source = write_lines(tmp_path / "merge.jsonl", [*answers(), answers()[2]])
    assert convert("--src", source, "--dst", tmp_path / "out.json") == 2
    assert "two answers to question 03" in capsys.readouterr().err
    assert convert("--src", tmp_path / "none", "--dst", tmp_path / "out.json") == 2
    assert not (tmp_path / "out.json").exists()
