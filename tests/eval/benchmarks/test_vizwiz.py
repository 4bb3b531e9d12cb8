"""VizWiz: soft accuracy worked out by hand, the join with val.json, and the file for the server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.eval.benchmarks import vizwiz
from llava.eval.benchmarks.vizwiz import BENCHMARK

from ..programs import script, write_lines

UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
SHORT = "Answer the question using a single word or phrase."
convert = script("convert_vizwiz_for_submission")
write_val = script("write_val_questions")


def entry(number: int, question: str, kind: str, references: list[str]) -> dict:
    return {
        "image": f"VizWiz_val_{number:08d}.jpg",
        "question": question,
        "answers": [{"answer": text, "answer_confidence": "yes"} for text in references],
        "answer_type": kind,
        "answerable": int(kind != "unanswerable"),
    }


ENTRIES = [
    entry(0, "What is this?", "other", ["a can", "can"] + ["Can."] + ["soda"] * 7),
    entry(1, "What color?", "other", ["grey"] * 2 + ["gray"] * 8),
    entry(2, "Can you read  it?", "unanswerable", ["unanswerable"] * 4 + ["unsuitable"] * 6),
    entry(3, "How many?", "number", ["two"] + ["3"] * 9),
]
# Equal references of ten, once articles, capitals, full stops and number words are gone: 3 give
# 0.9, 2 give 0.6, 4 give 1, 1 gives 0.3.
TEXTS = ["The can", "grey", "Unanswerable", "2"]
ACCURACY = 100 * (0.9 + 0.6 + 1 + 0.3) / 4


@pytest.fixture
def folder(tmp_path) -> Path:
    """The benchmark's folder, its questions made from val.json."""
    (tmp_path / "val.json").write_text(json.dumps(ENTRIES))
    assert write_val("--benchmark", "vizwiz", "--dir", tmp_path) == 0
    return tmp_path


def prompt(number: int) -> str:
    return f"{ENTRIES[number]['question']}\n{UNANSWERABLE}\n{SHORT}"


def answers(*texts: str) -> list[dict]:
    return [
        {"question_id": i, "prompt": prompt(i), "text": text}
        for i, text in enumerate(texts or TEXTS)
    ]


def test_val_questions_are_asked_as_llava_asks_those_of_test(folder):
    questions = BENCHMARK.load_questions(folder)
    assert [question.question_id for question in questions] == [0, 1, 2, 3]
    assert questions[1].image == "VizWiz_val_00000001.jpg"
    assert questions[1].text == prompt(1)
    assert [q.question_id for q in BENCHMARK.load_questions(folder, 2, 1)] == [2, 3]


def test_score(folder):
    result = BENCHMARK.score(folder, answers()[::-1])
    assert (result["benchmark"], result["samples"], result["missing"]) == ("vizwiz", 4, 0)
    assert result[BENCHMARK.metric] == pytest.approx(ACCURACY)
    assert result["unanswerable"] == 1
    assert result["by_answer_type"] == {
        "number": {"accuracy": pytest.approx(30), "samples": 1},
        "other": {"accuracy": pytest.approx(75), "samples": 2},
        "unanswerable": {"accuracy": pytest.approx(100), "samples": 1},
    }


def test_an_answer_that_nobody_gave_scores_nothing(folder):
    result = BENCHMARK.score(folder, answers("bottle", "unanswerable", "no", ""))
    assert result["accuracy"] == 0 and result["unanswerable"] == 1


