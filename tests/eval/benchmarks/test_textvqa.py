"""TextVQA's prompt rules, join and score, on annotations small enough to score by hand."""

from __future__ import annotations

import json

import pytest

from llava.eval.benchmarks import textvqa
from llava.eval.benchmarks.textvqa import BENCHMARK, BENCHMARK_NO_OCR, Prompt, read_prompt
from llava.eval.eval_textvqa import main

INSTRUCTION = "Answer the question using a single word or phrase."
ENTRIES = [
    {"image_id": "i1", "question": "What Brand is this?", "answers": ["Nokia"] * 8 + ["LG"] * 2},
    {"image_id": "i1", "question": "how many?", "answers": ["2", "Two."] + ["three"] * 8},
    {"image_id": "i2", "question": "how many?", "answers": ["the red"] * 3 + ["blue"] * 7},
    {"image_id": "i3", "question": "Who?", "answers": [f"name {i}" for i in range(10)]},
]
TEXTS = ["nokia", "two", "Red", "nobody"]  # 1, 0.6, 0.9 and 0


def answers(ocr: bool = True) -> list[dict]:
    line = "Reference OCR token: A, B\n" if ocr else ""
    return [
        {
            "question_id": entry["image_id"],
            "prompt": f"{entry['question']}\n{line}{INSTRUCTION}",
            "text": text,
        }
        for entry, text in zip(ENTRIES, TEXTS)
    ]


@pytest.fixture
def annotations(tmp_path):
    path = tmp_path / "TextVQA_0.5.1_val.json"
    path.write_text(json.dumps({"data": ENTRIES}))
    return path


def score(annotations, entries: list[dict] | str, *more: str) -> int:
    path = annotations.with_name("n_64.jsonl")
    text = entries if isinstance(entries, str) else "".join(json.dumps(e) + "\n" for e in entries)
    path.write_text(text)
    return main(["--annotation-file", str(annotations), "--result-file", str(path), *more])


@pytest.mark.parametrize(
    ("prompt", "question", "with_ocr"),
    [
        (f"What Is it?\nReference OCR token: A, b\n{INSTRUCTION}", "what is it?", True),
        (f"What?\nReference OCR token: \n{INSTRUCTION}", "what?", True),
        (f"Reference OCR token: A\nWhat?\n{INSTRUCTION}", "what?", True),
        (f"What?\n{INSTRUCTION}", "what?", False),
        ("OCR tokens: A, B. Question: What Is? Short answer:", "what is?", True),
    ],
)
def test_the_question_is_read_off_the_prompt(prompt, question, with_ocr):
    assert read_prompt(prompt) == Prompt(
        question, with_ocr, empty=with_ocr and "token: \n" in prompt
    )


@pytest.mark.parametrize("prompt", ["What?", "a\nb\nc", "OCR tokens: A, B. What?"])
def test_another_prompt_is_an_error(prompt):
    with pytest.raises(ValueError, match="not a TextVQA prompt"):
        read_prompt(prompt)


@pytest.mark.parametrize(("ocr", "name"), [(True, "with OCR"), (False, "without OCR")])
def test_score(annotations, capsys, ocr, name):
    assert score(annotations, answers(ocr)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"n_64 ({name}")
    assert lines[1:3] == ["Samples: 4", "Accuracy: 62.50%"]
    result = json.loads(lines[3])
    assert result["accuracy"] == pytest.approx(62.5) and result["samples"] == 4
    assert result["prompts"] == f"{name} tokens" and result["missing"] == 0


@pytest.mark.parametrize(
    ("hints", "called"),
    [
        (("ab", "cd"), "with OCR tokens"),
        (("ab", ""), "with OCR tokens"),
        (("", ""), "with empty OCR lines"),
    ],
)
def test_empty_ocr_lines_are_no_ocr_tokens(hints, called) -> None:
    answers = [
        {
            "question_id": f"im{i}",
            "prompt": f"what?\nReference OCR token: {hint}\nAnswer the question.",
            "text": "x",
        }
        for i, hint in enumerate(hints)
    ]
    annotations = {(f"im{i}", "what?"): ["x"] * 10 for i in range(2)}
    result = textvqa.score_answers(annotations, answers)
    assert (result["prompts"], result["accuracy"]) == (called, 100)


