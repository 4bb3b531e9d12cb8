"""A benchmark from outside the package: one file, one call of `register`, every program."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from llava.eval import benchmark, score
from llava.eval.benchmarks import BENCHMARKS, register
from llava.eval.benchmarks.__main__ import table
from llava.eval.compare import report

from ..programs import write_lines
from ..stub import StubModel

FILE = """
import json

from llava.eval.benchmarks import Benchmark, register
from llava.eval.benchmarks.base import File, Split, question_lines, require_complete
from llava.eval.benchmarks.scoring import percentage, texts_by_id

QUESTIONS = File("questions.jsonl", "zoo.example", "questions")


def score(folder, answers, *, allow_missing=False):
    truth = json.loads((folder / "truth.json").read_text())
    texts = texts_by_id(answers, truth)
    missing = [key for key in truth if key not in texts]
    require_complete(missing, len(truth), allow_missing=allow_missing)
    right = [texts[key] == truth[key] for key in texts]
    return {"samples": len(right), "missing": len(missing), "accuracy": percentage(right)}


register(
    Benchmark(
        name="animals",
        title="Animals",
        folder="animals",
        splits=(
            Split(
                QUESTIONS,
                File("pictures", "zoo.example", "images"),
                (File("truth.json", "zoo.example/truth"),),
                scored_as="animals",
            ),
        ),
        metric="accuracy",
        load_questions=question_lines(QUESTIONS),
        score=score,
        max_new_tokens=7,
    )
)
"""


@pytest.fixture
def animals(tmp_path, monkeypatch):
    """The benchmark, joined, and its folder with two questions."""
    for name in ("MODEL_PATH", "DATA", "CUDA_VISIBLE_DEVICES", "LLAVA_CALLER", "LLAVA_SCRIPT"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "animals.py"
    path.write_text(FILE)
    spec = importlib.util.spec_from_file_location("animals", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    folder = tmp_path / "data" / "animals"
    questions = [
        {"question_id": key, "image": "a.png", "text": text}
        for key, text in (("a", "Cat?"), ("b", "Dog?"))
    ]
    write_lines(folder / "questions.jsonl", questions)
    (folder / "truth.json").write_text(json.dumps({"a": "yes", "b": "no"}))
    (folder / "pictures").mkdir()
    Image.new("RGB", (8, 6)).save(folder / "pictures" / "a.png")
    yield folder
    del BENCHMARKS["animals"]


class Answering(StubModel):
    def reply(self, prompt: str, images: int) -> str:
        return "yes"


def run(folder: Path) -> int:
    flags = ["--model-path", "someone/tiny", "--data", str(folder), "--num-workers", "0"]
    return benchmark.main(["animals", "64", *flags])


def test_it_is_answered_scored_and_compared(animals, tmp_path, use, capsys) -> None:
    model = use(Answering())
    assert run(animals) == 0
    assert model.calls[0]["max_new_tokens"] == 7
    answers = animals / "answers" / "tiny" / "autoprune" / "n_64.jsonl"
    title, headline, *_, result = capsys.readouterr().out.splitlines()[-5:]
    assert title == f"Animals: {answers}" and headline == "accuracy: 50.00 of 100"
    assert json.loads(result)["samples"] == 2
    assert score.main([str(answers)]) == 0  # by its record
    assert "accuracy: 50.00 of 100" in capsys.readouterr().out
    assert report.main([str(answers.parent), "--data", str(tmp_path / "data")]) == 0
    assert "Animals" in capsys.readouterr().out


def test_what_is_missing_has_its_source(animals, no_model, capsys) -> None:
    no_model()
    (animals / "truth.json").unlink()
    assert run(animals) == 2
    said = capsys.readouterr().err
    assert f"  {animals / 'truth.json'}\n      annotations: zoo.example/truth\n" in said


def test_it_is_in_the_table_of_files(animals) -> None:
    row = table(BENCHMARKS.values()).splitlines()[-1]
    assert "`animals`" in row and "`truth.json` (zoo.example/truth)" in row


def test_a_name_is_taken_once(animals) -> None:
    taken = BENCHMARKS["animals"]
    assert register(taken) is taken
    with pytest.raises(ValueError, match="another benchmark 'animals'"):
        register(replace(taken, title="Others"))
    assert BENCHMARKS["animals"] is taken
