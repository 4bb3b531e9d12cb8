"""What a run does when images, the disk, memory, the user or the flags go wrong."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava.eval.model_vqa_loader import main
from llava.eval.run.answers import AnswerFile

from ..stub import (
    StubModel,
    command,
    essence,
    expected,
    read_answers,
    read_record,
    write_data,
)

ROOT = Path(__file__).parents[3]


# A process of its own whose fourth question ends it.
PROGRAM = """
import os, signal, sys, time
import llava.model.builder as builder
from llava.eval.model_vqa_loader import main
from tests.eval.stub import StubModel
def end(call):
    if call == 4: {end}
builder.load_pretrained_model = StubModel(end).load
sys.exit(main(sys.argv[1:]))
"""


def run_to_its_end(end: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("{end}", end), *arguments],
        cwd=ROOT,
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_signal_to_the_whole_group_does_not_look_like_a_crash(tmp_path):
    write_data(tmp_path, 12)
    # A third process sends it, and the image workers get it well before their parent does.
    end = (
        "parents = signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "os.system('kill -TERM -%d' % os.getpid()); time.sleep(0.5); "
        "signal.signal(signal.SIGTERM, parents); os.kill(os.getpid(), signal.SIGTERM)"
    )
    done = run_to_its_end(end, command(tmp_path, "--num-workers", "2"))
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert "Interrupted. 3 of 12 answers are safe" in done.stderr


def test_kill_9_loses_no_answer_and_leaves_no_worker_that_holds_them(tmp_path, use):
    """Image workers notice only after a while that their parent is gone. `kill_run` has more."""
    questions = write_data(tmp_path, 12)
    program = PROGRAM.replace("{end}", "os.kill(os.getpid(), signal.SIGKILL)")
    done = subprocess.run(
        [sys.executable, "-c", program, *command(tmp_path, "--num-workers", "2")],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL
    assert len(read_answers(tmp_path)) == 3 and read_record(tmp_path)["status"] == "running"
    use(StubModel())
    assert main(command(tmp_path)) == 0
    assert essence(read_answers(tmp_path)) == expected(questions)


def test_bad_images_are_recorded_and_tried_again(tmp_path, use, capsys):
    questions = write_data(tmp_path, 6)
    images = tmp_path / "images"
    (images / "1.png").unlink()
    data = (images / "2.png").read_bytes()
    (images / "2.png").write_bytes(data[: len(data) // 2])
    (images / "3.png").write_text("this is text")
    model = use(StubModel())
    assert main(command(tmp_path, "--batch-size", "2")) == 3
    assert [a["question_id"] for a in read_answers(tmp_path)] == ["q0", "q4", "q5"]
    errors = (tmp_path / "out" / "answers.errors.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in errors]
    assert [e["index"] for e in entries] == [1, 2, 3]
    assert entries[0]["question_id"] == "q1" and entries[0]["image"] == "1.png"
    assert all("png" in e["error"] for e in entries)
    out, err = capsys.readouterr()
    assert "3 of 6 questions have no answer" in err and "answers.errors.jsonl" in err
    summary = json.loads(out.splitlines()[-1])
    assert summary["status"] == "incomplete" and summary["counts"]["failed"] == 3

    for i in (1, 2, 3):
        Image.new("RGB", (40, 30)).save(images / f"{i}.png")
    model = use(StubModel())
    assert main(command(tmp_path)) == 0
    assert len(model.calls) == 3
    assert essence(read_answers(tmp_path)) == expected(questions)  # back in the file's order
    assert not (tmp_path / "out" / "answers.errors.jsonl").exists()
    assert read_record(tmp_path)["counts"]["failed"] == 0


def test_a_decompression_bomb_fails_alone(tmp_path, use, monkeypatch):
    write_data(tmp_path, 3)
    Image.new("1", (300, 300)).save(tmp_path / "images" / "1.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)
    use(StubModel())
    assert main(command(tmp_path)) == 3
    assert [a["question_id"] for a in read_answers(tmp_path)] == ["q0", "q2"]
    error = json.loads((tmp_path / "out" / "answers.errors.jsonl").read_text())["error"]
    assert "decompression bomb" in error


def test_a_checkpoint_that_cannot_prepare_images_is_not_the_images_fault(tmp_path, use, capsys):
    write_data(tmp_path)
    model = StubModel()
    model.config.image_aspect_ratio = "stretch"
    use(model)
    assert main(command(tmp_path)) == 2
    assert "stretch" in capsys.readouterr().err
    assert not (tmp_path / "out" / "answers.jsonl").exists()


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_says_so_and_continues(tmp_path, use, capsys, signal_number, workers):
    questions = write_data(tmp_path)
    signals = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    handlers = [signal.getsignal(number) for number in signals]
    use(StubModel(lambda call: call == 3 and os.kill(os.getpid(), signal_number)))
    assert main(command(tmp_path, "--num-workers", workers)) == 130
    assert [signal.getsignal(number) for number in signals] == handlers
    out, err = capsys.readouterr()
    assert "Interrupted" in err and "2 of 5 answers are safe" in err and "Traceback" not in err
    assert json.loads(out.splitlines()[-1])["status"] == "interrupted"
    assert read_record(tmp_path)["status"] == "interrupted"
    use(StubModel())
    assert main(command(tmp_path)) == 0
    assert essence(read_answers(tmp_path)) == expected(questions)


def test_an_interrupt_while_answers_are_written_waits_for_the_batch(tmp_path, use, monkeypatch):
    write_data(tmp_path)
    use(StubModel())
    original = AnswerFile.append

    def interrupted(self, position, answer):
        os.kill(os.getpid(), signal.SIGINT)
        original(self, position, answer)

    monkeypatch.setattr(AnswerFile, "append", interrupted)
    assert main(command(tmp_path, "--batch-size", "3")) == 130
    assert [a["question_id"] for a in read_answers(tmp_path)] == ["q0", "q1", "q2"]


def test_an_interrupt_while_the_model_loads(tmp_path, monkeypatch, capsys):
    write_data(tmp_path)

    def interrupted(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("llava.model.builder.load_pretrained_model", interrupted)
    assert main(command(tmp_path)) == 130
    assert "Interrupted" in capsys.readouterr().err
    assert not (tmp_path / "out" / "answers.jsonl").exists()


def test_a_full_disk_keeps_what_is_written(tmp_path, use, monkeypatch, capsys):
    questions = write_data(tmp_path)
    use(StubModel())

    class FullDisk:
        """`os` with room for 1,000 bytes; takes part of a line before it says that it is full."""

        room = 1000

        def __getattr__(self, name):
            return getattr(os, name)

        def write(self, fd, data):
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            taken = os.write(fd, data[: self.room])
            self.room -= taken
            return taken

    with monkeypatch.context() as full:
        full.setattr("llava.eval.run.linefile.os", FullDisk())
        assert main(command(tmp_path)) == 1
    answered = len(read_answers(tmp_path))
    assert 0 < answered < 5
    err = capsys.readouterr().err
    assert "No space left on device" in err and f"{answered} of 5 answers are safe" in err
    assert "same command" in err and "Traceback" not in err
    assert read_record(tmp_path)["status"] == "incomplete"
    use(StubModel())
    assert main(command(tmp_path)) == 0
    assert essence(read_answers(tmp_path)) == expected(questions)


def test_a_record_that_cannot_be_written_is_an_error(tmp_path, use, monkeypatch, capsys):
    write_data(tmp_path)
    use(StubModel())

    def refuse(self, *_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", refuse)
    assert main(command(tmp_path)) == 1
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError(
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")]
)  # fmt: skip
def test_out_of_memory_names_the_remedy(tmp_path, use, capsys, error):
    write_data(tmp_path)

    def fail(call):
        if call == 2:
            raise error

    use(StubModel(fail))
    assert main(command(tmp_path, "--batch-size", "2")) == 1
    err = capsys.readouterr().err
    assert "out of memory" in err and "smaller --batch-size" in err
    assert "2 of 5 answers are safe" in err
    assert read_record(tmp_path)["status"] == "incomplete"


def test_a_programming_error_keeps_its_traceback_and_the_answers(tmp_path, use):
    write_data(tmp_path)

    def fail(call):
        if call == 3:
            raise RuntimeError("a bug")

    use(StubModel(fail))
    with pytest.raises(RuntimeError, match="a bug"):
        main(command(tmp_path))
    assert len(read_answers(tmp_path)) == 2 and read_record(tmp_path)["status"] == "incomplete"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch-size", "0"), "batch_size must be at least 1"),
        (("--temperature", "-1"), "temperature must not be negative"),
        (("--temperature", "1e-30"), "temperature must be 0, which is greedy, or at least 1e-06"),
        (("--batch-size", "1000000000"), "batch_size must be at most 1,000,000"),
        (("--num-workers", "1000000000"), "num_workers must be at most 1,024"),
        (("--num_beams", "1000000"), "num_beams must be at most 1,024"),
        (("--max_new_tokens", "1000000000"), "max_new_tokens must be at most 1,000,000"),
        (("--seed", "1" + "0" * 30), "argument --seed: must be from"),
        (("--top_p", "nan"), "argument --top_p: expected a number, got 'nan'"),
        (("--target-token-num", "1e308"), "argument --target-token-num: expected a finite number"),
        (("--target-token-num", "1e400"), "argument --target-token-num: expected a finite number"),
        (("--set", "mi_layer=" + "9" * 20), "mi_layer must be a whole number of 64 bits"),
        (("--set", "mi_layer=" + "9" * 5000), "mi_layer must be int, got '999"),
        (("--top_p", "0"), "top_p must be above 0"),
        (("--load-4bit", "--load-8bit"), "exclude each other"),
        (("--set", "no_such_field=1"), "no_such_field"),
        (("--conv-mode", "vicuna_v9"), "invalid choice"),
        (("--temp", "0"), "unrecognized arguments"),
    ],
)
def test_wrong_flags_end_with_usage(tmp_path, capsys, flags, message):
    write_data(tmp_path, 1)
    with pytest.raises(SystemExit) as ended:
        main(command(tmp_path, *flags))
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_wrong_files_end_with_one_message(tmp_path, no_model, capsys):
    write_data(tmp_path, 1)
    no_model()
    assert main(command(tmp_path, "--question-file", str(tmp_path / "none.jsonl"))) == 2
    assert "none.jsonl not found" in capsys.readouterr().err
    assert main(command(tmp_path, "--image-folder", str(tmp_path / "nowhere"))) == 2
    assert "nowhere not found: give --image-folder" in capsys.readouterr().err
    assert not (tmp_path / "out" / "answers.jsonl").exists()
    assert main(command(tmp_path, "--num-chunks", "2", "--chunk-idx", "2")) == 2
    assert "--chunk-idx must be from 0 to 1" in capsys.readouterr().err
    assert main(command(tmp_path, "--answers-file", str(tmp_path))) == 2
    err = capsys.readouterr().err
    assert "error:" in err and "Traceback" not in err


def test_a_model_that_cannot_be_loaded_ends_with_its_message(tmp_path, monkeypatch, capsys):
    write_data(tmp_path, 1)

    def missing(*_, **__):
        raise FileNotFoundError("no config.json in stub-7b")

    monkeypatch.setattr("llava.model.builder.load_pretrained_model", missing)
    assert main(command(tmp_path)) == 2
    assert "error: no config.json in stub-7b" in capsys.readouterr().err
    assert not (tmp_path / "out" / "answers.jsonl").exists()
