"""What the mini benchmarks leave out, from question file to score or upload, by the scripts.

VizWiz, VQAv2 test-dev, MMBench-CN and MM-Vet in their real formats. The command lines of a script
run in this process, on a stub model whose answers are given, so that what comes out is known.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .benchmarks.test_mmbench import SUFFIX_CN, M
from .benchmarks.test_mmbench import write as write_table
from .benchmarks.test_vizwiz import ACCURACY, ENTRIES, SHORT, TEXTS, UNANSWERABLE, write_val
from .programs import calls, perform, run_script, write_lines, write_recorder
from .stub import StubModel

ROOT = Path(__file__).parents[2]
VISUAL = {"v1_5": 576, "v1_6": 2880}
RUN = Path("llava-tiny/autoprune/n_64.upload.json")


class Scripted(StubModel):
    """Says to each prompt what `replies` has for the one piece of text that is in it."""

    def __init__(self, replies: dict[str, str]) -> None:
        super().__init__()
        self._replies = replies

    def reply(self, prompt: str, images: int) -> str:
        assert images == 1
        (text,) = [text for piece, text in self._replies.items() if piece in prompt]
        return text


def bash(
    version: str, name: str, data: Path, python: Path, *flags: str
) -> subprocess.CompletedProcess[str]:
    """Run a script; the checkpoint's name is one of the hub, where nothing is looked for."""
    inherited = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    own = {"MODEL_PATH": "someone/llava-tiny", "DATA": str(data), "PYTHON": str(python)}
    done = run_script(
        ["bash", f"scripts/{version}/eval/{name}.sh", "64", "--num-workers", "0", *flags],
        ROOT,
        inherited | own | {"CALLS": str(python.parent / "calls")},
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(params=VISUAL)
def execute(request, tmp_path, use, capsys):
    """Runs a script of either family: its result, what it said, and the model that answered."""

    def run(name: str, data: Path, replies: dict[str, str]) -> tuple[dict[str, Any], str, Scripted]:
        write_recorder(tmp_path / "python")
        said = bash(request.param, name, data, tmp_path / "python").stderr
        model = use(Scripted(replies))
        answering, last = calls(tmp_path)
        assert perform(answering) == 0
        for call in model.calls:
            assert call["visual_token_num"] == VISUAL[request.param]
            assert call["pruner"].target_token_num == 64
        capsys.readouterr()
        assert perform(last) == 0
        out, err = capsys.readouterr()
        return json.loads(out.splitlines()[-1]), said + err, model

    return run


def write_images(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", (8, 6)).save(folder / name)


def write_questions(path: Path, entries: list[dict[str, Any]], *instructions: str) -> None:
    lines = [
        {**entry, "text": "\n".join([entry["text"], *instructions]), "category": "default"}
        for entry in entries
    ]
    write_lines(path, lines)


def write_vizwiz_test(data: Path) -> None:
    images = [f"VizWiz_test_{i:08d}.jpg" for i in range(2)]
    entries = [
        {"question_id": i, "image": image, "text": text}
        for i, (image, text) in enumerate(zip(images, ["What is this?", "What color?"]))
    ]
    write_questions(data / "llava_test.jsonl", entries, UNANSWERABLE, SHORT)
    write_images(data / "test", *images)


def test_vizwiz_test(execute, tmp_path):
    data = tmp_path / "vizwiz"
    write_vizwiz_test(data)
    replies = {"What is this?": "The U.S.A.", "What color?": "Unanswerable"}
    result, said, _ = execute("vizwiz", data, replies)
    target = data / "answers" / "llava_test" / RUN
    assert result == {"answers": 2, "file": str(target)}
    assert "eval.ai" in said and str(target) in said
    assert json.loads(target.read_text()) == [
        {"image": "VizWiz_test_00000000.jpg", "answer": "usa"},
        {"image": "VizWiz_test_00000001.jpg", "answer": "unanswerable"},
    ]


def test_vizwiz_val(execute, tmp_path):
    data = tmp_path / "vizwiz"
    write_images(data / "val", *(entry["image"] for entry in ENTRIES))
    (data / "val.json").write_text(json.dumps(ENTRIES))
    assert write_val("--benchmark", "vizwiz", "--dir", data) == 0
    replies = {entry["question"]: text for entry, text in zip(ENTRIES, TEXTS)}
    result, _, _ = execute("vizwiz", data, replies)
    assert (result["benchmark"], result["samples"], result["missing"]) == ("vizwiz", 4, 0)
    assert result["accuracy"] == pytest.approx(ACCURACY)


def test_vqav2_test_dev(execute, tmp_path):
    """The server wants all of test2015, in whatever split it scores."""
    data = tmp_path / "vqav2"
    texts = {1000: "Is it red?", 1001: "How many?", 2000: "Who is it?", 2001: "Is it blue?"}
    entries = [
        {"question_id": key, "image": f"COCO_test2015_{key // 1000:012d}.jpg", "text": text}
        for key, text in texts.items()
    ]
    write_questions(data / "llava_vqav2_mscoco_test2015.jsonl", entries, SHORT)
    test_dev = "llava_vqav2_mscoco_test-dev2015"
    write_questions(data / f"{test_dev}.jsonl", [entries[3], entries[1]], SHORT)
    write_images(data / "test2015", entries[0]["image"], entries[3]["image"])
    result, said, _ = execute("vqav2", data, {"How many?": "Two.", "Is it blue?": "Yes"})
    target = data / "answers" / test_dev / RUN
    assert result == {"questions": 4, "answered": 2, "unanswered": 2, "file": str(target)}
    assert "eval.ai" in said and str(target) in said
    assert json.loads(target.read_text()) == [
        {"question_id": 1000, "answer": ""},
        {"question_id": 1001, "answer": "2"},
        {"question_id": 2000, "answer": ""},
        {"question_id": 2001, "answer": "yes"},
    ]


def test_mmbench_cn(execute, tmp_path):
    data = tmp_path / "mmbench_cn"
    data.mkdir()
    rows = [
        (1, "红?", "提示", ["是", "不"], "A", "x", "y"),
        (2, "什么?", "", ["花", "树"], "A", "x", "y"),
        (M + 1, "红?", "提示", ["不", "是"], "B", "x", "y"),
        (M + 2, "什么?", "", ["树", "花"], "B", "x", "y"),
    ]
    write_table(data / "mmbench_dev_cn_20231003.tsv", rows)
    # The first question is right in both its rows, the second in the base row alone.
    replies = {"A. 是\n": "A", "A. 不\n": "B", "A. 花\n": "A", "A. 树\n": "A"}
    result, _, model = execute("mmbench_cn", data, replies)
    assert (result["benchmark"], result["samples"]) == ("mmbench_cn", 4)
    assert (result["circular"], result["vanilla"]) == (50, 100)
    assert len(model.prompts) == 4 and all(SUFFIX_CN in prompt for prompt in model.prompts)


def test_mmvet(execute, tmp_path):
    data = tmp_path / "mm-vet"
    texts = {"What is x?": "x = -1\nand x = -5", "Who is it?": "A café owner"}
    images = [f"v1_{i}.png" for i in range(2)]
    entries = [
        {"question_id": i, "image": image, "text": text, "category": "conv"}
        for i, (image, text) in enumerate(zip(images, texts))
    ]
    write_lines(data / "llava-mm-vet.jsonl", entries)
    write_images(data / "images", *images)
    result, said, model = execute("mmvet", data, texts)
    target = data / "answers" / RUN
    assert result == {"answers": 2, "file": str(target)}
    assert "graded by GPT-4, not here" in said
    written = dict(zip(("v1_0", "v1_1"), texts.values()))
    assert json.loads(target.read_text(encoding="utf-8")) == written
    assert model.calls[0]["max_new_tokens"] == 1024
