"""MME's join and score, on a folder small enough to score by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llava.eval.benchmarks.mme import BENCHMARK, COGNITION, PERCEPTION, read_answer

INSTRUCTION = "\nAnswer the question using a single word or phrase."
RELEASE = "MME_Benchmark_release_version"
# id of the question, question, true answer, answer of the model
ROWS = [
    ("code_reasoning/0020.png", "Is a python code shown in the picture?", "Yes", "Yes"),
    ("code_reasoning/0020.png", "Is the output of the code '7'?", "No", "Seven."),
    ("existence/000000006040.jpg", "Is there a truck in this image?", "Yes", "Yes"),
    ("existence/000000006040.jpg", "Is there a banana in this image?", "No", "no, none"),
    ("existence/000000006471.jpg", "Is there a truck in this image?", "Yes", "No"),
    ("existence/000000006471.jpg", "Is there a cup in this image?", "No", "NO"),
    ("artwork/images/10002.jpg", "Is this titled  the café?", "Yes", "YES!"),
    ("artwork/images/10002.jpg", "Is this a fresco?", "No", "Not at all"),
]


def answers_to(rows: list[tuple]) -> list[dict]:
    return [
        {
            "question_id": name,
            "prompt": f"{text}{INSTRUCTION}",
            "text": said,
            "metadata": {"index": i},
        }
        for i, (name, text, _, said) in enumerate(rows)
    ]


def write_questions(folder: Path, rows: list[tuple]) -> Path:
    path = folder / "llava_mme.jsonl"
    entries = [
        {"question_id": name, "image": name, "text": text + INSTRUCTION, "category": "x"}
        for name, text, *_ in rows
    ]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def write_release(folder: Path, rows: list[tuple]) -> None:
    """Both layouts: with a folder `images`, and with true answers beside the pictures."""
    for name, text, truth, *_ in rows:
        task, *_, file = Path(name).parts
        apart = "images" in name
        picture = folder / RELEASE / name
        answers = folder / RELEASE / task / ("questions_answers_YN" if apart else "")
        for parent in (picture.parent, answers):
            parent.mkdir(parents=True, exist_ok=True)
        picture.touch()
        with (answers / file).with_suffix(".txt").open("a", encoding="utf-8") as lines:
            gap = "  " if "cup" in text else " "  # the release has one or two spaces here
            lines.write(
                f"{text.replace('titled  ', 'titled ')}{gap}Please answer yes or no.\t{truth}\n"
            )


@pytest.fixture
def folder(tmp_path) -> Path:
    write_questions(tmp_path, ROWS)
    write_release(tmp_path, ROWS)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes", True),
        ("yes.", True),
        (" YES", True),
        ("No", False),
        ("NO, it is", False),
        ("Not yes", False),
        ("know", False),
        ("noyes", False),
        ("nyes", True),
        ("It is. Yes", None),
        ("", None),
    ],
)
def test_answers_are_read_as_mme_reads_them(text, yes):
    assert read_answer(text) is yes


def test_score(folder):
    score = BENCHMARK.score(folder, answers_to(ROWS))
    assert list(score["tasks"]) == ["existence", "artwork", "code_reasoning"]
    assert score["tasks"]["existence"] == {
        "samples": 4,
        "missing": 0,
        "other": 0,
        "accuracy": 75,
        "accuracy_plus": 50,
        "score": 125,
    }
    assert score["tasks"]["artwork"]["score"] == 200
    code = score["tasks"]["code_reasoning"]
    assert (code["accuracy"], code["accuracy_plus"], code["other"]) == (50, 0, 1)
    assert (score["perception"], score["cognition"], score["total"]) == (325, 50, 375)
    assert (score["benchmark"], score["samples"], score["missing"]) == ("mme", 8, 0)
    assert (score["best"], score["unasked"]) == (600, 0)
    assert json.loads(json.dumps(score)) == score


def test_a_perfect_model_gets_the_best_score(folder):
    score = BENCHMARK.score(folder, answers_to([(*row[:3], row[2]) for row in ROWS]))
    assert score["total"] == score["best"] == 600


def test_what_the_real_benchmark_offers():
    assert (len(PERCEPTION), len(COGNITION), BENCHMARK.best) == (10, 4, 2800)
    assert (BENCHMARK.folder, BENCHMARK.images, BENCHMARK.metric) == ("MME", RELEASE, "total")


def test_questions_are_paired_by_picture_and_answers_in_any_order(folder):
    expected = BENCHMARK.score(folder, answers_to(ROWS))
    mixed = [ROWS[i] for i in (4, 0, 2, 6, 5, 3, 7, 1)]
    write_questions(folder, mixed)
    assert BENCHMARK.score(folder, answers_to(mixed)[::-1]) == expected


def test_answers_need_no_index_and_may_have_the_other_instruction(folder):
    answers = answers_to(ROWS)
    for answer in answers:
        del answer["metadata"]
        answer["prompt"] = answer["prompt"].replace(INSTRUCTION, " Please answer yes or no.")
    assert BENCHMARK.score(folder, answers) == BENCHMARK.score(folder, answers_to(ROWS))


def test_questions_of_some_tasks_only(folder):
    write_questions(folder, ROWS[:2])
    score = BENCHMARK.score(folder, answers_to(ROWS[:2]))
    assert (score["total"], score["perception"], score["cognition"]) == (50, None, 50)
    assert (score["best"], score["unasked"]) == (200, 6)


def test_missing_answers_are_named_unless_allowed(folder):
    answers = answers_to(ROWS)
    with pytest.raises(ValueError, match=r"1 of 8 .*: question 'existence/000000006040.jpg' "):
        BENCHMARK.score(folder, answers[:2] + answers[3:])
    score = BENCHMARK.score(folder, answers[:2] + answers[3:], allow_missing=True)
    assert (score["samples"], score["missing"]) == (7, 1)
    entry = score["tasks"]["existence"]
    assert (entry["samples"], entry["missing"]) == (3, 1)
    # The picture with one answer left, a right one, has no place in accuracy+.
    assert (entry["accuracy"], entry["accuracy_plus"]) == (pytest.approx(200 / 3), 0)


def test_there_is_no_total_without_a_task(folder):
    score = BENCHMARK.score(folder, answers_to(ROWS)[:6], allow_missing=True)
    assert score["tasks"]["artwork"]["score"] is None
    assert (score["total"], score["perception"], score["cognition"]) == (None, None, 50)
    assert BENCHMARK.score(folder, [], allow_missing=True)["samples"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_id": "OCR/0001.png"}, "answer to question 'OCR/0001.png' .* does not have"),
        ({"question_id": ROWS[2][0]}, "answer to question 'existence/.* does not have"),
        ({"prompt": "Is it?"}, "with the prompt 'Is it\\?', which .* does not have"),
        ({"prompt": ROWS[1][1]}, r"two answers to question 'code_reasoning/0020.png' \(line 2\)"),
        ({"text": None}, "text must be a string, got None"),
    ],
)
def test_wrong_answers_are_named(folder, change, message):
    first, *rest = answers_to(ROWS)
    with pytest.raises(ValueError, match=message):
        BENCHMARK.score(folder, [*rest, {**first, **change}])


def test_an_answer_without_its_fields_is_named(folder):
    with pytest.raises(ValueError, match="an answer: text is missing"):
        BENCHMARK.score(folder, [{"question_id": ROWS[0][0], "prompt": ROWS[0][1]}])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:7], "expected two questions about the picture 10002 of the task artwork, got 1"),
        ([*ROWS, ("artwork/10002.png", *ROWS[7][1:])], "ask the same about the same picture"),
        ([("food/1.jpg", "Is it?")], "question 'food/1.jpg' .* has no id of MME"),
        ([("17", "Is it?")], "question '17' .* has no id of MME"),
        ([(ROWS[0][0], "Is it?")], "has no answer for .*'Is it\\?' in 0020.txt of the task code_"),
        ([("artwork/images/3.jpg", ROWS[7][1])], "in 3.txt of the task artwork"),
    ],
)
def test_wrong_questions_are_named(folder, rows, message):
    write_questions(folder, rows)
    with pytest.raises(ValueError, match=message):
        BENCHMARK.score(folder, [])


def test_three_questions_about_a_picture_are_refused(folder):
    more = [("existence/000000006471.jpg", "Is it a bus?", "Yes", "Yes")]
    write_release(folder, more)
    write_questions(folder, ROWS + more)
    with pytest.raises(ValueError, match=r"000000006471 .* got 3: .*\(line 9\)"):
        BENCHMARK.score(folder, answers_to(ROWS + more))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Is it? Please answer yes or no. Yes", "line 3: expected a question, a tab and Yes or No"),
        ("Is it?\tMaybe", "line 3: expected a question, a tab and Yes or No"),
        ("Please answer yes or no.\tYes", "line 3: expected a question, a tab and Yes or No"),
        ("Is the output of the code '7'?\tYes", 'line 3: both yes and no to "Is the output'),
    ],
)
def test_wrong_true_answers_are_named(folder, line, message):
    with (folder / RELEASE / "code_reasoning" / "0020.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"0020\.txt, " + re.escape(message)):
        BENCHMARK.score(folder, answers_to(ROWS))


def test_a_byte_order_mark_windows_lines_and_hidden_files_do_no_harm(folder):
    expected = BENCHMARK.score(folder, answers_to(ROWS))
    path = folder / RELEASE / "code_reasoning" / "0020.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    path.with_name("._0020.txt").write_bytes(b"\x00\x05")
    assert BENCHMARK.score(folder, answers_to(ROWS)) == expected


def test_missing_files_are_named(folder):
    (folder / RELEASE / "existence").rename(folder / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"no answers for the task 'existence'"):
        BENCHMARK.score(folder, [])
    write_questions(folder, [row for row in ROWS if not row[0].startswith("existence")])
    assert BENCHMARK.score(folder, [], allow_missing=True)["best"] == 400
    (folder / RELEASE).rename(folder / "nowhere")
    with pytest.raises(FileNotFoundError, match=f"{RELEASE} not found.*BradyFU"):
        BENCHMARK.score(folder, [])


def test_the_questions_of_a_folder(folder):
    chunk = BENCHMARK.load_questions(folder, num_chunks=4, chunk_idx=3)
    assert [question.image for question in chunk] == ["artwork/images/10002.jpg"] * 2
