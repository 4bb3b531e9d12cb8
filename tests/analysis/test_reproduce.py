"""The first hour: which steps are run and repeated, how long they are said to take, the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.analysis import reproduce, reproduction

PLAYGROUND = Path(__file__).parents[2] / "playground"
#: Prints the GPUs that it sees, and ends well.
GPUS = "import os; print('sees', os.environ.get('CUDA_VISIBLE_DEVICES'))"


@pytest.fixture
def flags(tmp_path, monkeypatch):
    """A command line on the embedded checkpoint and the mini benchmarks."""
    for name in ("MODEL_PATH", "DATA", "CUDA_VISIBLE_DEVICES", "LLAVA_CALLER"):
        monkeypatch.delenv(name, raising=False)
    model, data = PLAYGROUND / "demo" / "llava-demo", PLAYGROUND / "data" / "mini"
    return ["--model-path", str(model), "--data", str(data), "--out", str(tmp_path / "out"),
            "--device", "cpu", "--benchmarks", "textvqa", "--questions", "2"]  # fmt: skip


def python(text: str) -> list[str]:
    return ["timeit", "-n", "1", "-r", "1", text]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 64])
@pytest.mark.parametrize("names", [["textvqa"], ["textvqa", "pope"], list("abcdefg")])
def test_every_run_has_one_process(names, count):
    processes = reproduce.shares(names, reproduce.RUNS, count)
    pairs = [(name, run) for part, runs in processes for name in part for run in runs]
    assert sorted(pairs) == sorted((name, run) for name in names for run in reproduce.RUNS)
    assert min(count, 4) <= len(processes) <= count


def test_devices_are_those_that_are_visible(flags, monkeypatch):
    args = reproduce.parse([*flags[:-2], "--device", "cuda"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert reproduce.devices(args) == ["3", "5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert reproduce.devices(args) == ["0", "1"]
    lines = reproduce.commands(args, "whole")
    assert [line[line.index("--runs") + 1 :] for line in lines] == [
        ["none", "autoprune:128"], ["autoprune:192", "autoprune:64"]
    ]  # fmt: skip
    assert reproduce.devices(reproduce.parse(flags)) == [""]


def test_other_flags_go_to_the_program_that_knows_them(flags, capsys):
    others = ["--share-weights", "--dtype", "bfloat16", "--max_new_tokens=2", "--gamma", "-0.2"]
    args = reproduce.parse([*flags, *others])
    (verify,), (sweep,) = (reproduce.commands(args, step) for step in ("verify", "sample"))
    assert verify[-5:] == ["--share-weights", "--dtype", "bfloat16", "--gamma", "-0.2"]
    at = sweep.index("--dtype")
    assert sweep[at : at + 4] == ["--dtype", "bfloat16", "--max_new_tokens", "2"]
    assert "--share-weights" not in sweep
    for unknown in (["--share-weight"], ["2"]):
        with pytest.raises(SystemExit):
            reproduce.parse([*flags, *unknown])
        assert f"unrecognized argument: {unknown[0]}" in capsys.readouterr().err


def test_published_numbers_are_those_of_the_run():
    assert reproduction.published("textvqa", "none", None) == (
        58.2,
        reproduction.TABLES["1"].source,
    )
    assert (reproduction.published("textvqa", "autoprune", 64) or ())[:1] == (57.1,)
    assert (reproduction.published("pope", "none", None) or ())[:1] == (85.9,)
    assert reproduction.published("pope", "autoprune", 64) is None
    assert reproduction.published("textvqa", "autoprune", 63) is None


def test_steps_that_ended_well_are_not_repeated(flags, monkeypatch, capsys, tmp_path):
    steps: list[str] = []
    outcomes = {"bench": "1 / 0"}

    def commands(args, step):
        steps.append(step)
        return [python(outcomes.get(step, f"print('{step} of', {args.model_path!r})"))]

    monkeypatch.setattr(reproduce, "commands", commands)
    flags += ["--steps", "verify", "bench"]
    assert reproduce.main(flags) == 1
    out = capsys.readouterr().out
    assert "[verify] loading, and at most 120 s\nverify of" in out and "[bench] failed" in out
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| verify | ended well |" in text and "| bench | exit status 1 |" in text
    assert "verify of llava-demo" in text and str(PLAYGROUND) not in text
    outcomes.clear()
    assert reproduce.main(flags) == 0
    assert steps == ["verify", "bench", "bench"]
    assert "[verify] done already" in capsys.readouterr().out
    assert "exit status" not in (tmp_path / "out" / "report.md").read_text()
    assert reproduce.main([*flags, "--sample-seed", "3"]) == 2
    assert "begun with other settings" in capsys.readouterr().err


def test_nothing_else_is_run_where_the_package_is_wrong(flags, monkeypatch):
    steps: list[str] = []

    def commands(_, step):
        steps.append(step)
        return [python("raise SystemExit(1)")]

    monkeypatch.setattr(reproduce, "commands", commands)
    assert reproduce.main(flags) == 1 and steps == ["verify"]


def test_each_process_has_a_gpu(flags, monkeypatch, tmp_path):
    monkeypatch.setattr(reproduce, "devices", lambda _: ["3", "5"])
    monkeypatch.setattr(reproduce, "commands", lambda *_: [python(GPUS)] * 2)
    args = reproduce.parse(flags)
    args.out.mkdir()
    assert reproduce.perform(args, "bench") == 0
    assert (args.out / "bench.log").read_text().startswith("sees 3\n")
    assert (args.out / "bench-1.log").read_text().startswith("sees 5\n")


def test_questions_that_are_not_there_are_named_at_once(flags, capsys, tmp_path):
    flags[flags.index("--data") + 1] = str(tmp_path)
    assert reproduce.main(flags) == 2
    assert "llava_textvqa_val_v051_ocr.jsonl" in capsys.readouterr().err


def test_a_sample_says_how_long_the_whole_takes(flags, monkeypatch, tmp_path):
    monkeypatch.setattr(reproduce, "RUNS", ("none", "autoprune:64"))
    flags += ["--dtype", "float32", "--num-workers", "0", "--steps", "sample"]
    args = reproduce.parse(flags)
    args.out.mkdir()
    assert reproduce.expectation(args, "sample") == "nothing was measured yet"
    times = {"seconds": {"unpruned": {"all": 4.0}, "pruned": {"all": 2.0}}}
    (args.out / "verify.json").write_text(json.dumps(times))
    assert reproduce.expectation(args, "sample").startswith("about 12 s, by the time to 20 tokens")
    # 320 questions, 4 s unpruned and 2 s pruned.
    assert reproduce.expectation(args, "whole").startswith("about 32 min, by the time")
    assert reproduce.main(flags) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "2 questions, drawn at random with seed 0" in text
    rows = [line.split(" | ") for line in text.splitlines() if " ± " in line and line[0] == "|"]
    assert [(row[0], row[2]) for row in rows] == [
        ("| unpruned", "58.2"),
        ("| autoprune 64", "57.1"),
    ]
    assert all(row[-1].endswith(" ms |") for row in rows)
    said = reproduce.expectation(args, "whole")
    assert "by the seconds an answer of the sample took" in said and not said.startswith("about 32")
