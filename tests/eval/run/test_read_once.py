"""Files are loaded once, again when they have changed, and a sweep says how long that took."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from llava.common import json_files
from llava.eval.compare.sweep import main
from llava.eval.run.questions import QuestionFile
from llava.eval.run.watched import read_once, the_path

from ..stub import StubModel

MINI = Path(__file__).parents[3] / "playground" / "data" / "mini"
ANNOTATIONS = {
    "gqa": "data/testdev_balanced_questions.json",
    "scienceqa": "problems.json",
    "textvqa": "TextVQA_0.5.1_val.json",
    "vqav2": "v2_mscoco_val2014_annotations.json",
}


def age(*files: Path) -> None:
    """As if nobody had touched them for an hour: what is new is not trusted to stay."""
    for file in files:
        os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 3600))


@pytest.fixture
def parsed(monkeypatch) -> Counter[str]:
    """How often each JSON text was parsed, by the place that an error would name."""
    counts: Counter[str] = Counter()
    parse = json_files.parse

    def count(content: str | bytes, where: str | Path):
        counts[str(where)] += 1
        return parse(content, where)

    monkeypatch.setattr(json_files, "parse", count)
    return counts


def test_a_sweep_loads_each_file_once(tmp_path, use, parsed, capsys) -> None:
    """And each question once more where its benchmark joins it with its truth, or it is asked."""
    data = tmp_path / "data"
    data.symlink_to(MINI)  # paths that no other test has loaded
    use(StubModel())
    command = ["--model-path", "stub-7b", "--data", str(data), "--out", str(tmp_path / "out")]
    command += ["--num-workers", "0", "--no-feature-cache", "--limit", "3"]
    command += ["--benchmarks", *ANNOTATIONS, "pope", "mme"]
    runs = ["none", "no-image", "random:8@seed=0", "random:8@seed=1"]
    assert main([*command, "--runs", *runs]) == 0
    for folder, name in ANNOTATIONS.items():
        assert parsed[str(data / folder / name)] == 1
    labels = [n for where, n in parsed.items() if "coco_pope_" in where]
    assert labels and set(labels) == {1}
    # POPE's questions are joined with their categories and labels, MME's are grouped by picture and
    # joined with their answers; three of each benchmark are asked in every run.
    for folder, times in {"gqa": 1, "textvqa": 1, "vqav2": 1, "pope": 3, "MME": 3}.items():
        lines = [n for where, n in parsed.items() if f"{data / folder}/llava_" in where]
        assert set(lines) == {times, times + len(runs)}
    out, err = capsys.readouterr()
    seconds = json.loads(out.splitlines()[-1])["loading_seconds"]
    assert 0 < seconds["files"] < 60 and 0 < seconds["model"] < 60
    assert f"Loading took {seconds['files']:.1f} s for questions and annotations" in err


def test_a_change_is_seen(tmp_path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    age(file)
    calls = []

    @read_once(the_path)
    def load(path: Path) -> str:
        calls.append(path)
        return path.read_text()

    assert [load(file), load(file)] == ["one", "one"] and len(calls) == 1
    file.write_text("two")  # of the same size
    assert load(file) == "two"
    age(file)
    other = tmp_path / "b.txt"
    other.write_text("six")
    age(other)
    assert [load(file), load(other), load(file)] == ["two", "six", "two"] and len(calls) == 4
    other.replace(file)
    assert load(file) == "six"


def test_what_is_new_is_read_again(tmp_path) -> None:
    """Two changes within a tick of the file system's clock look like one."""
    file = tmp_path / "a.txt"
    file.write_text("one")
    texts = iter(["one", "two"])
    load = read_once(the_path)(lambda path: next(texts))
    assert [load(file), load(file)] == ["one", "two"]


def test_what_cannot_be_loaded_is_tried_again(tmp_path) -> None:
    file = tmp_path / "questions.jsonl"
    with pytest.raises(FileNotFoundError):
        QuestionFile(file)
    file.write_text("{}")
    age(file)
    for _ in range(2):
        with pytest.raises(ValueError, match="line 1"):
            QuestionFile(file)
    lines = [json.dumps({"question_id": i, "text": "What is it?"}) + "\n" for i in range(3)]
    file.write_text("".join(lines))
    age(file)
    assert [len(QuestionFile(file)), len(QuestionFile(file, 3, 1))] == [3, 1]
