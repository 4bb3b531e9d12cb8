"""MMBench: what is asked, circular and vanilla accuracy, the submission and the program."""

from __future__ import annotations

import base64
import csv
import io
import json
import pickle
import sys

import pytest
from PIL import Image

from llava.analysis.question_metadata import read_answered
from llava.eval import model_vqa_mmbench
from llava.eval.benchmarks.mmbench import (
    MMBENCH,
    MMBENCH_CN,
    parse_letter,
    read_questions,
    write_submission,
)

from ..stub import StubModel, command, read_answers, read_record

COLUMNS = "index question hint A B C D answer category image source l2-category comment split"
SUFFIX = "\nAnswer with the option's letter from the given choices directly."
SUFFIX_CN = "\n请直接回答选项字母。"
M = 1_000_000

# (index, question, hint, options, answer, category, l2-category); rows are rotations of the options
FOUR = ("Where?", "Two\nlines", ["n", "e", "s", "w"])
THREE = ('Say "when"?', "", ["now", "soon", "nan"])
TWO = ("Is it red?", "nan", ["yes", "no"])
ROWS = [
    (1, *FOUR, "C", "place", "perception"),
    (2, *THREE[:2], ["a", "b", "c"], "A", "time", "reasoning"),
    (3, *TWO, "A", "colour", "perception"),
    (M + 1, *FOUR[:2], ["e", "s", "w", "n"], "B", "place", "perception"),
    (M + 2, *THREE[:2], ["b", "c", "a"], "C", "time", "reasoning"),
    (M + 3, *TWO[:2], ["no", "yes"], "B", "colour", "perception"),
    (2 * M + 1, *FOUR[:2], ["s", "w", "n", "e"], "A", "place", "perception"),
    (2 * M + 2, *THREE[:2], ["c", "a", "b"], "B", "time", "reasoning"),
    (3 * M + 1, *FOUR[:2], ["w", "n", "e", "s"], "D", "place", "perception"),
]
# Right are: 1 in all four rows, 2 in rows 0 and 2 of three, 3 in row 1 of two.
TEXTS = ["C", "A.", "B", "(B) s", "A", "B", "A: s", "B", "D"]


def picture(shade: int) -> str:
    target = io.BytesIO()
    Image.new("L", (20 + shade, 10), shade).save(target, "PNG")
    return base64.b64encode(target.getvalue()).decode()


def cells(row) -> dict[str, str]:
    index, question, hint, options, answer, category, l2 = row
    return {
        "index": str(index),
        "question": question,
        "hint": hint,
        **dict(zip("ABCD", [*options, "", "", ""])),
        "answer": answer,
        "category": category,
        "image": picture(int(float(index)) % M),
        "source": "s",
        "l2-category": l2,
        "comment": "",
        "split": "dev",
    }


def write(path, rows=ROWS, without: str = ""):
    columns = [name for name in COLUMNS.split() if name not in without.split()]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(map(cells, rows))
    return path


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "mmbench_dev_20230712.tsv")
    return tmp_path


def answers(folder, texts=TEXTS, older: bool = False) -> list[dict]:
    """As LLaVA and this package log them, or as older versions of it: with the instruction."""
    questions = MMBENCH.load_questions(folder)
    return [
        {
            "question_id": q.question_id,
            "prompt": q.text if older else q.prompt,
            "text": text,
            **({} if older else {"round_id": 0, "options": list(q.options)}),
        }
        for q, text in zip(questions, texts)
    ]


def test_questions_are_asked_as_llava_asks_them(folder):
    questions = MMBENCH.load_questions(folder)
    assert [q.question_id for q in questions] == [row[0] for row in ROWS]
    assert [q.index for q in questions] == list(range(9))
    assert questions[0].text == "Two\nlines\nWhere?\nA. n\nB. e\nC. s\nD. w" + SUFFIX
    assert questions[1].text == 'Say "when"?\nA. a\nB. b\nC. c' + SUFFIX
    assert questions[2].text == "Is it red?\nA. yes\nB. no" + SUFFIX  # a hint "nan" is none
    assert questions[5].text == "Is it red?\nA. no\nB. yes" + SUFFIX
    write(folder / "mmbench_dev_cn_20231003.tsv", [(5, "红?", "提示", ["是", "不"], "A", "x", "y")])
    assert MMBENCH_CN.load_questions(folder)[0].text == "提示\n红?\nA. 是\nB. 不" + SUFFIX_CN
    assert (MMBENCH.folder, MMBENCH_CN.folder) == ("mmbench", "mmbench_cn")


