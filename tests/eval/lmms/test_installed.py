"""lmms-eval itself, where it is installed (`scripts/lmms_eval.sh`), on the mini benchmarks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest

from llava.eval.lmms.mini import DATA

from ..programs import write_lines
from . import hf_folder
from .interface import INSTALLED
from .test_mini import FOLDER, ROOT, TASKS, documents, read
from .test_stock import DEMO

pytestmark = pytest.mark.skipif(not INSTALLED, reason="lmms-eval is not installed")

LIMIT, BATCH_SIZE = 8, 4  # questions of each benchmark
COMPARED = ["textvqa-noocr", "pope", "gqa", "mme"]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    """Tasks name their files from the checkout on; nothing is fetched."""
    monkeypatch.chdir(ROOT)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.getbasetemp() / "hf"))


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A run and a benchmark to what this package's own program answers."""
    out = tmp_path_factory.mktemp("answers")
    words = ["-m", "llava.eval.compare.sweep", "--model-path", DEMO, "--data", DATA, "--out", out]
    words += ["--runs", "autoprune:64", "none", "--benchmarks", *COMPARED]
    words += ["--limit", LIMIT, "--batch-size", BATCH_SIZE]
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def answers(run: str, benchmark: str) -> list[dict]:
        lines = (out / benchmark / f"{run}.jsonl").read_text().splitlines()
        assert len(lines) == LIMIT
        return [json.loads(line) for line in lines]

    return answers


@pytest.fixture(scope="module")
def evaluate(programs, tmp_path_factory):
    """Samples by benchmark as lmms-eval logs them, of the questions that the programs answer."""
    folder = tmp_path_factory.mktemp("tasks")
    shutil.copy(FOLDER / "_mini", folder)
    for name in COMPARED:
        text = (FOLDER / f"{TASKS[name]}.yaml").read_text()
        content = read(TASKS[name])
        rows = {row["index"]: row for row in documents(content)}
        indices = [answer["metadata"]["index"] for answer in programs("none", name)]
        cut = write_lines(folder / f"{name}.jsonl", [rows[i] for i in indices])
        path = content["dataset_kwargs"]["data_files"][content["test_split"]]
        assert path in text
        (folder / f"{TASKS[name]}.yaml").write_text(text.replace(path, str(cut)))

    def run(model: str, benchmarks: list[str], **arguments: Any) -> dict[str, list[dict]]:
        from lmms_eval.evaluator import simple_evaluate
        from lmms_eval.tasks import TaskManager

        results = simple_evaluate(
            model=model,
            model_args=",".join(f"{name}={value}" for name, value in arguments.items()),
            tasks=[TASKS[name] for name in benchmarks],
            task_manager=TaskManager(include_path=str(folder), model_name=model),
            batch_size=BATCH_SIZE,
            log_samples=True,
            bootstrap_iters=0,
        )
        return {name: results["samples"][TASKS[name]] for name in benchmarks}

    return run


def texts(samples: list[dict]) -> list[str]:
    return [answer for sample in samples for answer in sample["filtered_resps"]]


@pytest.mark.parametrize("run", ["autoprune-64", "none"])
def test_answers_are_those_of_the_programs(evaluate, programs, run):
    method, _, budget = run.partition("-")
    settings = {"target_token_num": budget} if budget else {}
    logged = evaluate("autoprune", COMPARED, pretrained=DEMO, method=method, **settings)
    for name in COMPARED:
        answers = programs(run, name)
        assert texts(logged[name]) == [answer["text"] for answer in answers]
        for sample, answer in zip(logged[name], answers):
            counts = sample["token_counts"][0]
            assert counts.items() >= answer["metadata"]["cost"].items()
            assert counts["output_tokens"] == answer["metadata"]["new_tokens"]
            assert (counts["prefill_flops"] < counts["dense_prefill_flops"]) == bool(budget)


def test_a_stock_model(evaluate, tmp_path):
    folder = hf_folder.write(DEMO, tmp_path / "llava-hf")
    settings = {"pretrained": folder, "method": "fastv", "target_token_num": 64}
    loader = {"processing": "llava-hf", "positions": "original"}
    answers = [
        texts(evaluate("autoprune", COMPARED[:1], **settings, **engine)[COMPARED[0]])
        for engine in ({"engine": "hf"}, loader)
    ]
    assert answers[0] == answers[1] and len(set(answers[0])) > 1


@pytest.mark.parametrize("name", hf_folder.TINY)
def test_a_tiny_stock_model(evaluate, name, tmp_path):
    folder = hf_folder.write_tiny(name, tmp_path / name)
    settings = {"pretrained": folder, "engine": "hf", "target_fraction": 0.4}
    logged = evaluate("autoprune", COMPARED[:1], **settings)[COMPARED[0]]
    for sample in logged:
        counts = sample["token_counts"][0]
        assert counts["tokens_leaving"] < counts["n_visual"]


def test_the_class_for_llava_of_lmms_eval(evaluate, programs):
    place = {"device_map": "auto", "device": "cpu"}  # else it asks for a CUDA device
    samples = evaluate("llava", COMPARED[:1], pretrained=DEMO, **place)[COMPARED[0]]
    assert texts(samples) == [answer["text"] for answer in programs("none", COMPARED[0])]
