"""Every script of scripts/v1_5/eval and scripts/v1_6/eval: what it needs, answers and scores."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from llava.eval.benchmarks import BENCHMARKS

from .programs import calls, run_script, value, write_recorder

ROOT = Path(__file__).parents[2]
LETTER = ("--single-pred-prompt",)


@dataclass(frozen=True)
class Script:
    """What a script is to do. `files` are what its folder must hold besides questions and images;
    `score` is a name of `llava.eval.score`, or a program of scripts/."""

    folder: str
    questions: str
    images: str
    files: tuple[str, ...]
    score: str
    program: str = "model_vqa_loader"
    prompt: tuple[str, ...] = ()
    split: str = ""


POPE = tuple(f"coco/coco_pope_{name}.json" for name in ("random", "popular", "adversarial"))
VAL2014 = "v2_mscoco_val2014_annotations.json"
TEST_DEV = "llava_vqav2_mscoco_test-dev2015"
SCRIPTS = {
    "vqav2": Script(
        *("vqav2", f"{TEST_DEV}.jsonl", "test2015", ("llava_vqav2_mscoco_test2015.jsonl",)),
        *("convert_vqav2_for_submission",),
        split=TEST_DEV,
    ),
    "gqa": Script(
        *("gqa", "llava_gqa_testdev_balanced.jsonl", "data/images"),
        *(("data/testdev_balanced_questions.json",), "gqa"),
    ),
    "vizwiz": Script(
        *("vizwiz", "llava_test.jsonl", "test", (), "convert_vizwiz_for_submission"),
        split="llava_test",
    ),
    "sqa": Script(
        *("scienceqa", "llava_test_CQM-A.json", "images/test"),
        *(("problems.json", "pid_splits.json"), "scienceqa", "model_vqa_science", LETTER),
    ),
    "textvqa": Script(
        *("textvqa", "llava_textvqa_val_v051_ocr.jsonl", "train_images"),
        *(("TextVQA_0.5.1_val.json",), "textvqa"),
    ),
    "pope": Script("pope", "llava_pope_test.jsonl", "val2014", POPE, "pope"),
    "mme": Script("MME", "llava_mme.jsonl", "MME_Benchmark_release_version", (), "mme"),
    "mmbench": Script(
        *("mmbench", "mmbench_dev_20230712.tsv", "", (), "mmbench"),
        *("model_vqa_mmbench", LETTER),
    ),
    "mmbench_cn": Script(
        *("mmbench_cn", "mmbench_dev_cn_20231003.tsv", "", (), "mmbench_cn"),
        *("model_vqa_mmbench", (*LETTER, "--lang", "cn")),
    ),
    "mmvet": Script(
        *("mm-vet", "llava-mm-vet.jsonl", "images", (), "convert_mmvet_for_eval", "model_vqa"),
    ),
}
# With the annotations of val in the folder, these are scored here.
VAL = {
    "vqav2": Script(
        *("vqav2", "llava_vqav2_mscoco_val2014.jsonl", "val2014", (VAL2014,), "vqav2"),
        split="llava_vqav2_mscoco_val2014",
    ),
    "vizwiz": Script(
        "vizwiz", "llava_val.jsonl", "val", ("val.json",), "vizwiz", split="llava_val"
    ),
}
CHECKPOINTS = {"v1_5": ("llava-v1.5", "576"), "v1_6": ("llava-v1.6-vicuna", "2880")}
LARGE = ("gqa", "mme", "pope", "textvqa", "vqav2")  # of which AutoPrune has a script for 13B
NAMES = [*((name, "7b") for name in SCRIPTS), *((name, "13b") for name in LARGE)]
EVERY = [(version, *name) for version in CHECKPOINTS for name in NAMES]


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of the scripts with a Python that records; no data, no models."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    write_recorder(folder / ".venv" / "bin" / "python")
    return folder


def run(
    checkout: Path, version: str, name: str, size: str, *flags: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    script = f"scripts/{version}/eval/{name}{'_13b' if size == '13b' else ''}.sh"
    inherited = {k: v for k, v in os.environ.items() if k not in ("MODEL_PATH", "DATA", "PYTHON")}
    env = inherited | {"CALLS": str(checkout / "calls")} | environment
    return run_script(["bash", script, *flags], checkout, env)


def put(folder: Path, script: Script) -> None:
    """Empty files and folders of the right names."""
    (folder / script.images).mkdir(parents=True)
    for name in (script.questions, *script.files):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()


def test_the_scripts_are_the_official_ones() -> None:
    for version in CHECKPOINTS:
        found = {path.name for path in (ROOT / "scripts" / version / "eval").iterdir()}
        assert found == {f"{name}.sh" for name in SCRIPTS} | {f"{name}_13b.sh" for name in LARGE}
    here = {script.score for script in (*SCRIPTS.values(), *VAL.values())} & BENCHMARKS.keys()
    of_scripts = [b for b in BENCHMARKS.values() if b.script in found]
    scored = {split.scored_as for b in of_scripts for split in b.splits if split.scored_as}
    assert here == scored - {"textvqa-noocr"}  # textvqa.sh with another --question-file


@pytest.mark.parametrize(("version", "name", "size"), EVERY)
def test_one_message_says_what_is_missing(checkout, version, name, size):
    script = SCRIPTS[name]
    done = run(checkout, version, name, size, "64")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("Missing, and where to get it") == 1
    data = checkout / "playground" / "data" / "eval" / script.folder
    checkpoint = f"{CHECKPOINTS[version][0]}-{size}"
    wanted = [str(checkout / "models" / checkpoint), str(data / script.questions)]
    wanted += [str(data / file) for file in script.files]
    wanted += [str(data / script.images)] if script.images else []
    # Each is followed by where it comes from, so the lines of paths are all there is to fetch.
    lines = done.stderr.splitlines()
    assert sorted(line.strip() for line in lines if line.startswith("  /")) == sorted(wanted)
    assert f"liuhaotian/{checkpoint} on the Hugging Face hub" in done.stderr
    assert not (checkout / "calls").exists()


def check_run(checkout: Path, version: str, name: str, size: str, script: Script) -> None:
    checkpoint, visual = CHECKPOINTS[version]
    model = checkout / "models" / f"{checkpoint}-{size}"
    model.mkdir(parents=True)
    data = checkout / "playground" / "data" / "eval" / script.folder
    put(data, script)
    done = run(checkout, version, name, size, "640", "--batch-size", "3", "--method=none")
    assert done.returncode == 0, done.stderr
    answering, last = calls(checkout)
    assert answering[:3] == [f"cwd {checkout}", "-m", f"llava.eval.{script.program}"]
    answers = data / "answers" / script.split / model.name / "none" / "n_640.jsonl"
    wanted = {
        "--model-path": str(model),
        "--question-file": str(data / script.questions),
        "--image-folder": str(data / script.images),
        "--answers-file": str(answers),
        "--conv-mode": "vicuna_v1",
        "--visual-token-num": visual,
        "--target-token-num": "640",
    }
    assert {flag: value(answering, flag) for flag in wanted} == wanted
    own = answering[3 + 2 * len(wanted) :]
    assert own == [*script.prompt, "--batch-size", "3", "--method", "none"]
    if script.score in BENCHMARKS:
        score = ["-m", "llava.eval.score", "--benchmark", script.score, "--data", str(data)]
        assert last[1:] == [*score, str(answers)]
    else:
        assert last[1:3] == ["-m", "llava.eval.score"]
        assert str(answers) in last and str(answers.with_suffix(".upload.json")) in last
        assert str(data / script.questions) in last


@pytest.mark.parametrize(("version", "name", "size"), EVERY)
def test_answers_then_scores_or_writes_the_submission(checkout, version, name, size):
    check_run(checkout, version, name, size, SCRIPTS[name])


@pytest.mark.parametrize("name", VAL)
def test_splits_with_annotations_are_scored_here(checkout, name):
    check_run(checkout, "v1_5", name, "7b", VAL[name])


@pytest.mark.parametrize("name", VAL)
def test_the_split_is_that_of_the_questions_asked(checkout, name):
    """Also with the files of both in the folder."""
    val, test = VAL[name], SCRIPTS[name]
    data = checkout / "mine"
    put(data, val)
    put(data, test)
    (data / "my_eval_of_test.jsonl").touch()
    asked = {val.questions: True, test.questions: False, "my_eval_of_test.jsonl": False}
    for questions, scored in asked.items():
        flags = ("64", "--question-file", f"mine/{questions}")
        done = run(checkout, "v1_5", name, "7b", *flags, DATA="mine", MODEL_PATH="a/b")
        assert done.returncode == 0, done.stderr
        answering, last = calls(checkout)[-2:]
        assert value(answering, "--question-file") == str(data / questions)
        assert value(answering, "--image-folder") == str(data / (val if scored else test).images)
        split = Path(questions).stem
        answers = str(data / "answers" / split / "b" / "autoprune" / "n_64.jsonl")
        assert value(answering, "--answers-file") == answers and answers in last
        assert last[1:3] == ["-m", "llava.eval.score"]
        assert ("--submission" in last) is not scored


@pytest.mark.parametrize("name", VAL)
def test_val_questions_need_their_annotations(checkout, name):
    script = VAL[name]
    data = checkout / "mine"
    put(data, script)
    (data / script.files[0]).unlink()
    flags = ("64", f"--question-file=mine/{script.questions}")
    done = run(checkout, "v1_5", name, "7b", *flags, DATA="mine", MODEL_PATH="a/b")
    assert done.returncode == 2 and not (checkout / "calls").exists()
    missing = [line.strip() for line in done.stderr.splitlines() if line.startswith("  /")]
    assert missing == [str(data / script.files[0])]


@pytest.mark.parametrize(("name", "file"), [("vqav2", VAL2014), ("vizwiz", "val.json")])
def test_annotations_without_questions_say_what_makes_these(checkout, name, file):
    data = checkout / "mine"
    data.mkdir()
    (data / file).touch()
    done = run(checkout, "v1_5", name, "7b", "64", DATA="mine")
    assert done.returncode == 2
    assert f"write_val_questions.py --benchmark {name} --dir {data}" in done.stderr
    assert "test2015" not in done.stderr and "llava_test" not in done.stderr


@pytest.mark.parametrize("name", ["vqav2", "mmvet"])
def test_incomplete_answers_are_not_submitted(checkout, name):
    put(checkout / "mine", SCRIPTS[name])
    done = run(checkout, "v1_5", name, "7b", "64", DATA="mine", MODEL_PATH="a/b", ANSWERING="3")
    assert done.returncode == 3 and "Not scored" in done.stderr
    assert len(calls(checkout)) == 1