def test_prompts_of_both_kinds_are_called_mixed(annotations, capsys):
    assert score(annotations, answers(True)[:2] + answers(False)[2:]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["prompts"] == "mixed"


def test_a_folder_is_scored_file_by_file(annotations, tmp_path, capsys):
    folder = tmp_path / "answers"
    folder.mkdir()
    for n, text in ((64, "nokia"), (128, "lg")):
        entries = [{**answers()[0], "text": text}, *answers()[1:]]
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        (folder / f"n_{n}.jsonl").write_text(lines)
    (folder / "n_64.errors.jsonl").write_text("{}\n")
    (folder / "n_64.run.json").write_text("{}")
    assert main(["--annotation-file", str(annotations), "--result-dir", str(folder)]) == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert [r["accuracy"] for r in results] == pytest.approx([52.5, 62.5])


def test_missing_answers_are_named_unless_allowed(annotations, capsys):
    assert score(annotations, answers()[:3]) == 2
    err = capsys.readouterr().err
    assert "1 of 4 questions have no answer: image i3, question 'who?'" in err
    assert "--allow-missing" in err
    assert score(annotations, answers()[:3], "--allow-missing") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["samples"], result["missing"]) == (3, 1)
    assert result["accuracy"] == pytest.approx(250 / 3)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([*answers(), answers()[0]], "two answers to image i1, question 'what brand is this?'"),
        ([*answers(), {**answers()[0], "question_id": "i9"}], "answer to image i9"),
        ([{"question_id": "i1", "text": "x"}], "prompt is missing"),
        ([{**answers()[0], "prompt": "x"}], "not a TextVQA prompt"),
        ([{**answers()[0], "prompt": None}], "prompt must be a string, got None"),
        ([{**answers()[0], "text": 3}], "text must be a string, got 3"),
        ('{"question_id": "i1",\n', "line 1: expected a JSON object"),
        (json.dumps(answers()[0])[:-9], "line 1: expected a JSON object"),
    ],
)
def test_wrong_answers_are_named(annotations, capsys, entries, message):
    assert score(annotations, entries) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("n_64.jsonl") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Expected a TextVQA annotation file"),
        ('{"questions": []}', "Expected a TextVQA annotation file"),
        (json.dumps({"data": [{"image_id": "i1", "question": "q"}]}), "the test file has no"),
        (json.dumps({"data": ENTRIES[:1] * 2}), "two entries for image i1"),
        (json.dumps({"data": [{**ENTRIES[0], "answers": ["x"] * 9}]}), "expected 10 answers"),
    ],
)
def test_wrong_annotations_are_named(annotations, capsys, content, message):
    annotations.write_text(content)
    assert score(annotations, answers()) == 2
    assert message in capsys.readouterr().err


def test_missing_files_are_named(annotations, tmp_path, capsys):
    absent = str(tmp_path / "none")
    assert main(["--annotation-file", absent, "--result-file", absent]) == 2
    assert "textvqa.org" in capsys.readouterr().err
    assert main(["--annotation-file", str(annotations), "--result-file", absent]) == 2
    assert "model_vqa_loader" in capsys.readouterr().err
    assert main(["--annotation-file", str(annotations), "--result-dir", absent]) == 2
    assert "holds no answers" in capsys.readouterr().err


def test_both_variants_score_in_the_benchmarks_folder(annotations):
    for benchmark, ocr in ((BENCHMARK, True), (BENCHMARK_NO_OCR, False)):
        result = benchmark.score(annotations.parent, answers(ocr))
        assert result["benchmark"] == benchmark.name
        assert result[benchmark.metric] == pytest.approx(62.5)
        with pytest.raises(ValueError, match=r"1 of 4 questions have no answer"):
            benchmark.score(annotations.parent, answers(ocr)[:3])
        result = benchmark.score(annotations.parent, answers(ocr)[:3], allow_missing=True)
        assert (result["samples"], result["missing"]) == (3, 1)
        nothing = benchmark.score(annotations.parent, [], allow_missing=True)
        assert nothing["accuracy"] is None


def test_a_variant_refuses_answers_to_the_prompts_of_the_other(annotations):
    folder = annotations.parent
    with pytest.raises(ValueError, match="without OCR tokens, but those of textvqa are with OCR"):
        BENCHMARK.score(folder, answers(ocr=False))
    with pytest.raises(ValueError, match="with OCR tokens, but those of textvqa-noocr are without"):
        BENCHMARK_NO_OCR.score(folder, answers(ocr=True))
    mixed = answers(ocr=True)[:2] + answers(ocr=False)[2:]
    for benchmark in (BENCHMARK, BENCHMARK_NO_OCR):
        with pytest.raises(ValueError, match="the prompts of these answers are mixed"):
            benchmark.score(folder, mixed)


def test_lines_without_tokens_are_prompts_of_the_variant_with_ocr(annotations):
    empty = [
        {**answer, "prompt": answer["prompt"].replace("A, B", "")} for answer in answers(ocr=True)
    ]
    assert BENCHMARK.score(annotations.parent, empty)["prompts"] == "with empty OCR lines"
    with pytest.raises(ValueError, match="are with empty OCR lines"):
        BENCHMARK_NO_OCR.score(annotations.parent, empty)


def test_each_variant_has_questions_of_its_own(tmp_path):
    for name, ocr in (("llava_textvqa_val_v051_ocr", True), ("llava_textvqa_val_v051", False)):
        lines = [
            {"question_id": a["question_id"], "image": "i.jpg", "text": a["prompt"]}
            for a in answers(ocr)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(e) + "\n" for e in lines))
    assert "OCR" in BENCHMARK.load_questions(tmp_path)[0].text
    second = BENCHMARK_NO_OCR.load_questions(tmp_path, 2, 1)
    assert [question.index for question in second] == [2, 3]
    assert "OCR" not in second[0].text


def test_missing_question_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"val_v051_ocr\.jsonl not found: .* eval\.zip"):
        BENCHMARK.load_questions(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"val_v051\.jsonl not found: .* without the OCR"):
        BENCHMARK_NO_OCR.load_questions(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"textvqa\.org"):
        BENCHMARK_NO_OCR.score(tmp_path, [])
