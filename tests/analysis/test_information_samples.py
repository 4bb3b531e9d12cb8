"""Runs are found, and answers joined with what is known about their questions, or refused."""

from __future__ import annotations

import json

import pytest

from llava.analysis.information_samples import Sample, find_runs, load_run, require_comparable
from llava.analysis.question_metadata import is_right

from ..eval.sweep_files import (
    Asked,
    answers,
    write_benchmark,
    write_lines,
    write_metadata,
    write_run,
)

ASKED = [
    Asked("a.jpg", 1, 0.75, distractors=0, target_patches=None, text="Red."),
    Asked("a.jpg", 3, 0.25, kind="beside", reference=None, n_text=44),
    Asked(None, 1, None, kind="context"),
]


@pytest.fixture
def data(tmp_path):
    write_benchmark(tmp_path / "data", "gqa", ASKED)
    return tmp_path / "data"


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "out/gqa/n_64.jsonl", ASKED, target_token_num=64)


def test_an_answer_becomes_a_sample(data, run) -> None:
    loaded = load_run("gqa", run, data)
    assert loaded.samples == [
        Sample(("gqa", "a.jpg"), 0.75, 40, "color", 1, 0, None, True),
        Sample(("gqa", "a.jpg"), 0.25, 44, "beside", 3, 2, 4.0, None),
    ]
    assert (loaded.benchmark, loaded.text_only, loaded.model_path) == ("gqa", 1, "demo")
    assert loaded.pruner["target_token_num"] == 64


def test_a_run_may_be_limited_to_some_questions(data, run) -> None:
    write_run(run, ASKED[:1])
    assert [sample.hops for sample in load_run("gqa", run, data).samples] == [1]


def test_the_metadata_may_name_the_picture(data, run) -> None:
    write_metadata(data / "gqa", ASKED, image="scene 7")
    assert {sample.image for sample in load_run("gqa", run, data).samples} == {("gqa", "scene 7")}


@pytest.mark.parametrize("name", ["mme", "MME"])
def test_a_benchmark_is_known_by_its_name_and_its_folder(data, tmp_path, name) -> None:
    write_benchmark(data, "MME", ASKED)
    path = write_run(tmp_path / "out" / name / "n_64.jsonl", ASKED)
    assert load_run(name, path, data).benchmark == "mme"


@pytest.mark.parametrize(
    ("text", "reference", "right"),
    [
        ("Red.", "red", True),
        (" the red ", "red", True),
        ("2", "two", True),
        ("blue", "red", False),
        ("A", "A", True),
        ("A.", "a", True),
        ("", "A", False),
        ("the", "A", False),
        ("B", "A", False),
        ("red sign", "red", False),
    ],
)
def test_answers_are_compared_leniently(text, reference, right) -> None:
    assert is_right(text, reference) is right


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("complexity", {}, "no mutual information for question 'q0' (line 1). Only AutoPrune"),
        ("complexity", None, "smaller budget"),
        ("complexity", {"mi": float("nan")}, "finite complexity.mi, got Red. and 40 and nan"),
        ("n_text", None, "got Red. and None and 0.75"),
        ("index", 1, "index 1, question_id q0"),
        ("index", 9, "Was the run made with these files?"),
        ("index", None, "index None"),
    ],
)
def test_answers_that_cannot_be_used_are_named(data, run, field, value, message) -> None:
    entries = answers(ASKED)
    entries[0]["metadata"][field] = value
    write_lines(run, entries)
    with pytest.raises(ValueError) as caught:
        load_run("gqa", run, data)
    assert message in str(caught.value) and "n_64.jsonl, line 1" in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{**answers(ASKED)[0], "prompt": "What was it?"}], "prompt What was it?"),
        ([{"question_id": "q0", "prompt": "What is 0?", "text": "x"}], "index None"),
        (answers(ASKED)[:1] * 2, "line 2: a second answer to question 'q0'"),
        (answers(ASKED)[:2], "has 2 answers, but its run record counts 3"),
    ],
)
def test_answers_to_other_questions_are_refused(data, run, entries, message) -> None:
    write_lines(run, entries)
    with pytest.raises(ValueError, match=r"n_64\.jsonl") as caught:
        load_run("gqa", run, data)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": 9}, "index 9 with question_id q0 is none of the questions"),
        ({"index": [0]}, "none of the questions"),
        ({"question_id": "q1"}, "index 0 with question_id q1"),
        ({"index": 1, "question_id": "q1"}, "line 2: a second line about question 'q1'"),
        ({"hops": 0}, "expected kind (text), hops (1 or more)"),
        ({"hops": True}, "expected kind"),
        ({"kind": None}, "expected kind"),
        ({"distractors": -1}, "expected kind"),
        ({"target_patches": "4"}, "expected kind"),
        ({"target_patches": float("inf")}, "expected kind"),
        ({"answer": ["red"]}, "expected kind"),
    ],
)
def test_wrong_metadata_are_named(data, run, change, message) -> None:
    path = data / "gqa/metadata.jsonl"
    first, *others = map(json.loads, path.read_text().splitlines())
    write_lines(path, [{**first, **change}, *others])
    with pytest.raises(ValueError) as caught:
        load_run("gqa", run, data)
    assert message in str(caught.value) and "metadata.jsonl, line" in str(caught.value)


