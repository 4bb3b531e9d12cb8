"""The TextVQA-shaped benchmark: formats, determinism, balance."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from llava.train.minibench import (
    ANNOTATION_FILE,
    IMAGE_FOLDER,
    QUESTION_FILE,
    choose_questions,
    main,
    write_textvqa,
)
from llava.train.scenes import COLOURS, TEST_SEEDS, make_scene

SCENES = 12


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("textvqa")
    assert write_textvqa(out, SCENES) == 2 * SCENES
    return out


def _questions(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / QUESTION_FILE).read_text().splitlines()]


def _annotations(out: Path) -> list[dict]:
    return json.loads((out / ANNOTATION_FILE).read_text())["data"]


def test_a_second_run_writes_the_same_bytes(bench: Path, tmp_path: Path) -> None:
    main(["--out", str(tmp_path), "--scenes", str(SCENES)])
    names = sorted(p.relative_to(bench) for p in bench.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert len(names) == SCENES + 2
    for name in names:
        assert (bench / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_question_file_has_the_official_shape(bench: Path) -> None:
    for row in _questions(bench):
        assert list(row) == ["question_id", "image", "text", "category"]
        assert row["image"] == row["question_id"] + ".jpg"
        assert row["category"] == "default"
        question, hint, suffix = row["text"].split("\n")
        assert question.endswith("?") and "<image>" not in question
        assert hint == "Reference OCR token: "
        assert suffix == "Answer the question using a single word or phrase."
        with Image.open(bench / IMAGE_FOLDER / row["image"]) as picture:
            picture.load()
            assert picture.size == (336, 336) and picture.mode == "RGB"


def test_annotations_join_with_the_questions(bench: Path) -> None:
    annotations = _annotations(bench)
    asked = [(row["question_id"], row["text"].split("\n")[0].lower()) for row in _questions(bench)]
    keys = [(a["image_id"], a["question"].lower()) for a in annotations]
    assert keys == asked
    assert len(set(keys)) == len(keys)
    assert len({a["question_id"] for a in annotations}) == len(annotations)
    for annotation in annotations:
        assert len(annotation["answers"]) == 10
        assert annotation["kind"] in ("read", "colour")
        hardness = annotation["hardness"]
        assert 1 <= hardness["signs"] <= 4
        assert 1 <= hardness["letter_height_patches"] <= 40 / 14 + 0.01


def test_no_answer_is_frequent_and_colours_are_asked_fairly() -> None:
    """Language alone must not answer: this is the very set of the default 150 scenes."""
    questions = [q for seed in TEST_SEEDS[:150] for q in choose_questions(make_scene(seed))]
    assert len(questions) == 300
    answers = Counter(question.answer for question in questions)
    rate = answers.most_common(1)[0][1] / len(questions)
    print(f"majority answer: {rate:.1%}")
    assert rate < 0.10
    colours = Counter(question.answer for question in questions if question.kind == "colour")
    assert set(colours) == set(COLOURS)
    assert max(colours.values()) / sum(colours.values()) < 0.2
    kinds = Counter(question.kind for question in questions)
    assert kinds["read"] > kinds["colour"] > 50


def test_scene_count_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scenes must be from 1"):
        write_textvqa(tmp_path, 0)
