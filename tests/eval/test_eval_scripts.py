"""The shell scripts: what they run, from where, and what they say when something is missing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "v1_5" / "eval" / "textvqa.sh"

# Stands in for Python: notes how it was called; ends as $ANSWERING says when asked to answer.
RECORDER = """#!/usr/bin/env bash
[[ $1 == -c ]] && exit 0
printf '%s\\n' "cwd $PWD" "$@" end >> "$CALLS"
[[ $2 == llava.eval.model_vqa_loader ]] && exit "${ANSWERING:-0}"
exit 0
"""


@pytest.fixture
def user(tmp_path):
    """A user's folder with a checkpoint, data and a Python that records."""
    for folder in ("my models/llava-v1.5-7b", "data/train_images"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("llava_textvqa_val_v051_ocr.jsonl", "TextVQA_0.5.1_val.json"):
        (tmp_path / "data" / file).touch()
    python = tmp_path / "python"
    python.write_text(RECORDER)
    python.chmod(0o755)
    return tmp_path


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("MODEL_PATH", "DATA", "PYTHON")}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        cwd=folder,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def run_user(user: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    relative = {"MODEL_PATH": "my models/llava-v1.5-7b", "DATA": "data", "PYTHON": "./python"}
    return run(user, *arguments, **relative, CALLS=str(user / "calls"), **more)


def calls(user: Path) -> list[list[str]]:
    text = (user / "calls").read_text()
    return [call.splitlines() for call in text.split("\nend\n") if call]


def value(call: list[str], flag: str) -> str:
    """What argparse takes: the last one given."""
    return call[len(call) - call[::-1].index(flag)]


@pytest.mark.parametrize("script", sorted(ROOT.glob("scripts/**/*.sh")), ids=lambda p: p.name)
def test_syntax(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


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
        "--temperature": "0",
        "--visual-token-num": "576",
        "--target-token-num": "64",
        "--x0": "14.9",
        "--k0": "0.4",
        "--gamma": "0.2",
    }
    assert {flag: value(answering, flag) for flag in wanted} == wanted
    assert scoring[1:3] == ["-m", "llava.eval.eval_textvqa"]
    assert value(scoring, "--result-file") == answers
    assert value(scoring, "--annotation-file") == str(user / "data/TextVQA_0.5.1_val.json")


def test_the_users_flags_win(user):
    flags = ["--x0", "7", "--batch-size=8", "--method", "none", "--answers-file", "mine/a.jsonl"]
    assert run_user(user, "128", *flags).returncode == 0
    answering, scoring = calls(user)
    assert value(answering, "--x0") == "7" and "--batch-size=8" in answering
    assert value(answering, "--answers-file") == str(user / "mine/a.jsonl")
    assert value(scoring, "--result-file") == str(user / "mine/a.jsonl")


@pytest.mark.parametrize("flags", [["--method", "none"], ["--method=none"]])
def test_answers_of_each_method_have_their_folder(user, flags):
    assert run_user(user, "64", *flags).returncode == 0
    path = value(calls(user)[1], "--result-file")
    assert path == str(user / "data/answers/llava-v1.5-7b/none/n_64.jsonl")


@pytest.mark.parametrize("tokens", [[], ["0"], ["-3"], ["many"], ["--method"], ["6 4"]])
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