def test_metadata_must_be_there_and_complete(data, run) -> None:
    path = data / "gqa/metadata.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]))
    with pytest.raises(ValueError, match=r"no line about 1 questions, as question 'q2'"):
        load_run("gqa", run, data)
    first = json.loads(lines[0])
    del first["distractors"]
    path.write_text(json.dumps(first) + "\n" + "".join(lines[1:]))
    with pytest.raises(ValueError, match="expected kind"):
        load_run("gqa", run, data)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="expected a line with index"):
        load_run("gqa", run, data)


def test_runs_must_be_finished_and_recorded(data, run, tmp_path) -> None:
    write_run(run, ASKED, status="interrupted")
    with pytest.raises(ValueError, match="is 'interrupted', not 'complete'"):
        load_run("gqa", run, data)
    record = run.with_name("n_64.run.json")
    for content, message in (("{", "not a readable"), ("[]", "must hold an object")):
        record.write_text(content)
        with pytest.raises(ValueError, match=message):
            load_run("gqa", run, data)
    record.unlink()
    with pytest.raises(ValueError, match=r"no run record n_64\.run\.json"):
        load_run("gqa", run, data)
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl not found"):
        load_run("gqa", tmp_path / "none.jsonl", data)
    with pytest.raises(ValueError, match=r"'answers' is no benchmark; known are .*gqa, "):
        load_run("answers", run, data)


def test_the_largest_run_that_prunes_everywhere_is_taken(tmp_path) -> None:
    for folder in ("gqa", "pope"):
        write_run(tmp_path / folder / "none.jsonl", [], entering=576, method="none")
        write_run(tmp_path / folder / "kv_0.5.jsonl", [], entering=200, target_kv=0.5)
        write_run(tmp_path / folder / "n_64.jsonl", [], entering=80)
        write_run(tmp_path / folder / "n_576.jsonl", [], entering=576, target_token_num=576)
        write_run(tmp_path / folder / "half.jsonl", [], entering=300, status="interrupted")
        (tmp_path / folder / "n_64.errors.jsonl").write_text("{}\n")
    write_run(tmp_path / "gqa/n_256.jsonl", [], entering=280)  # POPE has none
    (tmp_path / "plots").mkdir()
    chosen = find_runs(tmp_path, None)
    assert chosen == [(f, tmp_path / f / "kv_0.5.jsonl") for f in ("gqa", "pope")]
    assert find_runs(tmp_path, "n_64")[1] == ("pope", tmp_path / "pope/n_64.jsonl")
    with pytest.raises(FileNotFoundError, match=r"pope has no run 'n_256', only half, kv_0\.5"):
        find_runs(tmp_path, "n_256")


def test_a_sweep_without_a_run_to_take(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no sweep"):
        find_runs(tmp_path, None)
    write_run(tmp_path / "gqa/none.jsonl", [], method="none")
    with pytest.raises(ValueError, match=r"no finished AutoPrune run .*gqa: none"):
        find_runs(tmp_path, None)


def test_only_runs_of_the_same_settings_are_pooled(data, run, tmp_path) -> None:
    write_benchmark(data, "MME", ASKED)
    first = load_run("gqa", run, data)
    path = write_run(tmp_path / "out/MME/n_64.jsonl", ASKED, target_token_num=64)
    require_comparable([first, load_run("MME", path, data)])
    # The first run is of a version that had no such field, and merged no tiles.
    file = path.with_suffix(".run.json")
    record = json.loads(file.read_text())
    record["settings"]["pruner"]["border_mask"] = False
    file.write_text(json.dumps(record))
    require_comparable([first, load_run("MME", path, data)])
    for name, older, value in (
        ("merge_type", "flat", "spatial"),
        ("processing", "llava", "fill"),
    ):
        changed = {**record, "settings": {**record["settings"], name: value}}
        file.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=f"differ in {name} '{older}' and '{value}'"):
            require_comparable([first, load_run("MME", path, data)])
    write_run(path, ASKED, target_token_num=32)
    with pytest.raises(ValueError, match="differ in target_token_num 64 and 32"):
        require_comparable([first, load_run("MME", path, data)])
    with pytest.raises(ValueError, match="more than one run of gqa"):
        require_comparable([first, first])
