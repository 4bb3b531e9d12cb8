"""Several processes: the parts are disjoint and complete, and the merge leaves no hole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava.eval.model_vqa_loader import main
from llava.eval.run.sharding import Launch, launched, process_device, shard_file

from ..stub import StubModel, command, essence, expected, read_answers, read_record, write_data

ROOT = Path(__file__).parents[3]


def _shard(folder: Path, count: int, index: int) -> Path:
    return shard_file(folder / "out" / "answers.jsonl", count, index)


def _answer(folder: Path, count: int, *indices: int) -> None:
    for index in indices or range(count):
        chunk = ("--num-chunks", str(count), "--chunk-idx", str(index))
        assert (
            main(command(folder, *chunk, "--answers-file", str(_shard(folder, count, index)))) == 0
        )


def _merge(folder: Path, count: int, *more: str) -> int:
    return main(command(folder, "--merge-chunks", str(count), *more))


@pytest.fixture
def data(tmp_path, use):
    """Five questions, and what one process answers and records about them."""
    questions = write_data(tmp_path)
    use(StubModel())
    assert main(command(tmp_path)) == 0
    whole = read_record(tmp_path)
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    return tmp_path, questions, whole


def test_the_parts_have_the_names_that_llava_gives_them() -> None:
    assert shard_file(Path("answers/n_64.jsonl"), 4, 3) == Path("answers/n_64/4_3.jsonl")


@pytest.mark.parametrize(
    ("given", "devices", "expected"),
    [
        (None, 2, "cuda:1"),
        ("cuda", 4, "cuda:3"),
        ("cuda:0", 4, "cuda:0"),
        ("cpu", 4, "cpu"),
        (None, 0, None),
    ],
)
def test_a_process_has_its_device(monkeypatch, given, devices, expected) -> None:
    current: list[int] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: devices > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: devices)
    monkeypatch.setattr("torch.cuda.set_device", current.append)
    assert process_device(Launch(rank=7, size=8, local_rank=3), given) == expected
    assert current == ([int(expected[-1])] if given in (None, "cuda") and devices else [])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_any_number_of_processes_gives_what_one_gives(data, count, capsys) -> None:
    folder, questions, whole = data
    _answer(folder, count)
    found = [
        json.loads(line)["metadata"]["index"]
        for index in range(count)
        for line in _shard(folder, count, index).read_text().splitlines()
    ]
    assert found == list(range(5))
    capsys.readouterr()
    assert _merge(folder, count) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["processes"] == count
    assert essence(read_answers(folder)) == expected(questions)
    record = read_record(folder)
    assert record["status"] == "complete"
    for key in ("counts", "tokens", "flops", "kv_bytes"):
        assert record[key] == whole[key]
    # Processes run side by side, so the slowest says how fast they were together.
    files = [_shard(folder, count, index).with_suffix(".run.json") for index in range(count)]
    seconds = [json.loads(file.read_text())["seconds"]["total"] for file in files]
    assert record["questions_per_second"] == pytest.approx(5 / max(seconds))
    assert record["seconds"]["total"] == pytest.approx(sum(seconds), abs=0.01)
    assert not list((folder / "out").glob("*.merging"))


def test_a_merged_run_is_a_run_like_any_other(data, no_model, capsys) -> None:
    folder, _, _ = data
    _answer(folder, 2)
    assert _merge(folder, 2) == 0
    no_model()
    assert main(command(folder)) == 0
    assert "already" in capsys.readouterr().err
    assert _merge(folder, 2) == 0  # again


def test_a_hole_is_named_and_nothing_is_merged(data, capsys) -> None:
    folder, _, _ = data
    _answer(folder, 2)
    file = _shard(folder, 2, 1)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:1]))
    assert _merge(folder, 2) == 2
    err = capsys.readouterr().err
    assert "2 of 5 questions have no answer: question 'q3' (line 4); question 'q4' (line 5)" in err
    assert not (folder / "out" / "answers.jsonl").exists()
    _answer(folder, 2, 1)  # the process continues by itself
    assert _merge(folder, 2) == 0


def test_a_process_that_never_ran_is_named(data, capsys) -> None:
    folder, _, _ = data
    _answer(folder, 3, 0, 2)
    assert _merge(folder, 3) == 2
    assert f"{_shard(folder, 3, 1)}, chunk 1 of 3, is not there" in capsys.readouterr().err


def test_parts_of_other_settings_are_refused(data, capsys) -> None:
    folder, _, _ = data
    _answer(folder, 2)
    assert _merge(folder, 2, "--target-token-num", "32") == 2
    assert "pruner.target_token_num: 64 in the record, 32.0 now" in capsys.readouterr().err
    assert not (folder / "out" / "answers.jsonl").exists()


def test_an_answer_twice_is_refused(data, capsys) -> None:
    folder, _, _ = data
    _answer(folder, 2)
    text = _shard(folder, 2, 0).read_text()
    _shard(folder, 2, 1).write_text(
        text.splitlines(keepends=True)[0] + _shard(folder, 2, 1).read_text()
    )
    assert _merge(folder, 2) == 2
    assert "2_1.jsonl, line 1: answers question 'q0' (line 1) again" in capsys.readouterr().err


def test_a_launcher_is_recognised_by_its_environment(monkeypatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert launched() is None
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launched() is None
    for name, value in (("WORLD_SIZE", "8"), ("RANK", "5"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert launched() == Launch(rank=5, size=8, local_rank=1)


def test_a_launcher_without_ranks_is_named(tmp_path, use, monkeypatch, capsys) -> None:
    write_data(tmp_path)
    use(StubModel())
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main(command(tmp_path))
    assert stopped.value.code == 2 and "RANK is not set" in capsys.readouterr().err


def test_a_launched_process_takes_no_chunks(tmp_path, use, monkeypatch, capsys) -> None:
    write_data(tmp_path)
    use(StubModel())
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        main(command(tmp_path, "--num-chunks", "2", "--chunk-idx", "0"))
    assert stopped.value.code == 2 and "no --num-chunks" in capsys.readouterr().err


def _launch(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_launched_processes_answer_and_merge(tmp_path) -> None:
    questions, count = write_data(tmp_path), 2
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(count))
    _launch(*launcher, str(ROOT / "tests/eval/launched.py"), *command(tmp_path))
    assert essence(read_answers(tmp_path)) == expected(questions)
    assert read_record(tmp_path)["processes"] == count
    assert all(_shard(tmp_path, count, index).is_file() for index in range(count))


def test_accelerate_says_who_a_process_is_as_torchrun_does(tmp_path, monkeypatch) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import json, os, pathlib, sys\n"
        "pathlib.Path(sys.argv[1], os.environ['RANK']).write_text(json.dumps(dict(os.environ)))\n"
    )
    # On CPU too, --multi_gpu is what makes it start several processes by itself.
    launcher = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
    alone = ("--main_process_port", "0", "--num_machines", "1", "--mixed_precision", "no")
    _launch(*launcher, *alone, str(program), str(tmp_path))
    for rank in range(2):
        for name, value in json.loads((tmp_path / str(rank)).read_text()).items():
            if name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
                monkeypatch.setenv(name, value)
        assert launched() == Launch(rank=rank, size=2, local_rank=rank)
