"""MMBench's picture cells: every way to write them, and rows that take another row's picture."""

from __future__ import annotations

import base64
import csv
import io
import json
import pickle
from pathlib import Path

import pytest
from PIL import Image

from llava.eval import model_vqa_mmbench
from llava.eval.benchmarks.mmbench import read_questions
from llava.eval.run.subset import take

from ..stub import StubModel, command, read_answers

M = 1_000_000


def encoded(shade: int) -> str:
    """A picture 20 + shade wide."""
    target = io.BytesIO()
    Image.new("L", (20 + shade, 10), shade * 5).save(target, "PNG")
    return base64.b64encode(target.getvalue()).decode()


#: Of every number of padding characters, and with both characters that URLs write otherwise.
PICTURES = {shade: encoded(shade) for shade in range(40)}


def write(folder: Path, cells: dict[int, str]) -> Path:
    path = folder / "table.tsv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["index", "question", "A", "B", "answer", "image"])
        writer.writerows([index, "Red?", "yes", "no", "A", cell] for index, cell in cells.items())
    return path


def widths(questions) -> list[int | str]:
    """The width of each question's picture less 20, or why it cannot be read."""
    found: list[int | str] = []
    for question in questions:
        try:
            found.append(questions.open_image(question, Path("nowhere")).width - 20)
        except OSError as error:
            found.append(str(error))
    return found


def in_lines(text: str) -> str:
    return "\n" + "\r\n".join(text[at : at + 76] for at in range(0, len(text), 76)) + " \n"


FORMS = {
    "plain": str,
    "lines": in_lines,
    "a mark": lambda text: f"\ufeff{text}\u200b",
    "spaces": lambda text: f"  {text[:9]} {text[9:]}\t",
    "no padding": lambda text: text.rstrip("="),
    "too much padding": lambda text: text + "==",
    "data URL": lambda text: f"data:image/png;base64,{text}",
    "spelt in capitals": lambda text: f" DATA:image/PNG;charset=utf-8;BASE64, {in_lines(text)}",
    "safe in URLs": lambda text: text.replace("+", "-").replace("/", "_").rstrip("="),
    "JSON list": lambda text: json.dumps([text]),
    "Python list": lambda text: f" {[text]} ",
    "escaped": lambda text: f'["data:image/png;base64,{text}"]'.replace("/", "\\/"),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_a_picture_may_be_written_in_many_ways(form, tmp_path) -> None:
    ends = {len(text) - len(text.rstrip("=")) for text in PICTURES.values()}
    assert ends == {0, 1, 2} and {"+", "/"} <= set("".join(PICTURES.values()))
    path = write(tmp_path, {shade: form(text) for shade, text in PICTURES.items()})
    assert widths(read_questions(path, instruction=None)) == list(PICTURES)


ROTATED = {
    1: PICTURES[1],
    2: PICTURES[2],
    3: "1",  # not a rotation, and not a base row's either
    M + 1: "1",
    M + 2: " 002\n",
    2 * M + 1: f"{M + 1}",  # by way of another row
    2 * M + 2: '["2"]',
}


def test_a_row_may_take_the_picture_of_another(tmp_path) -> None:
    path = write(tmp_path, ROTATED)
    assert widths(read_questions(path, instruction=None)) == [1, 2, 1, 1, 2, 1, 2]
    # The row with the picture may be in another part, stand below, or not be asked.
    assert widths(read_questions(path, 2, 1, instruction=None)) == [1, 2, 1, 2]
    upside_down = write(tmp_path, dict(reversed(ROTATED.items())))
    questions = read_questions(upside_down, instruction=None)
    assert widths(questions) == [2, 1, 2, 1, 1, 2, 1]
    some = take(questions, 2, lambda question: question.question_id % M)
    assert widths(pickle.loads(pickle.dumps(some))) == [2, 2, 2]
    chain = write(tmp_path, {1: PICTURES[1], **{row: str(row - 1) for row in range(2, 1500)}})
    questions = read_questions(chain, instruction=None)
    assert questions.open_image(questions[len(questions) - 1], Path("nowhere")).width == 21


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({7: "9"}, "index 7 takes the picture of index 9, and there is no such row"),
        ({7: "9" * 20}, f"index {'9' * 20}, and there is no such row"),
        ({7: "9" * 5000}, "and there is no such row"),
        ({7: "7"}, "index 7 takes the picture of index 7, which has none of its own"),
        ({7: "8", 8: "7"}, "index 7 takes the picture of index 8, which has none of its own"),
        ({7: "8", 8: "9", 9: "8"}, "index 7 takes the picture of index 8, which has none"),
        ({7: "8", 8: "9"}, "index 7 takes the picture of index 8, which takes that of no row"),
        ({7: "8", 8: '["1", "1"]'}, "index 7 takes the picture of index 8, which has none of its"),
        ({7: "[]"}, "the picture cell of index 7 is an empty list"),
        ({7: '["9"]'}, "index 7 takes the picture of index 9"),
        ({7: "[1, 2"}, "cannot read the image of index 7"),
        ({7: "[[1], {}]"}, "cannot read image 1 of index 7"),
        ({7: "[" * 9999 + "]" * 9999}, "cannot read the image of index 7"),
        ({7: "no picture"}, "cannot read the image of index 7"),
        ({7: "data:image/png;base64"}, "cannot read the image of index 7"),
        ({7: PICTURES[1][:61]}, "cannot read the image of index 7"),
        ({7: f"[{{[]: 1}}, '{PICTURES[1]}']"}, "cannot read the image of index 7"),
    ],
    ids=range(17),
)
def test_a_picture_that_is_nowhere_is_named_and_others_are_read(cells, reason, tmp_path) -> None:
    path = write(tmp_path, {1: PICTURES[1], **cells, M + 1: "1"})
    first, bad, *_, last = widths(read_questions(path, instruction=None))
    assert (first, last) == (1, 1)
    assert reason in bad and "of index 7 in table.tsv" in bad and len(bad) < 400


def test_a_cell_may_hold_several_pictures(tmp_path, use) -> None:
    both = json.dumps([PICTURES[3], f"data:image/png;base64,{PICTURES[5]}"])
    path = write(tmp_path, {1: both, M + 1: "1", 2: f"['1', '{PICTURES[7]}']"})
    questions = read_questions(path, instruction=None)
    assert [len(question.images) for question in questions] == [2, 2, 3]
    (tmp_path / "images").mkdir()
    model = use(StubModel())
    argv = [*command(tmp_path), "--question-file", str(path)]
    assert model_vqa_mmbench.main(argv) == 0
    assert [call["image_sizes"] for call in model.calls] == [
        *[[(23, 10), (25, 10)]] * 2,
        [(23, 10), (25, 10), (27, 10)],
    ]
    assert [answer["text"].split(".")[1] for answer in read_answers(tmp_path)] == ["2", "2", "3"]
    assert read_answers(tmp_path)[0]["prompt"] == "Red?\nA. yes\nB. no"


def test_a_run_goes_on_and_a_repaired_reference_is_answered(tmp_path, use) -> None:
    use(StubModel())
    argv = [*command(tmp_path), "--question-file", str(write(tmp_path, {**ROTATED, 3: "9"}))]
    assert model_vqa_mmbench.main(argv) == 3
    (failed,) = (tmp_path / "out/answers.errors.jsonl").read_text().splitlines()
    assert json.loads(failed)["question_id"] == 3 and "there is no such row" in failed
    assert len(read_answers(tmp_path)) == 6
