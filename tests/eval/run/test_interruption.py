"""Signals at every moment: while Python imports, reads settings, answers, waits and tidies up."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from multiprocessing import active_children
from pathlib import Path

import pytest

from llava.eval.compare.sweep import main as sweep
from llava.eval.model_vqa_loader import main
from llava.eval.run import loading, sharding
from llava.eval.run.interruption import Interruption, ends_at_once

from ..stub import StubModel, command, read_answers, write_data

ROOT = Path(__file__).parents[3]
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _send(number: int) -> None:
    os.kill(os.getpid(), number)


def _python(program: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **more},
        capture_output=True,
        text=True,
        timeout=60,
        restore_signals=True,
    )


#: What Python is at while it looks for the module of `python -m llava.eval.score`.
STARTING = """
    import os, signal, sys
    signal.signal(signal.SIGHUP, {before})
    sys.argv[0], sys.orig_argv[1:] = "-m", ["-u", "-m", "llava.eval.score"]
    import llava
"""


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_program_that_imports_ends_with_one_line(number):
    program = (
        STARTING.format(before="signal.SIG_DFL")
        + f"""
    try:
        os.kill(os.getpid(), {int(number)})
    except:  # as many a package has around an import
        pass
    print("went on")
    """
    )
    done = _python(program)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_main_tidies_up_and_ends_with_one_line(number):
    program = (
        STARTING.format(before="signal.SIG_DFL")
        + f"""
    def main():
        try:
            os.kill(os.getpid(), {int(number)})
        finally:
            print("tidied up")
    main()
    """
    )
    done = _python(program)
    assert (done.returncode, done.stdout, done.stderr) == (130, "tidied up\n", "Interrupted.\n")


@pytest.mark.parametrize("within", ["Interruption()", "nullcontext()"])
def test_the_exit_status_is_that_of_the_program(tmp_path, within):
    """Python would end by SIGINT where the interrupt came out of an exec, as dataclasses use it."""
    program = f"""
    import os, signal, sys
    from contextlib import nullcontext
    from llava.eval.run.interruption import Interruption
    from llava.common.signals import begin_program
    begin_program()
    def main():
        try:
            with {within}:
                exec("os.kill(os.getpid(), signal.SIGTERM)")
        except KeyboardInterrupt:
            if {within!r} == "nullcontext()":
                raise
        return 130
    sys.exit(main())
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(program))
    done = subprocess.run(
        [sys.executable, "-m", "program"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 130


def test_an_interrupt_where_python_can_raise_nothing_ends_the_program():
    program = (
        STARTING.format(before="signal.SIG_DFL")
        + """
    class Kept:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
    def main():
        Kept()
        print("went on")
    main()
    """
    )
    done = _python(program)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_signal_at_pythons_very_end_does_not_change_the_status(number):
    program = (
        STARTING.format(before="signal.SIG_DFL")
        + f"""
    class Last:
        def __del__(self, kill=os.kill, pid=os.getpid()):
            kill(pid, {int(number)})
    sys.modules["kept to the end"] = Last()
    sys.exit(3)
    """
    )
    done = _python(program)
    assert (done.returncode, done.stderr) == (3, "")


def test_nohup_is_obeyed():
    program = (
        STARTING.format(before="signal.SIG_IGN")
        + """
    os.kill(os.getpid(), signal.SIGHUP)
    from llava.eval.run.interruption import Interruption
    with Interruption():
        os.kill(os.getpid(), signal.SIGHUP)
    print("went on")
    """
    )
    done = _python(program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")


@pytest.mark.parametrize(
    ("argv", "starting"),
    [
        (["python", "-m", "llava.eval.score"], True),
        (["python", "-Bum", "llava.eval.score"], True),
        (["python", "-m", "llava", "score"], True),
        (["python", "-m", "lmms_eval", "--model", "llava"], False),
        (["python", "-m", "pytest"], False),
    ],
)
def test_only_programs_of_this_package_take_the_signals(monkeypatch, argv, starting):
    from llava.common.signals import is_starting

    monkeypatch.setattr(sys, "argv", ["-m"])
    monkeypatch.setattr(sys, "orig_argv", argv)
    assert is_starting() is starting
    monkeypatch.setattr(sys, "argv", ["mine.py"])
    assert not is_starting()
    for program in (ROOT / "scripts" / "convert_gqa_for_eval.py", "bin/autoprune"):
        monkeypatch.setattr(sys, "argv", [str(program)])
        assert is_starting()


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_signal_while_settings_are_read(tmp_path, monkeypatch, capsys, number):
    write_data(tmp_path)
    where = "llava.eval.model_vqa_loader.settings_from"
    monkeypatch.setattr(where, lambda _: _send(number))
    assert main(command(tmp_path)) == 130
    assert "Interrupted; the same command continues." in capsys.readouterr().err


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_signal_while_a_sweep_prepares(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr("llava.eval.compare.sweep.parse_runs", lambda *_: _send(number))
    arguments = ["--model-path", "stub-7b", "--data", str(tmp_path), "--out", str(tmp_path)]
    assert sweep(arguments) == 130
    assert "Interrupted" in capsys.readouterr().err


def test_what_a_library_makes_of_an_interrupted_import_is_no_error(tmp_path, use, capsys):
    write_data(tmp_path)

    class Importing(StubModel):
        def load(self, *_, **__):
            try:
                _send(signal.SIGTERM)
            except KeyboardInterrupt:
                raise ImportError("initialization failed") from None

    use(Importing())
    assert main(command(tmp_path)) == 130
    err = capsys.readouterr().err
    assert "Interrupted before the first question" in err and "initialization" not in err


def test_a_worker_that_ends_with_the_others_is_no_shortage(tmp_path, use, capsys):
    write_data(tmp_path)

    def end(call: int) -> None:
        if call == 3:
            try:
                _send(signal.SIGHUP)
            except KeyboardInterrupt:
                raise RuntimeError("DataLoader worker (pid 7) is killed by signal") from None

    use(StubModel(end))
    assert main(command(tmp_path)) == 130
    err = capsys.readouterr().err
    assert "Interrupted. 2 of 5 answers are safe" in err and "memory" not in err


def test_only_the_first_signal_interrupts_and_the_others_wait():
    raised = []
    with Interruption() as stop:
        try:
            _send(signal.SIGINT)
        except KeyboardInterrupt:
            raised.append("first")
        _send(signal.SIGTERM)  # while something tidies up
        with pytest.raises(KeyboardInterrupt), stop.hold():
            raised.append("held")
    assert raised == ["first", "held"] and stop.seen


def test_an_interrupt_that_got_lost_is_raised_again(capsys):
    class Kept:
        def __del__(self):
            _send(signal.SIGINT)

    with Interruption() as stop:
        kept = [Kept()]
        kept.clear()
        gc.collect()
        with pytest.raises(KeyboardInterrupt), stop.hold():
            pass
    assert "ignored" not in capsys.readouterr().err


def test_a_signal_that_came_too_late_for_a_run_ends_what_is_around_it():
    with Interruption(), pytest.raises(KeyboardInterrupt), Interruption() as inner:
        inner.ignore()
        _send(signal.SIGTERM)
        assert inner.seen


@pytest.mark.skipif(sys.platform != "linux", reason="its mutex is 0 where Linux's is")
@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_process_that_waits_in_c_code_ends_at_once(number):
    """As one that waits for the other processes of a run."""
    done = _python(f"""
    import ctypes, os, threading
    from llava.eval.run.interruption import Interruption, ends_at_once
    with Interruption(), ends_at_once():
        threading.Timer(0.2, os.kill, (os.getpid(), {int(number)})).start()
        mutex = ctypes.create_string_buffer(64)
        for _ in range(2):  # the second never comes back
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
    """)
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")


def test_what_ends_at_once_ends_with_its_context():
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    with ends_at_once():
        pass
    with Interruption(), pytest.raises(KeyboardInterrupt):
        _send(signal.SIGTERM)
    assert signal.set_wakeup_fd(before) == before


def test_an_interrupted_part_does_not_wait_for_the_others(tmp_path, use, monkeypatch):
    write_data(tmp_path)
    told: list[str] = []

    class Processes:
        def init_process_group(self, *_, **__):
            told.append("met")

        def destroy_process_group(self):
            told.append("left")

    monkeypatch.setattr(sharding, "distributed", Processes())
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    use(StubModel(lambda call: _send(signal.SIGTERM) if call == 2 else None))
    assert main(command(tmp_path)) == 130
    assert told == ["met", "left"]


def test_a_part_that_others_left_is_not_merged(tmp_path, use, monkeypatch, capsys):
    write_data(tmp_path)

    class Processes:
        def init_process_group(self, *_, **__):
            pass

        def all_gather_object(self, codes, code):
            raise RuntimeError("Connection closed by peer")

        def destroy_process_group(self):
            pass

    monkeypatch.setattr(sharding, "distributed", Processes())
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    use(StubModel())
    assert main(command(tmp_path)) == 1
    assert "not merged, a process has ended; the same command" in capsys.readouterr().err
    assert not (tmp_path / "out" / "answers.jsonl").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_worker_whose_parent_is_gone_already_ends(monkeypatch):
    """It asks for its parent when that may have been killed, so it is told which it was."""
    monkeypatch.setattr(loading, "_LOOK", 0.01)
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    worker = os.fork()
    if worker == 0:
        loading._follow_the_parent(gone, 0)
        time.sleep(60)
        os._exit(0)
    _, status = os.waitpid(worker, 0)
    assert os.waitstatus_to_exitcode(status) == 1


def test_workers_are_told_their_parent_and_born_deaf(tmp_path, use, monkeypatch):
    """A signal to the group in the moment in which they start reaches only the parent."""
    write_data(tmp_path, 2)
    told: list[tuple] = []

    class Loader:
        def __init__(self, *_, worker_init_fn, **__):
            told.append(worker_init_fn.args)

        def __iter__(self):
            _send(signal.SIGTERM)  # raised only when all workers are there
            told.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
            return iter(())

    monkeypatch.setattr(loading, "DataLoader", Loader)
    use(StubModel())
    assert main(command(tmp_path)) == 130
    assert told[0] == (os.getpid(),) and set(ENDING) <= told[1]
    assert not set(ENDING) & signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_finished_run_leaves_no_worker(tmp_path, use):
    write_data(tmp_path)
    use(StubModel(lambda call: _send(signal.SIGINT) if call == 2 else None))
    assert main(command(tmp_path, "--num-workers", "2")) == 130
    gc.collect()
    assert not active_children() and len(read_answers(tmp_path)) == 1
