"""ScienceQA: what is asked, how answers are read and scored, and the programs around that."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from llava.eval import eval_science_qa, model_vqa_science
from llava.eval.benchmarks import scienceqa
from llava.eval.benchmarks.scienceqa import BENCHMARK, FAILED, parse_answer, read_questions

from ..stub import StubModel, command, read_answers, read_record

# Two records of the official llava_test_CQM-A.json, and two more of its form.
IMAGE = {
    "id": "158",
    "image": "158/image.png",
    "conversations": [
        {
            "from": "human",
            "value": "<image>\nWhich material is this path made of?\nA. plastic\nB. brick",
        },
        {"from": "gpt", "value": "B"},
    ],
}
TEXT = {
    "id": "163",
    "conversations": [
        {"from": "human", "value": "Which word does not rhyme?\nA. wife\nB. hide\nC. life"},
        {"from": "gpt", "value": "B"},
    ],
}
BEHIND = {
    "id": "7",
    "image": "7/image.png",
    "conversations": [
        {"from": "human", "value": "Is it?\nA. no\nB. yes\n<image>"},
        {"from": "gpt", "value": "A"},
    ],
}
LAST = {
    "id": "9",
    "conversations": [
        {"from": "human", "value": "And?\nA. 1\nB. 2\nC. 3\nD. 4"},
        {"from": "gpt", "value": "D"},
    ],
}
ENTRIES = [IMAGE, TEXT, BEHIND, LAST]
PROBLEMS = {
    name: {"choices": choices, "answer": answer, "image": image, "subject": subject, "grade": grade}
    for name, choices, answer, image, subject, grade in (
        ("158", ["plastic", "brick"], 1, "image.png", "natural science", "grade2"),
        ("163", ["wife", "hide", "life"], 1, None, "language science", "grade6"),
        ("7", ["no", "yes"], 0, "image.png", "natural science", "grade7"),
        ("9", ["1", "2", "3", "4"], 3, None, "natural science", "grade12"),
        ("other split", ["x", "y"], 0, None, None, None),
    )
}
SUFFIX = "\nAnswer with the option's letter from the given choices directly."
ASKED = [
    "Which material is this path made of?\nA. plastic\nB. brick" + SUFFIX,
    "Which word does not rhyme?\nA. wife\nB. hide\nC. life" + SUFFIX,
    "Is it?\nA. no\nB. yes" + SUFFIX,
    "And?\nA. 1\nB. 2\nC. 3\nD. 4" + SUFFIX,
]
# Right with image, right without, wrong with image (a choice it does not have), wrong without.
TEXTS = ["B", "B. hide", "C", "I do not know"]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "scienceqa"
    folder.mkdir()
    (folder / "llava_test_CQM-A.json").write_text(json.dumps(ENTRIES))
    (folder / "problems.json").write_text(json.dumps(PROBLEMS))
    splits = {"test": ["158", "163", "7", "9"], "val": ["other split"]}
    (folder / "pid_splits.json").write_text(json.dumps(splits))
    return folder


def answers(logs_image: bool = False) -> list[dict]:
    """With the image token of image questions, as it is logged, or without."""
    found = []
    for entry, asked, text in zip(ENTRIES, ASKED, TEXTS):
        token = "<image>\n" if logs_image and "image" in entry else ""
        found.append({"question_id": entry["id"], "prompt": token + asked, "text": text})
    return found


def test_questions_are_asked_as_llava_asks_them(folder):
    questions = BENCHMARK.load_questions(folder)
    assert [q.text for q in questions] == [q.model_text for q in questions] == ASKED
    assert [q.image for q in questions] == ["158/image.png", None, "7/image.png", None]
    assert [q.question_id for q in questions] == ["158", "163", "7", "9"]
    plain = read_questions(folder / scienceqa.QUESTION_FILE, instruction=None)
    assert [q.text + SUFFIX for q in plain] == ASKED
    assert plain.sha256 != questions.sha256


def test_chunks_keep_the_index_of_the_whole_file(folder):
    chunks = [BENCHMARK.load_questions(folder, 3, k) for k in range(3)]
    assert [[q.index for q in chunk] for chunk in chunks] == [[0], [1], [2, 3]]
    assert [chunks[2].position(i) for i in range(5)] == [None, None, 0, 1, None]
    assert chunks[2].total == 4
    with pytest.raises(IndexError):
        chunks[2][2]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("E", "E"),
        ("F", FAILED),
        ("b", FAILED),
        ("", FAILED),
        ("AB", FAILED),
        ("B. brick", "B"),
        ("B. ", "B"),
        ("B.", FAILED),
        ("B.brick", FAILED),
        ("B) brick", FAILED),
        ("F. brick", FAILED),
        ("I think. The answer is C.", "C"),
        ("The answer is C, of course", "C"),
        ("The answer is C", FAILED),  # nothing behind the letter
        ("The answer is Z.", "Z"),
        ("The answer is A. The answer is A.", FAILED),
        ("the answer is A.", FAILED),
    ],
)
def test_letters_are_read_as_the_official_scorer_reads_them(text, letter):
    assert parse_answer(text) == letter


@pytest.mark.parametrize("logs_image", [False, True])
def test_score(folder, logs_image):
    # With image: 158 right, 7 wrong. Without: 163 right, 9 wrong.
    # G1-6: 158 and 163, both right. G7-12: 7 and 9. Natural science: 158, 7 and 9, one right.
    assert BENCHMARK.score(folder, answers(logs_image)) == {
        "benchmark": "scienceqa",
        "samples": 4,
        "missing": 0,
        "correct": 2,
        "accuracy": 50.0,
        "img_samples": 2,
        "img_accuracy": 50.0,
        "failed": 1,
        "subjects": {
            "language science": {"accuracy": 100.0, "samples": 1},
            "natural science": {"accuracy": pytest.approx(100 / 3), "samples": 3},
        },
        "grades": {
            "G1-6": {"accuracy": 100.0, "samples": 2},
            "G7-12": {"accuracy": 0.0, "samples": 2},
        },
    }


def test_problems_without_subject_and_grade(folder):
    plain = {k: {n: v[n] for n in ("choices", "answer", "image")} for k, v in PROBLEMS.items()}
    (folder / "problems.json").write_text(json.dumps(plain))
    result = BENCHMARK.score(folder, answers())
    assert (result["accuracy"], result["subjects"], result["grades"]) == (50, {}, {})


def test_holes_are_refused_or_left_out_of_both_accuracies(folder):
    # Without 7, LLaVA's scorer would give 1 of 1 with image, but count 7 in the total.
    some = [answers()[i] for i in (0, 1, 3)]
    with pytest.raises(ValueError, match="1 of 4 questions have no answer: 7"):
        BENCHMARK.score(folder, some)
    result = BENCHMARK.score(folder, some, allow_missing=True)
    assert (result["samples"], result["missing"], result["img_samples"]) == (3, 1, 1)
    assert result["accuracy"] == pytest.approx(200 / 3) and result["img_accuracy"] == 100
    nothing = BENCHMARK.score(folder, answers()[1:2], allow_missing=True)
    assert (nothing["img_accuracy"], nothing["accuracy"]) == (None, 100)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([*answers(), answers()[1]], "two answers to question 163"),
        ([*answers(), {**answers()[1], "question_id": "other split"}], "question other split"),
        ([{"question_id": "9", "text": "A"}], "prompt is missing"),
        ([{**answers()[1], "prompt": "<image>\nWhich?"}], "163 was asked with an image"),
    ],
)
def test_wrong_answers_are_named(folder, entries, message):
    with pytest.raises(ValueError, match=message):
        BENCHMARK.score(folder, entries, allow_missing=True)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ({"answer": 2}, "problem '158': .* index into them, got 2 and 2"),
        ({"answer": "B"}, "problem '158': answer must be an integer, got B"),
        ({"choices": ["x"] * 6}, "2 to 5 of them"),
        ({"choices": None}, "problem '158': choices must be a list, got None"),
        ({"answer": 0}, "answer 'B' and image True in .*CQM-A.json, but 'A' and True"),
        ({"image": None}, "but 'B' and False"),
    ],
)
def test_wrong_problems_are_named(folder, problem, message):
    changed = {**PROBLEMS, "158": {**PROBLEMS["158"], **problem}}
    (folder / "problems.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=message):
        BENCHMARK.score(folder, answers())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "CQM-A.json is not JSON"),
        ('{"id": "1"}', "must hold a list"),
        ("[]", "holds no question"),
        ('[{"id": "1"}]', "entry 1: conversations is missing"),
        (
            '[{"id": "1", "conversations": [{"value": " "}]}]',
            "entry 1: expected a question in conversations",
        ),
        (json.dumps([TEXT, TEXT]), "entry 2: a second question '163'"),
        (json.dumps([{**IMAGE, "image": None}]), "'158' has <image> but no `image`"),
    ],
)
def test_wrong_question_files_are_named(folder, content, message):
    (folder / scienceqa.QUESTION_FILE).write_text(content)
    with pytest.raises(ValueError, match=message):
        BENCHMARK.load_questions(folder)


def test_missing_files_say_where_they_come_from(folder):
    (folder / "problems.json").unlink()
    with pytest.raises(FileNotFoundError, match="lupantech"):
        BENCHMARK.score(folder, answers())
    (folder / scienceqa.QUESTION_FILE).unlink()
    with pytest.raises(FileNotFoundError, match="LLaVA's eval"):
        BENCHMARK.load_questions(folder)


def test_the_question_file_is_not_needed_for_a_score(folder):
    (folder / scienceqa.QUESTION_FILE).unlink()
    assert BENCHMARK.score(folder, answers())["img_accuracy"] == 50


def test_an_unknown_split_is_named(folder):
    (folder / "pid_splits.json").write_text('{"val": []}')
    with pytest.raises(ValueError, match="split 'test', only val"):
        BENCHMARK.score(folder, answers())


def test_the_scoring_program(folder, tmp_path, capsys):
    result_file = tmp_path / "a.jsonl"
    result_file.write_text("".join(json.dumps(entry) + "\n" for entry in answers(True)))
    arguments = ["--base-dir", str(folder), "--result-file", str(result_file)]
    output, result = tmp_path / "out" / "o.json", tmp_path / "out" / "r.json"
    more = ["--output-file", str(output), "--output-result", str(result)]
    assert eval_science_qa.main([*arguments, *more]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Total: 4, Correct: 2, Accuracy: 50.00%, IMG-Accuracy: 50.00%"
    assert json.loads(lines[-1])["img_accuracy"] == 50
    written = json.loads(output.read_text())
    assert [entry["question_id"] for entry in written["correct"]] == ["158", "163"]
    assert written["incorrect"][0] == {
        "question_id": "7",
        "parsed_ans": "C",
        "ground_truth": "A",
        "question": "<image>\n" + ASKED[2],
        "pred": "C",
        "is_multimodal": True,
    }
    assert json.loads(result.read_text()) == {
        "acc": 50.0,
        "correct": 2,
        "count": 4,
        "results": {"158": 1, "163": 1, "7": -1, "9": -1},
        "outputs": dict(zip(("158", "163", "7", "9"), TEXTS)),
    }

    result_file.write_text("".join(json.dumps(entry) + "\n" for entry in answers()[1:2]))
    assert eval_science_qa.main(arguments) == 2
    assert "3 of 4 questions have no answer" in capsys.readouterr().err
    assert eval_science_qa.main([*arguments, "--allow-missing"]) == 0
    assert "Accuracy: 100.00%, IMG-Accuracy: none" in capsys.readouterr().out
    assert eval_science_qa.main([*arguments, "--split", "val"]) == 2
    assert "question 163" in capsys.readouterr().err


def answering(folder, *more: str) -> int:
    for name in ("158", "7"):
        (folder / "images" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 40)).save(folder / "images" / name / "image.png")
    file = str(folder / scienceqa.QUESTION_FILE)
    return model_vqa_science.main([*command(folder), "--question-file", file, *more])


def test_the_answering_program(folder, use):
    model = use(StubModel())
    assert answering(folder, "--single-pred-prompt", "--target-token-num", "64") == 0
    found = read_answers(folder)
    assert found[0]["prompt"] == f"<image>\n{ASKED[0]}" and found[1]["prompt"] == ASKED[1]
    # So LLaVA's own scorer, which goes by the logged prompt, sees two questions with an image.
    assert sum("<image>" in answer["prompt"] for answer in found) == 2
    assert not any("image_token_removed" in answer["metadata"] for answer in found)
    # The stub answers "<length>.<images>".
    assert [answer["text"].split(".")[1] for answer in found] == ["1", "0", "1", "0"]
    assert model.calls[0]["max_new_tokens"] == 1024
    assert model.calls[0]["pruner"].target_token_num == 64
    assert f"USER: {ASKED[1]} ASSISTANT:" in model.prompts[1]
    assert BENCHMARK.score(folder, found)["failed"] == 4


def test_answers_to_another_prompt_are_not_continued(folder, use, capsys):
    use(StubModel())
    assert answering(folder, "--single-pred-prompt") == 0
    digest = read_record(folder)["settings"]["question_sha256"]
    assert digest == BENCHMARK.load_questions(folder).sha256
    assert answering(folder) == 2
    assert "question_sha256" in capsys.readouterr().err


def test_a_text_only_question_has_no_image_to_open(folder):
    questions = BENCHMARK.load_questions(folder)
    with pytest.raises(ValueError, match="has no image"):
        questions.open_image(questions[1], folder)
    with pytest.raises(FileNotFoundError, match=r"158.image\.png"):
        questions.open_image(questions[0], folder)