def test_options_end_at_the_first_empty_one(tmp_path):
    rows = [
        (1, "Q", "None", ["a", "", "c"], "A", "x", "y"),
        (2, "Q", "NA", ["a", "nan"], "A", "x", "y"),
    ]
    path = write(tmp_path / "a.tsv", rows)
    assert [q.text for q in read_questions(path, instruction=None)] == ["Q\nA. a"] * 2
    # a release without hint, C and D, and with Windows line ends and a byte order mark
    text = write(path, rows[:1], without="hint C D comment").read_text().replace("\n", "\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [q.text for q in read_questions(path, instruction=None)] == ["Q\nA. a"]


def test_every_question_opens_its_own_image(folder):
    for chunk in range(2):
        questions = MMBENCH.load_questions(folder, 2, chunk)
        questions = pickle.loads(pickle.dumps(questions))  # as worker processes get them
        for question in questions:
            image = questions.open_image(question, folder / "nowhere")
            shade = question.question_id % M
            assert (image.mode, image.size) == ("RGB", (20 + shade, 10))
            assert image.getpixel((0, 0)) == (shade,) * 3
    assert [q.index for q in questions] == [4, 5, 6, 7, 8]
    with pytest.raises(ValueError, match="not in this part"):
        questions.open_image(MMBENCH.load_questions(folder)[0], folder)


def test_a_damaged_image_is_named(folder):
    path = folder / "mmbench_dev_20230712.tsv"
    path.write_text(path.read_text().replace(picture(3), picture(3)[:60]))
    questions = MMBENCH.load_questions(folder)
    with pytest.raises(OSError, match="cannot read the image of index 3 in mmbench_dev"):
        questions.open_image(questions[2], folder)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *[("A", "A"), (" D\n", "D"), ("B.", "B"), ("B. no", "B"), ("(C) s", "C"), ("C: s", "C")],
        *[("C, s", "C"), ("A。", "A"), ("（B）", "B"), ("A\nbecause", "A"), ("(A", "A")],
        *[("", None), ("a", None), ("E", None), ("A dog", None), ("AB", None), ("s", None)],
        *[("The answer is A.", None), ("答案是A", None), ("D4", None)],
        # more than one letter
        *[("A, B", None), ("A. B", None), ("A\nB", None), ("(A) (B)", None), ("A/B", None)],
        *[
            ("A and B", None),
            ("A. or B", None),
            ("B,A", None),
            ("A、B", None),
            ("C. x\nD. y", None),
        ],
        *[("A, A", "A"), ("B. A dog", "B"), ("B: A dog or A", None), ("C. CD4, D2", "C")],
    ],
)
def test_letters(text, letter):
    assert parse_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *[("A. Sample B", "A"), ("A: sample b.", "A"), ("(B) Sample A", "B"), ("C. A and B", "C")],
        *[("A. Sample A", "A"), ("A. Sample B or C", None), ("B. Sample B", "B"), ("C. B", None)],
    ],
)
def test_a_letter_in_the_text_of_the_option_is_no_second_one(text, letter):
    """Many options of MMBench name a letter, and a model may repeat its option."""
    assert parse_letter(text, ["Sample B", "Sample A", "A and B"]) == letter


@pytest.mark.parametrize("older", [True, False])
def test_score(folder, older):
    # Circular: only question 1 has all rows right, 1 of 3. Vanilla: base rows of 1 and 2, 2 of 3.
    # Perception has questions 1 and 3, reasoning 2.
    assert MMBENCH.score(folder, answers(folder, older=older)) == {
        "benchmark": "mmbench",
        "samples": 9,
        "missing": 0,
        "questions": 3,
        "circular": pytest.approx(100 / 3),
        "vanilla": pytest.approx(200 / 3),
        "rotations": {"4": 1, "3": 1, "2": 1},
        "unparsed": 0,
        "unparsed_share": 0.0,
        "categories": {
            "colour": {"questions": 1, "circular": 0.0, "vanilla": 0.0},
            "place": {"questions": 1, "circular": 100.0, "vanilla": 100.0},
            "time": {"questions": 1, "circular": 0.0, "vanilla": 100.0},
        },
        "l2_categories": {
            "perception": {"questions": 2, "circular": 50.0, "vanilla": 50.0},
            "reasoning": {"questions": 1, "circular": 0.0, "vanilla": 100.0},
        },
    }


