"""The shell scripts: what they run, from where, and what they say when something is missing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from llava.eval.benchmarks import BENCHMARKS
from llava.eval.compare.sweep import build_parser

from .programs import calls, run_script, value, write_recorder, write_replacing_python
from .test_mini_runs import cut_gqa

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "v1_5" / "eval" / "textvqa.sh"


@pytest.fixture
def user(tmp_path):
    """A user's folder with a checkpoint, data and a Python that records."""
    for folder in ("my models/llava-v1.5-7b", "data/train_images"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("llava_textvqa_val_v051_ocr.jsonl", "TextVQA_0.5.1_val.json"):
        (tmp_path / "data" / file).touch()
    write_recorder(tmp_path / "python")
    return tmp_path


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    ours = ("MODEL_PATH", "DATA", "PYTHON", "CUDA_VISIBLE_DEVICES")
    inherited = {k: v for k, v in os.environ.items() if k not in ours}
    env = inherited | {"CALLS": str(folder / "calls")} | environment
    return run_script(["bash", str(SCRIPT), *arguments], folder, env)


def run_user(user: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    relative = {"MODEL_PATH": "my models/llava-v1.5-7b", "DATA": "data", "PYTHON": "./python"}
    return run(user, *arguments, **relative, CALLS=str(user / "calls"), **more)


def test_answers_and_scores_from_any_folder(user):
    done = run_user(user, "64")
    assert done.returncode == 0, done.stderr
    answering, scoring = calls(user)
    answers = str(user / "data/answers/llava-v1.5-7b/autoprune/n_64.jsonl")
    assert answering[:3] == [f"cwd {ROOT}", "-m", "llava.eval.model_vqa_loader"]
    wanted = {
        "--model-path": str(user / "my models/llava-v1.5-7b"),
        "--question-file": str(user / "data/llava_textvqa_val_v051_ocr.jsonl"),
        "--image-folder": str(user / "data/train_images"),
        "--answers-file": answers,
        "--conv-mode": "vicuna_v1",
        "--visual-token-num": "576",
        "--target-token-num": "64",
    }
    assert {flag: value(answering, flag) for flag in wanted} == wanted
    assert scoring[1:3] == ["-m", "llava.eval.score"] and scoring[-1] == answers
    assert value(scoring, "--benchmark") == "textvqa"
    assert value(scoring, "--data") == str(user / "data")


def test_the_budget_may_be_a_share(user):
    assert run_user(user, "0.1").returncode == 0
    answering, _ = calls(user)
    assert value(answering, "--target-fraction") == "0.1"
    assert "--target-token-num" not in answering
    assert value(answering, "--answers-file").endswith("/autoprune/n_0.1.jsonl")


def test_the_users_flags_win(user):
    flags = ["--x0", "7", "--batch-size=8", "--method", "none", "--answers-file", "mine/a.jsonl"]
    assert run_user(user, "128", *flags).returncode == 0
    answering, scoring = calls(user)
    assert value(answering, "--x0") == "7" and "--batch-size=8" in answering
    assert value(answering, "--answers-file") == str(user / "mine/a.jsonl")
    assert scoring[-1] == str(user / "mine/a.jsonl")


@pytest.mark.parametrize("flags", [["--method", "none"], ["--method=none"]])
def test_answers_of_each_method_have_their_folder(user, flags):
    assert run_user(user, "64", *flags).returncode == 0
    assert calls(user)[1][-1] == str(user / "data/answers/llava-v1.5-7b/none/n_64.jsonl")


def test_questions_without_ocr_tokens_are_scored_as_what_they_are(user):
    (user / "mine").mkdir()
    (user / "mine" / "llava_textvqa_val_v051.jsonl").touch()
    (user / "data" / "llava_textvqa_val_v051_ocr.jsonl").unlink()
    flags = ["--question-file", "mine/llava_textvqa_val_v051.jsonl"]
    assert run_user(user, "64", *flags).returncode == 0
    answering, scoring = calls(user)
    assert value(answering, "--question-file") == str(user / flags[1])
    assert value(scoring, "--benchmark") == "textvqa-noocr"


@pytest.mark.parametrize("flags", [["--num-chunks", "4", "--chunk-idx", "2"],
                                   ["--num-chunks=4", "--chunk-idx=2"]])  # fmt: skip
def test_a_part_has_its_own_file_and_no_score(user, flags):
    done = run_user(user, "64", *flags)
    assert done.returncode == 0 and "A part is not scored" in done.stderr
    (answering,) = calls(user)
    path = value(answering, "--answers-file")
    assert path == str(user / "data/answers/llava-v1.5-7b/autoprune/n_64/4_2.jsonl")
    assert (value(answering, "--num-chunks"), value(answering, "--chunk-idx")) == ("4", "2")


@pytest.mark.parametrize(
    "tokens", [[], ["0"], ["0.0"], ["1.5"], ["-3"], ["many"], ["--method"], ["6 4"]]
)
def test_wrong_tokens_give_the_usage(user, tokens):
    done = run_user(user, *tokens)
    assert done.returncode == 2 and "usage: bash" in done.stderr and "TOKENS" in done.stderr
    assert not (user / "calls").exists()


def test_missing_data_says_where_to_get_it(tmp_path):
    absent = {"MODEL_PATH": "./no-model", "DATA": "./no-data"}
    done = run(tmp_path, "64", **absent)
    assert done.returncode == 2
    for text in (
        *("liuhaotian/llava-v1.5-7b", "eval.zip", "TextVQA_0.5.1_val.json", "textvqa.org"),
        *("train_val_images.zip", "bash scripts/demo.sh", "MODEL_PATH"),
    ):
        assert text in done.stderr


def test_a_model_may_be_a_name_on_the_hub(user):
    done = run_user(user, "64", "--visual-token-num", "288")
    assert done.returncode == 0
    hub = {"MODEL_PATH": "liuhaotian/llava-v1.5-13b", "DATA": "data", "PYTHON": "./python"}
    assert run(user, "64", **hub, CALLS=str(user / "calls")).returncode == 0
    assert value(calls(user)[2], "--model-path") == "liuhaotian/llava-v1.5-13b"


@pytest.mark.parametrize("flags", [[], ["--x0", "7"], ["--depth-layers=40", "--k0", "0.3"]])
def test_a_script_says_nothing_of_depths_and_curves_but_what_the_user_says(user, flags):
    """The defaults are the method's, and how depths scale is for the programs to decide."""
    (user / "my models/llava-v1.5-7b/config.json").write_text('{"num_hidden_layers": 12}')
    assert run_user(user, "64", *flags).returncode == 0
    answering = calls(user)[0]
    assert answering[len(answering) - len(flags) :] == flags
    of_methods = {"--x0", "--k0", "--gamma", "--beta", "--depth-layers"}
    given = {word.partition("=")[0] for word in answering}
    assert given & of_methods == {word.partition("=")[0] for word in flags} & of_methods


def test_the_demo_is_one_sweep(tmp_path):
    """In a copy whose .venv has a Python that records; installing is a call of it, too."""
    for name in ("scripts/demo.sh", "scripts/environment.sh", "scripts/constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    write_recorder(tmp_path / ".venv" / "bin" / "python")
    done = subprocess.run(
        ["bash", str(tmp_path / "scripts" / "demo.sh"), "--benchmarks", "pope"],
        env=os.environ | {"LIMIT": "6", "CALLS": str(tmp_path / "calls")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    install, sweep = calls(tmp_path)
    assert install[1:3] == ["-m", "pip"] and sweep[:3] == [
        f"cwd {tmp_path}",
        "-m",
        "llava.analysis.demo",
    ]
    at = sweep.index("--ask")
    picture, question = sweep[at + 1 : at + 3]
    assert (ROOT / picture).is_file() and question.endswith("?")
    args = build_parser(BENCHMARKS).parse_args([*sweep[3:at], *sweep[at + 3 :]])
    balanced = "autoprune:64@preset=balanced"
    assert args.runs == ["none", "autoprune:192,64,32", balanced, "uniform-grid:64", "no-image"]
    assert args.benchmarks == ["pope"]
    assert (args.limit, args.dtype, args.batch_size) == (6, "float32", 12)
    assert (args.x0, args.depth_layers) == (None, None)  # the sweep scales depths by itself
    assert (ROOT / args.model_path / "config.json").is_file() and (ROOT / args.data).is_dir()
    ignored = subprocess.run(["git", "check-ignore", str(args.out / "pope")], cwd=ROOT)
    assert ignored.returncode in (0, 128)  # 128: not a git checkout


@pytest.mark.parametrize(("status", "text"), [("3", "Repair their images"), ("130", "130")])
def test_incomplete_answers_are_not_scored(user, status, text):
    done = run_user(user, "64", ANSWERING=status)
    assert done.returncode == int(status)
    assert "Not scored" in done.stderr and text in done.stderr
    assert len(calls(user)) == 1


def test_a_python_without_torch_is_named(user):
    (user / "python").write_text("#!/bin/sh\nexit 1\n")
    done = run_user(user, "64")
    assert done.returncode == 2 and "has no torch" in done.stderr and "pip install" in done.stderr


def test_each_device_answers_a_part_and_the_parts_are_merged(user):
    done = run_user(user, "64", CUDA_VISIBLE_DEVICES="4,6,7")
    assert done.returncode == 0, done.stderr
    answering, scoring = calls(user)
    assert answering[1:5] == ["torchrun", "3", "-m", "llava.eval.model_vqa_loader"]
    answers = user / "data/answers/llava-v1.5-7b/autoprune/n_64.jsonl"
    assert value(answering, "--answers-file") == str(answers)  # parts are in n_64/3_<index>.jsonl
    assert "--num-chunks" not in answering
    assert scoring[2] == "llava.eval.score"


def test_one_device_answers_alone(user):
    assert run_user(user, "64", CUDA_VISIBLE_DEVICES="5").returncode == 0
    answering, _ = calls(user)
    assert answering[1:3] == ["-m", "llava.eval.model_vqa_loader"]
    assert "--num-chunks" not in answering


@pytest.mark.parametrize("flags", [["--num-chunks", "2"], ["--merge-chunks=2"]])
def test_a_part_is_not_split_again(user, flags):
    assert run_user(user, "64", *flags, CUDA_VISIBLE_DEVICES="0,1").returncode == 0
    assert calls(user)[0][1:3] == ["-m", "llava.eval.model_vqa_loader"]


def test_a_part_that_fails_is_not_merged(user):
    done = run_user(user, "64", CUDA_VISIBLE_DEVICES="0,1", ANSWERING="3")
    assert done.returncode == 3 and "Not scored" in done.stderr
    assert len(calls(user)) == 1


@pytest.mark.parametrize("devices", ["0", "0,1"], ids=["alone", "two parts"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_script_is_handed_on_and_waited_for(user, number, devices):
    write_replacing_python(user / "python", "endless.py")
    count = len(devices.split(","))
    told = user / "calls"
    relative = {"MODEL_PATH": "my models/llava-v1.5-7b", "DATA": "data", "PYTHON": "./python"}
    script = subprocess.Popen(
        ["bash", str(SCRIPT), "64"],
        cwd=user,
        env=os.environ | relative | {"CUDA_VISIBLE_DEVICES": devices, "CALLS": str(told)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not told.exists() or told.read_text().count("begun") < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    script.send_signal(number)
    _, err = script.communicate(timeout=60)
    assert script.returncode == 130 and "Not scored" in err
    assert told.read_text().split() == ["begun"] * count + ["ended"] * count


def test_two_real_processes_answer_merge_and_score(user):
    """On CPU, where the devices are only numbers; the model is the stub."""
    cut_gqa(ROOT / "playground/data/mini/gqa", user / "gqa")
    write_replacing_python(user / "python", "launched.py")
    done = subprocess.run(
        ["bash", str(SCRIPT.with_name("gqa.sh")), "64"],
        cwd=user,
        env=os.environ
        | {"MODEL_PATH": "my models/llava-v1.5-7b", "DATA": "gqa", "PYTHON": "./python"}
        | {"CUDA_VISIBLE_DEVICES": "0,1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    answers = user / "gqa/answers/llava-v1.5-7b/autoprune/n_64.jsonl"
    assert [len(p.read_text().splitlines()) for p in sorted(answers.with_suffix("").glob("2_*l"))]
    indices = [json.loads(line)["metadata"]["index"] for line in answers.read_text().splitlines()]
    assert indices == list(range(len(indices))) and len(indices) >= 2
    assert json.loads(done.stdout.splitlines()[-1])["samples"] == len(indices)
