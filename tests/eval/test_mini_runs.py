"""A real run of a script for each mini benchmark: official files in, answers and a score out.

The files are those of playground/data/mini, cut to a few questions; the model is tiny and random,
so that what is checked is the way through every program and not what it answers.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llava.eval.benchmarks import BENCHMARKS, Benchmark, mmbench_rows

from ..checkpoints import write_original
from .programs import calls, perform, run_script, value, write_lines, write_recorder

ROOT = Path(__file__).parents[2]
MINI = ROOT / "playground" / "data" / "mini"


def cut_lines(source: Path, target: Path, keep: Callable[[list[dict]], list[dict]]) -> list[dict]:
    """A shorter JSON-lines question file."""
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    kept = keep(lines)
    write_lines(target, kept)
    return kept


def copy(name: str, source: Path, target: Path) -> None:
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / name, target / name)


def edit(name: str, source: Path, target: Path, change: Callable[[dict], dict]) -> None:
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    (target / name).write_text(json.dumps(change(json.loads((source / name).read_text()))))


def cut_vqav2(source: Path, target: Path) -> int:
    name, annotations = "llava_vqav2_mscoco_val2014.jsonl", "v2_mscoco_val2014_annotations.json"
    kept = cut_lines(source / name, target / name, lambda lines: lines[:2])
    ids = {line["question_id"] for line in kept}
    edit(annotations, source, target, lambda data: {
        "annotations": [e for e in data["annotations"] if e["question_id"] in ids]
    })  # fmt: skip
    for line in kept:
        copy(f"val2014/{line['image']}", source, target)
    return len(kept)


def cut_gqa(source: Path, target: Path) -> int:
    name = "llava_gqa_testdev_balanced.jsonl"
    kept = cut_lines(source / name, target / name, lambda lines: lines[-2:])
    ids = [line["question_id"] for line in kept]
    edit("data/testdev_balanced_questions.json", source, target, lambda data: {
        key: data[key] for key in ids
    })  # fmt: skip
    for line in kept:
        copy(f"data/images/{line['image']}", source, target)
    return len(kept)


def cut_textvqa(source: Path, target: Path) -> int:
    name = "llava_textvqa_val_v051_ocr.jsonl"
    kept = cut_lines(source / name, target / name, lambda lines: lines[:2])
    asked = {(line["question_id"], line["text"].split("\n")[0].lower()) for line in kept}
    edit("TextVQA_0.5.1_val.json", source, target, lambda data: {
        "data": [e for e in data["data"] if (e["image_id"], e["question"].lower()) in asked]
    })  # fmt: skip
    for line in kept:
        copy(f"train_images/{line['image']}", source, target)
    return len(kept)


def cut_pope(source: Path, target: Path) -> int:
    name, categories = "llava_pope_test.jsonl", ("adversarial", "popular", "random")
    kept = cut_lines(source / name, target / name, lambda lines: [
        next(line for line in lines if line["category"] == category) for category in categories
    ])  # fmt: skip
    shutil.copytree(source / "coco", target / "coco")
    for line in kept:
        copy(f"val2014/{line['image']}", source, target)
    return len(kept)


def cut_mme(source: Path, target: Path) -> int:
    kept = cut_lines(source / "llava_mme.jsonl", target / "llava_mme.jsonl", lambda lines: [
        line for line in lines if line["image"] == lines[0]["image"]
    ])  # fmt: skip
    picture = Path("MME_Benchmark_release_version") / kept[0]["image"]
    copy(str(picture), source, target)
    copy(str(picture.with_suffix(".txt")), source, target)
    return len(kept)


def cut_scienceqa(source: Path, target: Path) -> int:
    entries = json.loads((source / "llava_test_CQM-A.json").read_text())
    kept = [next(e for e in entries if bool(e.get("image")) is with_image)
            for with_image in (True, False)]  # fmt: skip
    target.mkdir()
    (target / "llava_test_CQM-A.json").write_text(json.dumps(kept))
    (target / "pid_splits.json").write_text(json.dumps({"test": [entry["id"] for entry in kept]}))
    copy("problems.json", source, target)
    copy(f"images/test/{kept[0]['image']}", source, target)
    return len(kept)


def cut_mmbench(source: Path, target: Path) -> int:
    name = "mmbench_dev_20230712.tsv"
    csv.field_size_limit(sys.maxsize)
    with (source / name).open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, delimiter="\t")
        rows = list(reader)
    base = {int(row["index"]) % mmbench_rows.ROTATION for row in rows[:1]}
    kept = [row for row in rows if int(row["index"]) % mmbench_rows.ROTATION in base]
    target.mkdir()
    with (target / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, reader.fieldnames, delimiter="\t")
        writer.writeheader()
        writer.writerows(kept)
    return len(kept)


# Name of the script, what cuts the benchmark's folder, and the benchmark.
RUNS = [
    ("vqav2", cut_vqav2, BENCHMARKS["vqav2"]),
    ("gqa", cut_gqa, BENCHMARKS["gqa"]),
    ("sqa", cut_scienceqa, BENCHMARKS["scienceqa"]),
    ("textvqa", cut_textvqa, BENCHMARKS["textvqa"]),
    ("pope", cut_pope, BENCHMARKS["pope"]),
    ("mme", cut_mme, BENCHMARKS["mme"]),
    ("mmbench", cut_mmbench, BENCHMARKS["mmbench"]),
]
BUDGET, VISUAL = 8, 16
# 14.9 * 3 / 32 = 1.396875: the checkpoint has three layers.
SCALED = "x0 14.9 is for 32 layers; this decoder has 3: 1.3968"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_original(tmp_path_factory.mktemp("models") / "llava-tiny")


def run(
    version: str, script: str, checkpoint: Path, data: Path, python: Path
) -> subprocess.CompletedProcess:
    tower = next(checkpoint.glob("openai/*"))  # the config names it relative to the working folder
    done = run_script(
        [
            *("bash", f"scripts/{version}/eval/{script}.sh", str(BUDGET)),
            *("--vision-tower", str(tower)),
            *("--batch-size", "3", "--dtype", "float32", "--device", "cpu", "--num-workers", "0"),
            *("--max_new_tokens", "3"),
        ],
        ROOT,
        os.environ
        | {"MODEL_PATH": str(checkpoint), "DATA": str(data), "PYTHON": str(python)}
        | {"CALLS": str(data.parent / "calls")},
    )
    assert done.returncode == 0, done.stderr
    return done


def check(data: Path, benchmark: Benchmark, count: int, output: str) -> None:
    (answers,) = data.glob(f"answers/**/llava-tiny/autoprune/n_{BUDGET}.jsonl")
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [line["metadata"]["index"] for line in lines] == list(range(count))
    for line in lines:
        with_image = line["metadata"]["n_visual"] == VISUAL
        assert with_image or benchmark.name == "scienceqa"
        leaving = line["metadata"]["cost"]["tokens_leaving"]
        assert leaving == pytest.approx(BUDGET if with_image else 0, abs=0.5)
    result = json.loads(output.splitlines()[-1])
    assert (result["benchmark"], result["metric"]) == (benchmark.name, benchmark.metric)
    assert (result["samples"], result["missing"]) == (count, 0)
    assert result[benchmark.metric] is not None


# The scripts for LLaVA-1.6 take 1.5's checkpoint too: its 16 tokens are fewer than their 2880.
@pytest.mark.parametrize("version", ["v1_5", "v1_6"])
@pytest.mark.parametrize(("script", "cut", "benchmark"), RUNS, ids=[run[0] for run in RUNS])
def test_what_the_script_runs(script, cut, benchmark, version, checkpoint, tmp_path, capsys):
    """The command lines of the script, one after the other in this process."""
    data = tmp_path / benchmark.folder
    count = cut(MINI / benchmark.folder, data)
    write_recorder(tmp_path / "python")
    run(version, script, checkpoint, data, tmp_path / "python")
    answering, scoring = calls(tmp_path)
    assert answering[0] == scoring[0] == f"cwd {ROOT}"
    assert value(answering, "--visual-token-num") == {"v1_5": "576", "v1_6": "2880"}[version]
    assert perform(answering) == 0
    assert SCALED in capsys.readouterr().err
    assert perform(scoring) == 0
    check(data, benchmark, count, capsys.readouterr().out)


def test_the_script_itself(checkpoint, tmp_path):
    script, cut, benchmark = RUNS[2]
    data = tmp_path / benchmark.folder
    count = cut(MINI / benchmark.folder, data)
    done = run("v1_5", script, checkpoint, data, Path(sys.executable))
    assert SCALED in done.stderr
    check(data, benchmark, count, done.stdout)