def test_one_wrong_rotation_loses_a_question_but_not_its_base_row(folder):
    for unclear in ("s, the last", "D. w or A. n"):  # no letter, two letters
        result = MMBENCH.score(folder, answers(folder, [*TEXTS[:8], unclear]))
        assert (result["circular"], result["unparsed"]) == (0, 1)
        assert result["unparsed_share"] == pytest.approx(100 / 9)
    assert result["vanilla"] == pytest.approx(200 / 3)


def test_all_right_is_the_best(folder):
    result = MMBENCH.score(folder, answers(folder, [row[4] for row in ROWS]))
    assert result["circular"] == result["vanilla"] == MMBENCH.best


def test_holes_are_refused_or_take_their_question_out(folder):
    # Without the last row question 1 is not complete: circular has 2 and 3, vanilla all three.
    with pytest.raises(ValueError, match="1 of 9 questions have no answer: 3000001"):
        MMBENCH.score(folder, answers(folder)[:8])
    result = MMBENCH.score(folder, answers(folder)[:8], allow_missing=True)
    assert (result["samples"], result["missing"], result["questions"]) == (8, 1, 2)
    assert result["circular"] == 0 and result["vanilla"] == pytest.approx(200 / 3)
    nothing = MMBENCH.score(folder, [], allow_missing=True)
    assert nothing["circular"] is nothing["vanilla"] is nothing["unparsed_share"] is None