def test_missing_answers_are_named_unless_allowed(folder):
    with pytest.raises(ValueError, match=r"2 of 4 questions have no answer: 2; 3\."):
        BENCHMARK.score(folder, answers()[:2])
    result = BENCHMARK.score(folder, answers()[:2], allow_missing=True)
    assert (result["samples"], result["missing"]) == (2, 2)
    assert result["accuracy"] == pytest.approx(75)
    assert BENCHMARK.score(folder, [], allow_missing=True)["accuracy"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question_id": 7}, "answer to question 7,"),
        ({"question_id": 0}, "two answers to question 0"),
        ({"prompt": f"What?\n{UNANSWERABLE}\n{SHORT}"}, "answers to the other split"),
        ({"text": None}, "text must be a string, got None"),
    ],
)
def test_wrong_answers_are_named(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        BENCHMARK.score(folder, [*answers()[:3], {**answers()[3], **changes}])
    with pytest.raises(ValueError, match="an answer: prompt is missing"):
        BENCHMARK.score(folder, [{"question_id": 0, "text": "can"}], allow_missing=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Expected a VizWiz annotation file"),
        (json.dumps([{"image": "a.jpg", "question": "What?"}]), r"test\.json has no answers"),
        (json.dumps(ENTRIES[:1] * 2), "two entries for the image VizWiz_val_00000000"),
        (json.dumps([{**ENTRIES[0], "answers": ENTRIES[0]["answers"][:9]}]), "expected 10 answers"),
        (
            json.dumps([{**ENTRIES[0], "answers": [{"answer": 2}] * 10}]),
            "each with a text as `answer`",
        ),
        (json.dumps(ENTRIES[:3]), r"does not have question 3 \(line 4\)"),
        (json.dumps([*ENTRIES[:3], {**ENTRIES[3], "question": "How?"}]), "of the same split"),
    ],
)
def test_wrong_annotations_are_named(folder, content, message):
    (folder / "val.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        BENCHMARK.score(folder, answers())


def test_a_question_that_is_there_twice_is_named(folder):
    lines = (folder / "llava_val.jsonl").read_text().splitlines()
    (folder / "llava_val.jsonl").write_text(f"{lines[0]}\n" + lines[1].replace(": 1,", ": 0,"))
    with pytest.raises(ValueError, match="its id is that of another question"):
        BENCHMARK.score(folder, [], allow_missing=True)


def test_missing_files_say_what_makes_them_and_who_scores_the_test_split(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"write_val_questions\.py --benchmark vizwiz"):
        BENCHMARK.load_questions(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"vizwiz\.org.*convert_vizwiz_for_submission"):
        BENCHMARK.score(tmp_path, [])


# What a user of LLaVA has: questions of the test split, and answers to them.
def submit(folder: Path, entries: list[dict]) -> int:
    asked = [
        {"question_id": i, "image": f"VizWiz_test_{i}.jpg", "text": prompt(i)} for i in range(3)
    ]
    return convert(
        *("--annotation-file", write_lines(folder / "llava_test.jsonl", asked)),
        *("--result-file", write_lines(folder / "answers" / "llava.jsonl", entries)),
        *("--result-upload-file", folder / "answers_upload" / "llava.json"),
    )


def test_submission(tmp_path, capsys):
    given = answers("The U.S.A.", "half-full", "Unanswerable")
    assert submit(tmp_path, given[::-1]) == 0
    target = tmp_path / "answers_upload" / "llava.json"
    assert json.loads(capsys.readouterr().out) == {"answers": 3, "file": str(target)}
    assert json.loads(target.read_text()) == [
        {"image": "VizWiz_test_0.jpg", "answer": "usa"},
        {"image": "VizWiz_test_1.jpg", "answer": "half full"},
        {"image": "VizWiz_test_2.jpg", "answer": "unanswerable"},
    ]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (answers()[:2], "1 of 3 questions have no answer: 2."),
        (answers(), "answer to question 3,"),
        ([*answers()[:2], {**answers()[2], "prompt": "x"}], "answers to the other split"),
    ],
)
def test_nothing_is_submitted_that_the_server_would_refuse(tmp_path, capsys, entries, message):
    assert submit(tmp_path, entries) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "answers_upload").exists()


def test_missing_test_questions_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"LLaVA's eval\.zip"):
        vizwiz.write_submission(tmp_path / "u.json", tmp_path / "llava_test.jsonl", [])


def test_val_questions_of_vqav2(tmp_path, capsys):
    asked = [{"image_id": 42, "question": "Is it red?", "question_id": 42000}]
    source = tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json"
    source.write_text(json.dumps({"questions": asked}))
    assert write_val("--benchmark", "vqav2", "--dir", tmp_path) == 0
    assert json.loads((tmp_path / "llava_vqav2_mscoco_val2014.jsonl").read_text()) == {
        "question_id": 42000,
        "image": "COCO_val2014_000000000042.jpg",
        "text": f"Is it red?\n{SHORT}",
        "category": "default",
    }
    source.write_text("[]")
    assert write_val("--benchmark", "vqav2", "--dir", tmp_path) == 2
    assert "Expected the official file of this name" in capsys.readouterr().err
    assert write_val("--benchmark", "vizwiz", "--dir", tmp_path) == 2
    assert "val.json" in capsys.readouterr().err
