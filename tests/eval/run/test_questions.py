"""Question files: what is accepted, what is refused and how, and how they are split."""

from __future__ import annotations

import hashlib
import json
import pickle
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.eval.run.questions import Question, QuestionFile, chunk_bounds

GOOD = '{"question_id": 1, "image": "a.jpg", "text": "What?", "category": "default"}'


def write(folder, *lines: str | bytes):
    path = folder / "questions.jsonl"
    encoded = [line.encode() if isinstance(line, str) else line for line in lines]
    path.write_bytes(b"\n".join(encoded))
    return path


def test_reads_what_llava_writes(tmp_path):
    second = '{"question_id": "b/1.png", "text": "Zwei\\nGrüße\u2028?"}'
    path = write(tmp_path, GOOD, second, "")
    questions = QuestionFile(path)
    assert list(questions) == [
        Question(0, 1, "What?", "a.jpg"),
        Question(1, "b/1.png", "Zwei\nGrüße\u2028?", None),
    ]
    assert len(questions) == questions.total == 2
    assert questions.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(IndexError):
        questions[2]


def test_windows_files_read_the_same(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n")
    assert list(QuestionFile(path)) == [Question(0, 1, "What?", "a.jpg")]


def test_can_be_sent_to_a_worker_process(tmp_path):
    questions = QuestionFile(write(tmp_path, GOOD))
    assert list(pickle.loads(pickle.dumps(questions))) == list(questions)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question_id": 1, "text": ', "line 3 is not JSON"),
        (b'{"question_id": 1, "text": "\xff"}', "line 3 is not JSON"),
        ("[1, 2]", "expected an object with question_id, text, got [1, 2]"),
        ("7", "expected an object with question_id, text, got 7"),
        ('{"image": "a.jpg", "text": "What?"}', "question_id is missing (found image, text)"),
        ('{"question_id": 1, "image": "a.jpg"}', "text is missing"),
        ("{}", "question_id is missing (found nothing); text is missing"),
        (
            '{"question_id": null, "text": "What?"}',
            "question_id must be a string or an integer, got None",
        ),
        (
            '{"question_id": true, "text": "What?"}',
            "question_id must be a string or an integer, got True",
        ),
        (
            '{"question_id": 2.5, "text": "What?"}',
            "question_id must be a string or an integer, got 2.5",
        ),
        ('{"question_id": 1, "text": " "}', "text is empty"),
        ('{"question_id": 1, "text": ["What?"]}', "text must be a string, got ['What?']"),
        ('{"question_id": 1, "text": "What?", "image": 3}', "image must be a string, got 3"),
        ('{"question_id": 1, "text": "What?", "image": ""}', "image is empty, not a path"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
    path = write(tmp_path, GOOD, "", line, GOOD)
    with pytest.raises(ValueError) as error:
        QuestionFile(path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path}, line 3")
    assert str(error.value).endswith("correct or remove the line.")


def test_blank_lines_are_skipped_and_counted_as_lines(tmp_path, caplog):
    other = GOOD.replace("1,", "2,")
    questions = QuestionFile(write(tmp_path, "", GOOD, "  ", other))
    assert [question.index for question in questions] == [1, 3]
    assert [questions.position(line) for line in range(5)] == [None, 0, None, 1, None]
    assert "skipped 2 blank, line 1, 3." in caplog.text


def test_repeated_ids_are_normal_and_get_one_warning(tmp_path, caplog):
    lines = [GOOD.replace("What?", f"What {i}?") for i in range(4)]
    assert len(QuestionFile(write(tmp_path, *lines))) == 4
    assert [r.getMessage() for r in caplog.records if "1 distinct in 4" in r.getMessage()]
    assert len(caplog.records) == 1


def test_distinct_ids_get_no_warning(tmp_path, caplog):
    QuestionFile(write(tmp_path, GOOD, GOOD.replace("1,", '"1",')))
    assert not caplog.records


def test_the_same_question_twice_is_an_error(tmp_path):
    other = GOOD.replace("What?", "Who?")
    path = write(tmp_path, GOOD, other, GOOD.replace("default", "other category"))
    with pytest.raises(ValueError, match="lines 1 and 3 are the same question"):
        QuestionFile(path)


def test_a_file_without_questions_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no question"):
        QuestionFile(write(tmp_path, "", " "))
    with pytest.raises(FileNotFoundError, match="not found"):
        QuestionFile(tmp_path / "none.jsonl")


def test_image_tokens_in_many_questions_make_one_warning(tmp_path, caplog):
    lines = [json.dumps({"question_id": i, "text": f"<image>\nWhat {i}?"}) for i in range(7)]
    questions = QuestionFile(write(tmp_path, *lines))
    assert questions[0].model_text == "What 0?" and questions[0].text == "<image>\nWhat 0?"
    assert len(caplog.records) == 1 and "in 7: question 0 (line 1)" in caplog.text
    assert "and 2 more" in caplog.text


@given(st.text(alphabet="<image> x\n", max_size=60))
def test_no_image_token_ever_reaches_the_model(text):
    assert "<image>" not in Question(0, 1, text).model_text


@given(st.integers(0, 300), st.integers(1, 40))
def test_chunks_are_contiguous_disjoint_complete_and_even(total, num_chunks):
    bounds = [chunk_bounds(total, num_chunks, k) for k in range(num_chunks)]
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(total))
    sizes = [stop - start for start, stop in bounds]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("chunks", "index"), [(0, 0), (-1, 0), (3, 3), (3, -1)])
def test_a_wrong_chunk_is_an_error(chunks, index):
    with pytest.raises(ValueError, match="must be"):
        chunk_bounds(10, chunks, index)


def test_a_chunk_keeps_the_lines_of_the_whole_file(tmp_path):
    lines = [json.dumps({"question_id": i, "text": "What?"}) for i in range(7)]
    chunk = QuestionFile(write(tmp_path, *lines), num_chunks=3, chunk_idx=1)
    assert [question.index for question in chunk] == [2, 3] and chunk.total == 7
    assert chunk.position(3) == 1 and chunk.position(0) is None and chunk.position(6) is None


def test_memory_does_not_grow_with_the_text(tmp_path):
    line = json.dumps({"question_id": "%d", "text": "x" * 2000})
    path = write(tmp_path, *(line.replace("%d", str(i)) for i in range(4000)))
    tracemalloc.start()
    QuestionFile(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 10
