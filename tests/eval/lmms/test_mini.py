"""The files in playground/lmms-eval, and what they name."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import yaml

from llava.eval.benchmarks import BENCHMARKS
from llava.eval.lmms import mini
from llava.eval.run.settings import RunSettings

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "playground/lmms-eval"

#: Tasks by the benchmark that each asks.
TASKS = {
    "vqav2": "mini_vqav2",
    "gqa": "mini_gqa",
    "scienceqa": "mini_scienceqa",
    "textvqa": "mini_textvqa",
    "textvqa-noocr": "mini_textvqa_noocr",
    "pope": "mini_pope",
    "mme": "mini_mme",
    "mmbench": "mini_mmbench",
}


class Loader(yaml.SafeLoader):
    """Reads `!function package.module.name` as lmms-eval's does."""


def function(loader, node):
    module, _, name = loader.construct_scalar(node).rpartition(".")
    return getattr(importlib.import_module(module), name)


Loader.add_constructor("!function", function)


def read(task: str) -> dict:
    content = yaml.load((FOLDER / f"{task}.yaml").read_text(), Loader)
    common = yaml.load((FOLDER / content.pop("include")).read_text(), Loader)
    return common | content


def documents(content: dict) -> list[dict]:
    path = ROOT / content["dataset_kwargs"]["data_files"][content["test_split"]]
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_file_is_a_task_of_a_mini_benchmark():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(TASKS.values())
    folders = {path.name for path in mini.DATA.iterdir()} - {"answers"}
    assert {BENCHMARKS[name].folder for name in TASKS} == folders


@pytest.mark.parametrize("name", TASKS)
def test_a_task_asks_and_scores_as_the_programs_do(name):
    content, benchmark = read(TASKS[name]), BENCHMARKS[name]
    assert content["task"] == TASKS[name] and content["output_type"] == "generate_until"
    assert [metric["metric"] for metric in content["metric_list"]] == [benchmark.metric]
    rows = documents(content)
    questions = benchmark.load_questions(mini.DATA / benchmark.folder)
    assert len(rows) == len(questions)
    by_index = {questions[i].index: questions[i] for i in range(len(questions))}
    for row in rows:
        question = by_index[row["index"]]
        assert content["doc_to_text"](row) == question.model_text
        assert question.question_id == row["question_id"]
    noted = [content["process_results"](row, [row["answer"]]) for row in rows]
    assert {tuple(entry) for entry in noted} == {(benchmark.metric,)}
    answers = [entry[benchmark.metric] for entry in noted]
    score = content["metric_list"][0]["aggregation"]
    whole = benchmark.score(mini.DATA / benchmark.folder, answers)
    best = whole.get("best", benchmark.best)
    assert score(answers) == whole[benchmark.metric] == pytest.approx(best)
    assert score([{**answer, "text": "none of these"} for answer in answers]) < 0.7 * best


@pytest.mark.parametrize("name", TASKS)
def test_a_task_shows_the_picture(name):
    content = read(TASKS[name])
    shown = [content["doc_to_visual"](row) for row in documents(content)[:4]]
    assert any(shown)
    assert all(picture.mode == "RGB" for pictures in shown for picture in pictures)
    missing = [not row["image"] for row in documents(content)[:4]]
    assert [not pictures for pictures in shown] == missing


def test_generation_is_that_of_the_programs():
    content = read("mini_gqa")["generation_kwargs"]
    tokens = RunSettings.max_new_tokens
    assert content == {"max_new_tokens": tokens, "temperature": 0, "do_sample": False}
