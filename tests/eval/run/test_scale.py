"""Memory of many questions: a few bytes each, no more."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from llava.eval.benchmarks import vqav2
from llava.eval.benchmarks.scoring import answers_in
from llava.eval.model_vqa_loader import main
from llava.eval.run.questions import QuestionFile

from ..stub import StubModel, command

MANY = 20_000


class Forgetful(StubModel):
    """A stub that keeps nothing of what it was asked."""

    def generate(self, *arguments: Any, **more: Any) -> Any:
        self.calls.clear()
        self.prompts.clear()
        return super().generate(*arguments, **more)


def write(folder: Path, count: int) -> Path:
    """Questions without images, so that none has to be made and read."""
    folder.mkdir()
    (folder / "images").mkdir()
    path = folder / "questions.jsonl"
    with path.open("w") as file:
        for i in range(count):
            entry = {"question_id": i, "text": f"What is {i}?", "category": "default"}
            file.write(json.dumps(entry) + "\n")
    return path


def peak(work: Callable[[], object]) -> int:
    """The most bytes that Python's allocator held at a time for this."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_questions_take_a_few_bytes_each(tmp_path):
    QuestionFile(write(tmp_path / "few", 2))  # what numpy imports at the first file
    path = write(tmp_path / "data", MANY)
    found: list[QuestionFile] = []
    # Four columns of 8 bytes, and copies of two while ids and contents are compared.
    assert peak(lambda: found.append(QuestionFile(path))) < 80 * MANY
    assert len(found[0]) == MANY and found[0][MANY - 1].question_id == MANY - 1


def test_a_run_does_not_grow_with_its_questions(tmp_path, use):
    use(Forgetful())

    def run(count: int) -> int:
        folder = tmp_path / str(count)
        write(folder, count)
        with redirect_stderr(StringIO()):
            most = peak(lambda: main(command(folder, "--batch-size", "50")))
        answers = (folder / "out" / "answers.jsonl").read_text().splitlines()
        assert len(answers) == count
        return most

    run(50)  # what is made once, at the first run
    few, many = run(100), run(1100)
    assert many - few < 100 * 1000  # an answer in the file has over 700 bytes, in memory thousands


def test_the_submission_keeps_no_more_than_the_texts(tmp_path):
    count = 5000
    questions = write(tmp_path / "data", count)
    metadata = {"cost": dict.fromkeys((f"number {i}" for i in range(40)), 1.0)}

    def lines() -> Iterator[str]:
        for i in range(count):
            yield json.dumps({"question_id": i, "text": "Yes.", "metadata": metadata}) + "\n"

    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(lines()))
    assert answers.stat().st_size > 600 * count
    upload = tmp_path / "upload.json"

    def convert() -> None:
        with answers_in(answers) as entries:
            vqav2.write_submission(upload, entries, questions)

    most = peak(convert)
    assert most < 500 * count
    assert json.loads(upload.read_text())[-1] == {"question_id": count - 1, "answer": "yes"}