def test_wrong_answers_are_named(folder):
    good = answers(folder)
    for wrong, message in [
        ([*good, good[0]], "two answers to question 1"),
        ([{**good[0], "question_id": 17}], "question 17"),
        ([{"question_id": 1, "text": "A"}], "prompt is missing"),
        # the same index in another rotation, as of another language or version
        (
            [{**good[0], "prompt": good[3]["prompt"]}],
            r"1 was asked as .*but in .*A\. n B\. e",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            MMBENCH.score(folder, wrong, allow_missing=True)


@pytest.mark.parametrize(
    ("rows", "without", "message"),
    [
        (ROWS[:3], "", "no rotated rows"),
        ([*ROWS[:3], *ROWS[6:]], "", r"question 1 has the rotations \[0, 2, 3\]"),
        (ROWS[3:], "", r"question 1 has the rotations \[1, 2, 3\]"),
        ([*ROWS, ROWS[0]], "", "two rows with index 1"),
        (ROWS, "answer", "answer of index 1 is None"),
        ([(1, *FOUR, "AB", "x", "y"), *ROWS[3:]], "", "answer of index 1 is 'AB'"),
        (ROWS, "image", "no column image"),
        ([("1.5", *FOUR, "A", "x", "y")], "", "expected a whole number"),
        ([(1, " ", "", ["a", "b"], "A", "x", "y")], "", "a question and an image"),
    ],
)
def test_wrong_tables_are_named(folder, rows, without, message):
    write(folder / "mmbench_dev_20230712.tsv", rows, without)
    with pytest.raises(ValueError, match=message):
        MMBENCH.score(folder, [], allow_missing=True)


def test_the_submission_has_the_columns_of_llavas(folder):
    openpyxl = pytest.importorskip("openpyxl")
    texts = [*TEXTS[:7], "=1+1", "D\x07"]
    tsv = folder / "mmbench_dev_20230712.tsv"
    write_submission(folder / "out" / "a.xlsx", tsv, answers(folder, texts))
    rows = list(openpyxl.load_workbook(folder / "out" / "a.xlsx").active.values)
    assert rows[0] == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert rows[3] == (3, "Is it red?", "yes", "no", None, None, "B", "A", "dev")
    assert [row[6] for row in rows[1:]] == [*TEXTS[:7], "=1+1", "D"]
    with pytest.raises(ValueError, match="1 of 9 questions"):
        write_submission(folder / "b.xlsx", tsv, answers(folder)[:8])
    write(tsv, without="answer hint comment")
    write_submission(folder / "c.xlsx", tsv, answers(folder))
    header = next(openpyxl.load_workbook(folder / "c.xlsx").active.values)
    assert header == ("index", "question", "A", "B", "C", "D", "prediction", "split")


def test_the_submission_says_what_it_needs(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ImportError, match="pip install openpyxl"):
        write_submission(folder / "a.xlsx", folder / "mmbench_dev_20230712.tsv", [])


def answering(folder, *more: str) -> int:
    file = str(folder / "mmbench_dev_20230712.tsv")
    return model_vqa_mmbench.main([*command(folder), "--question-file", file, *more])


def test_the_answering_program(folder, use):
    model = use(StubModel())
    assert answering(folder, "--single-pred-prompt", "--target-token-num", "64") == 0
    found = read_answers(folder)
    assert [answer["question_id"] for answer in found] == [row[0] for row in ROWS]
    assert all(answer["text"].endswith(".1") for answer in found)  # "<length>.<images>"
    assert [call["image_sizes"] for call in model.calls[:3]] == [[(21, 10)], [(22, 10)], [(23, 10)]]
    assert model.calls[0]["max_new_tokens"] == 1024
    assert model.calls[0]["pruner"].target_token_num == 64
    assert MMBENCH.score(folder, found)["unparsed"] == 9
    # LLaVA's fields in LLaVA's order, and the prompt without the instruction.
    assert list(found[2]) == [
        *("question_id", "round_id", "prompt", "text", "options", "option_char"),
        *("answer_id", "model_id", "metadata"),
    ]
    assert found[2]["prompt"] == "Is it red?\nA. yes\nB. no"
    assert (found[2]["options"], found[2]["option_char"]) == (["yes", "no"], ["A", "B"])
    assert {answer["round_id"] for answer in found} == {0}
    assert SUFFIX in model.prompts[2]
    digest = read_record(folder)["settings"]["question_sha256"]
    assert digest == MMBENCH.load_questions(folder).sha256


def test_a_run_of_an_older_version_goes_on_and_is_joined_with_its_metadata(folder, use):
    """It logged the instruction with the prompt, and no options."""
    data = folder / "mmbench"
    data.mkdir()
    (folder / "mmbench_dev_20230712.tsv").rename(data / "mmbench_dev_20230712.tsv")
    (data / "images").mkdir()
    use(StubModel())
    assert answering(data, "--single-pred-prompt") == 0
    path = data / "out" / "answers.jsonl"
    older = [{**line, "prompt": line["prompt"] + SUFFIX} for line in read_answers(data)[:4]]
    for line in older:
        del line["round_id"], line["options"], line["option_char"]
    path.write_text("".join(json.dumps(line) + "\n" for line in older))
    record = {**read_record(data), "status": "interrupted"}
    (data / "out" / "answers.run.json").write_text(json.dumps(record))
    assert answering(data, "--single-pred-prompt") == 0
    found = read_answers(data)
    assert found[:4] == older and [line.get("round_id") for line in found[4:]] == [0] * 5
    assert MMBENCH.score(data, found)["samples"] == 9
    known = {"kind": "k", "hops": 1, "distractors": None, "target_patches": None}
    lines = [{"index": i, "question_id": row[0], **known} for i, row in enumerate(ROWS)]
    (data / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(read_answered("mmbench", path, folder).answers) == 9


def test_languages_are_not_mixed(folder, use, capsys):
    model = use(StubModel())
    assert answering(folder, "--single-pred-prompt", "--lang", "cn") == 0
    assert read_answers(folder)[2]["prompt"] == "Is it red?\nA. yes\nB. no"
    assert all(SUFFIX_CN in prompt for prompt in model.prompts)
    assert answering(folder, "--single-pred-prompt", "--lang", "en") == 2
    assert "question_sha256" in capsys.readouterr().err


def test_a_damaged_image_does_not_end_a_run(folder, use):
    path = folder / "mmbench_dev_20230712.tsv"
    path.write_text(path.read_text().replace(picture(3), picture(3)[:60]))
    use(StubModel())
    assert answering(folder) == 3
    lines = (folder / "out" / "answers.errors.jsonl").read_text().splitlines()
    assert [json.loads(line)["question_id"] for line in lines] == [3, M + 3]


def test_rotating_in_the_program_is_refused(folder, no_model, capsys):
    no_model()
    assert answering(folder, "--all-rounds") == 2
    assert "already has every rotation as a row" in capsys.readouterr().err
