"""Ctrl-C, SIGTERM and SIGHUP at any moment: programs end, with no word of Python's."""

from __future__ import annotations

import http.client
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llava.serve import cli, startup, viewer
from llava.serve.handler import ViewerServer

from .paths import DEMO, PICTURE
from .test_viewer import SMALL, b64

ROOT = Path(__file__).parents[2]
ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
BODY = json.dumps({"image": b64(SMALL), "question": "?", "method": "none"}).encode()
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("number", ALL)
@pytest.mark.parametrize("program", ["cli", "viewer"])
def test_a_signal_during_the_imports_ends_a_program(tmp_path, program, number) -> None:
    """In place of torch, which takes seconds, a module that sends the signal."""
    stub = f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(60)\n"
    (tmp_path / "torch.py").write_text(stub)
    done = subprocess.run(
        [sys.executable, "-m", f"llava.serve.{program}", "--model-path", "x"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


@pytest.mark.parametrize("program", [cli, viewer])
def test_a_signal_during_the_loading_ends_a_program(program, monkeypatch) -> None:
    handlers, before = [], [signal.getsignal(number) for number in ALL]

    def load(args, **_):
        handlers.extend(signal.getsignal(number) for number in ALL)
        raise ValueError("no such checkpoint")

    monkeypatch.setattr(program, "load", load)
    picture = ["--image-file", str(PICTURE)] if program is cli else []
    assert program.main(["--model-path", str(DEMO), *picture]) == 2
    assert handlers == [startup.leave_at_once] * 3
    assert [signal.getsignal(number) for number in ALL] == before


def test_a_program_under_nohup_stays() -> None:
    with startup.handling(startup.leave_at_once):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with startup.handling(startup.leave_at_once):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_nothing_is_handled() -> None:
    made = []
    thread = threading.Thread(target=lambda: made.append(startup.install(startup.leave_at_once)))
    thread.start()
    thread.join()
    assert made == [{}]


@pytest.mark.parametrize("number", ALL)
def test_a_signal_ends_the_viewer_and_its_answers(demo, endless, monkeypatch, capsys, number):
    """The answer under way stops, the threads are joined, and a second signal would leave."""
    servers: queue.Queue[ViewerServer] = queue.Queue()
    handlers = []

    class Observed(ViewerServer):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            servers.put(self)

        def server_close(self) -> None:
            handlers.extend(signal.getsignal(each) for each in ALL)
            super().server_close()

    def ask() -> None:
        connection = http.client.HTTPConnection(*servers.get(timeout=60).server_address[:2])
        idle = http.client.HTTPConnection(connection.host, connection.port)
        idle.connect()
        connection.request("POST", "/api/answer", BODY, JSON)
        assert endless.begun.wait(60)
        os.kill(os.getpid(), number)
        with pytest.raises(http.client.RemoteDisconnected):
            connection.getresponse()
        connection.close()
        idle.close()
        answered.set()

    answered = threading.Event()
    monkeypatch.setattr(viewer, "load", lambda args: demo)
    monkeypatch.setattr(viewer, "ViewerServer", Observed)
    before = set(threading.enumerate())
    thread = threading.Thread(target=ask)
    thread.start()
    flags = ["--model-path", str(DEMO), "--port", "0", "--max-new-tokens", str(endless.most)]
    with startup.handling(signal.default_int_handler):  # a viewer that does not handle it ends, too
        assert viewer.main(flags) == 0
    thread.join(60)
    assert answered.is_set() and endless.tokens.get_nowait() < endless.most
    assert handlers == [startup.leave_at_once] * 3
    assert {each for each in threading.enumerate() if "shutdown" not in each.name} <= before
    assert "Traceback" not in capsys.readouterr().err


def test_the_process_of_the_viewer_ends_cleanly_during_an_answer() -> None:
    """What only a process shows: the interpreter's end with a thread that was inside torch."""
    program = (
        "import sys; from llava.serve import viewer; load = viewer.load\n"
        "def endless(args):\n"
        "    loaded = load(args)\n"
        "    loaded.model.generation_config.eos_token_id = None\n"
        "    return loaded\n"
        "viewer.load = endless\n"
        "sys.exit(viewer.main(sys.argv[1:]))"
    )
    flags = ["--model-path", str(DEMO), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(
        [sys.executable, "-c", program, *flags, "--max-new-tokens", "1400"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            port = int(process.stdout.readline().split("/")[2].split(":")[1])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            connection.request("POST", "/api/answer", BODY, JSON)
            # One more request's answer: the thread of the first has begun by then.
            other = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            other.request("GET", "/api/settings")
            assert other.getresponse().read()
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 0
    assert [line for line in said.splitlines() if "x0" not in line] == []


def test_a_stdout_that_is_full_ends_the_viewer(demo, monkeypatch, capsys) -> None:
    monkeypatch.setattr(viewer, "load", lambda args: demo)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert viewer.main(["--model-path", str(DEMO), "--port", "0"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: stdout cannot be written to: ") and "No space left" in error
