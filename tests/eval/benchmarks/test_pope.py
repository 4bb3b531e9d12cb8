"""POPE's join, score and command line, on a folder small enough to score by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.eval.benchmarks.pope import BENCHMARK, rates, says_yes
from llava.eval.eval_pope import main

from ..pope_files import (
    INSTRUCTION,
    Labels,
    counts,
    label,
    reply,
    write_labels,
    write_lines,
    write_questions,
)

SMALL: Labels = {
    "random": [label(1, "a dog", "yes"), label(1, "a cat", "no"), label(2, "a cat", "yes")],
    "popular": [label(1, "a dog", "yes", "imange"), label(1, "a car", "no")],
    "adversarial": [label(1, "a dog", "yes"), label(1, "a tie", "no")],
}
TEXTS = ["No, it is not.", "No", "Yes", "Yes", "No", "Yes", "no"]  # in the order of IDS


@pytest.fixture
def small(tmp_path) -> Path:
    write_labels(tmp_path, SMALL)
    write_questions(tmp_path, SMALL)
    return tmp_path


def answers_to(folder: Path) -> list[dict]:
    lines = (folder / "llava_pope_test.jsonl").read_text().splitlines()
    return reply([json.loads(line) for line in lines], TEXTS)


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no", False),
        ("No, there is none.", False),
        ("There is not, sorry", False),
        ("Yes. It is not hidden.", True),
        ("It is. No doubt", True),
        ("", True),
        ("NO", True),
        ("No\n", True),
        ("no!", True),
        ("nothing", True),
        ("x, no", False),
    ],
)
def test_answers_are_read_as_llava_reads_them(text, yes):
    assert says_yes(text) is yes


def test_rates():
    found = rates(tp=3, fp=1, tn=4, fn=2)
    assert found == {
        "accuracy": 70,
        "precision": 75,
        "recall": 60,
        "f1": pytest.approx(200 / 3),
        "yes_ratio": 40,
    }
    assert rates(tp=0, fp=0, tn=1, fn=1)["precision"] is None
    assert rates(tp=0, fp=0, tn=1, fn=1)["f1"] == 0
    assert rates(tp=0, fp=0, tn=5, fn=0)["f1"] is None
    assert set(rates(tp=0, fp=0, tn=0, fn=0).values()) == {None}


def test_score(small):
    score = BENCHMARK.score(small, answers_to(small))
    assert counts(score) == {
        "random": (1, 1, 0, 1, 50),
        "popular": (1, 0, 1, 0, 100),
        "adversarial": (0, 0, 1, 1, 0),
    }
    assert score["f1"] == pytest.approx(50)
    assert score["accuracy"] == pytest.approx((100 / 3 + 100 + 50) / 3)
    assert (score["benchmark"], score["samples"], score["missing"]) == ("pope", 7, 0)
    assert json.loads(json.dumps(score)) == score


def test_the_order_of_answers_does_not_count(small):
    answers = answers_to(small)
    assert BENCHMARK.score(small, answers[::-1]) == BENCHMARK.score(small, answers)


def test_repeated_ids_are_told_apart_by_line(small):
    path = small / "llava_pope_test.jsonl"
    questions = [json.loads(line) for line in path.read_text().splitlines()]
    expected = BENCHMARK.score(small, reply(questions, TEXTS))
    for question in questions[:4]:
        question["question_id"] = 1
    # Two lines of a question file may not be the same but for the category.
    questions[0]["text"] = questions[0]["text"].replace("Is", "is")
    write_lines(path, questions)
    answers = reply(questions, TEXTS)
    with pytest.raises(ValueError, match=r"question 1, an id that .* has 4 times: .*index"):
        BENCHMARK.score(small, answers)
    for index, answer in enumerate(answers):
        answer["metadata"] = {"index": index}
    assert BENCHMARK.score(small, answers[::-1]) == expected


def test_missing_answers_are_named_unless_allowed(small):
    answers = answers_to(small)
    with pytest.raises(ValueError, match=r"1 of 7 questions .*: question 10000003 \(line 5\)\. "):
        BENCHMARK.score(small, answers[:4] + answers[5:])
    score = BENCHMARK.score(small, answers[:4] + answers[5:], allow_missing=True)
    assert (score["samples"], score["missing"]) == (6, 1)
    assert counts(score)["random"] == (1, 1, 0, 0, 66.67)
    assert score["categories"]["random"]["missing"] == 1
    assert score["f1"] == pytest.approx((200 / 3 + 100 + 0) / 3)


def test_there_is_no_mean_without_a_category(small):
    score = BENCHMARK.score(small, answers_to(small)[:5], allow_missing=True)
    assert score["categories"]["popular"]["f1"] is None
    assert score["f1"] is None and score["accuracy"] is None
    assert BENCHMARK.score(small, [], allow_missing=True)["samples"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_id": 8}, "answer to question 8, which .* does not have"),
        ({"metadata": {"index": 1}}, "question 1 with metadata index 1, which .* does not have"),
        ({"prompt": f"Is there a cow in the image?{INSTRUCTION}"}, "a cow .* asks .* a dog"),
        ({"question_id": 2, "prompt": SMALL["adversarial"][1]["text"]}, "two answers to .*line 2"),
        ({"text": None}, "text must be a string, got None"),
    ],
)
def test_wrong_answers_are_named(small, change, message):
    first, *rest = answers_to(small)
    with pytest.raises(ValueError, match=message):
        BENCHMARK.score(small, [*rest, {**first, **change}])


def test_an_answer_without_its_fields_is_named(small):
    with pytest.raises(ValueError, match="an answer: prompt is missing"):
        BENCHMARK.score(small, [{"question_id": 1, "text": "Yes"}])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([label(9, "a dog", "yes")] * 3, "no label for 3 of the 3 random .*000001.jpg.*e3e3926"),
        (SMALL["random"][:2], "no label for 1 of the 3 .*000002.jpg, question 'is there a cat"),
        ([{**e, "image": "x.jpg"} for e in SMALL["random"][:2]], "no label for 3 of the 3"),
        ([*SMALL["random"], label(1, "a dog", "no", "imange")], "line 4: both yes and no"),
        (
            [*SMALL["random"], label(3, "a dog", "unsure")],
            "line 4: label must be yes or no, got 'unsure'",
        ),
        ([{"image": "x.jpg", "text": "Is there a dog?"}], "line 1: label is missing"),
    ],
)
def test_labels_that_are_not_the_questions_are_refused(small, labels, message):
    write_labels(small, {"random": labels})
    with pytest.raises(ValueError, match=message):
        BENCHMARK.score(small, answers_to(small))


def test_a_label_that_is_there_twice_and_a_blank_line_do_no_harm(small):
    expected = BENCHMARK.score(small, answers_to(small))
    write_labels(small, {"random": SMALL["random"] * 2})
    with (small / "coco" / "coco_pope_random.json").open("a") as file:
        file.write("\n")
    assert BENCHMARK.score(small, answers_to(small)) == expected


@pytest.mark.parametrize(
    ("replaced", "by", "message"),
    [
        ('"popular"', '"often"', "line 6: expected a category, .* got often"),
        ('"popular"', '"random"', "no question of the category popular"),
        ('"text"', '"question"', "line 1: text is missing"),
    ],
)
def test_wrong_questions_are_named(small, replaced, by, message):
    answers = answers_to(small)
    path = small / "llava_pope_test.jsonl"
    path.write_text(path.read_text().replace(replaced, by))
    with pytest.raises(ValueError, match=message):
        BENCHMARK.score(small, answers)


def test_the_questions_of_a_folder(small):
    assert (BENCHMARK.folder, BENCHMARK.images, BENCHMARK.metric) == ("pope", "val2014", "f1")
    chunk = BENCHMARK.load_questions(small, num_chunks=2, chunk_idx=1)
    assert [question.question_id for question in chunk] == [10000002, 10000003, 20000001, 20000002]


# ---- the command line


def run(folder: Path, answers: list[dict], *more: str, labels: str = "coco") -> int:
    path = folder / "answers.jsonl"
    write_lines(path, answers)
    flags = ["--annotation-dir", str(folder / labels), "--result-file", str(path)]
    return main([*flags, "--question-file", str(folder / "llava_pope_test.jsonl"), *more])


def test_the_command_prints_each_category_and_json(small, capsys):
    assert run(small, answers_to(small)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:10] == [
        "Category: random, # samples: 3",
        "TP\tFP\tTN\tFN",
        "1\t1\t0\t1",
        "Accuracy: 0.3333",
        "Precision: 0.5000",
        "Recall: 0.5000",
        "F1 score: 0.5000",
        "Yes ratio: 0.6667",
        "0.500, 0.333, 0.500, 0.500, 0.667",
        "=" * 36,
    ]
    assert "Precision: none" in lines[20:]
    assert lines[-2] == "Mean F1 score: 0.5000"
    result = json.loads(lines[-1])
    assert result.pop("result_file").endswith("answers.jsonl")
    assert result == BENCHMARK.score(small, answers_to(small))


def test_the_command_names_what_is_wrong(small, tmp_path, capsys):
    assert run(small, answers_to(small)[:6]) == 2
    assert "answers.jsonl: 1 of 7 questions have no answer" in capsys.readouterr().err
    assert run(small, answers_to(small)[:6], "--allow-missing") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["missing"] == 1
    files = ["--annotation-dir", str(small / "coco")]
    files += ["--question-file", str(small / "llava_pope_test.jsonl")]
    assert main([*files, "--result-file", str(tmp_path / "none.jsonl")]) == 2
    assert "model_vqa_loader" in capsys.readouterr().err
    assert run(small, answers_to(small), labels="none") == 2
    assert "coco_pope_random.json not found" in capsys.readouterr().err
    (small / "llava_pope_test.jsonl").unlink()
    assert run(small, []) == 2
    assert "llava_pope_test.jsonl not found" in capsys.readouterr().err
