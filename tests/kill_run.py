"""Not a test: kills answering runs again and again, and looks whether anything is lost.

    python -m tests.kill_run --seconds 20
    python -m tests.kill_run --kills 1000 --seed 3

A run of `model_vqa_loader` on the stub model is started, hit by SIGHUP, SIGINT, SIGTERM or SIGKILL
at a random moment (its process alone, or the whole group as from a terminal; now and then twice),
and started again by the same command, until it is left to finish: without and with image workers,
and as two shards that are merged. Processes are forked from this one, which has all imports behind
it, so a kill costs milliseconds; some are programs of their own, hit while they import.

After every kill: each whole line of the answers that was there is there byte for byte, no question
is answered twice, the record can be read, the exit status is right, stderr has no traceback and
nothing that Python ignored, and no worker stays. A finished run has the answers of an uninterrupted
one. Exit status: 0, or 1 with what was wrong; the files are kept then.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NoReturn

os.environ.setdefault("OMP_NUM_THREADS", "1")

import llava.eval.run.answering
import llava.eval.run.loading
import llava.model.builder
from llava.common.signals import EXIT_INTERRUPTED, begin_program
from llava.eval.model_vqa_loader import main as answer
from llava.eval.run.sharding import shard_file
from tests.eval.stub import StubModel, command, write_data

ROOT = Path(__file__).parents[1]
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
QUESTIONS = 60
KILLS_A_ROUND = 12
IMPORTING = 0.1  # share of the starts that are programs of their own
IN_IMPORTS = 1.5  # seconds that a program needs at least before it looks for its model
PATIENCE = 60.0  # seconds that a process may take to end
FOLLOWING = 4.0  # that workers may outlive it; torch's own watch alone takes 5
FORBIDDEN = ("Traceback", "Exception ignored", "memory")


class WrongError(Exception):
    """Something that must never happen."""


@dataclass
class Run:
    """One command and its answers file; `kept` are the whole lines that were seen in it."""

    arguments: list[str]
    file: Path
    kept: bytes = b""

    def look(self) -> None:
        """Raise WrongError unless what was there is there, once each, with a record."""
        content = self.file.read_bytes() if self.file.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if not whole.startswith(self.kept):
            raise WrongError(f"{self.file} has lost a line that was there")
        self.kept = whole
        answers = [json.loads(line) for line in whole.splitlines()]
        counts = Counter(a["metadata"]["index"] for a in answers)
        if any(count > 1 for count in counts.values()):
            raise WrongError(f"{self.file} answers a question twice: {counts.most_common(1)}")
        record = self.file.with_suffix(".run.json")
        if whole and "settings" not in json.loads(record.read_text()):
            raise WrongError(f"{record} has no settings")


@dataclass
class Started:
    """A process that leads its own group, and where its stderr goes."""

    pid: int
    stderr: Path
    importing: bool = False


@dataclass
class Tally:
    """What was done so far."""

    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    rounds: int = 0
    answers: int = 0

    @property
    def total(self) -> int:
        return sum(self.kills[s.name] for s in SIGNALS)


class Killer:
    """Starts runs in `folder`, kills them until the deadline, and looks at what they leave."""

    def __init__(self, folder: Path, seed: int, deadline: float) -> None:
        self.tally = Tally()
        self._deadline = deadline
        self._folder = folder
        self._random = random.Random(seed)
        self._groups: list[int] = []
        write_data(folder, QUESTIONS)
        self._expected = self._uninterrupted()

    def round(self, kind: str) -> None:
        """Kill the runs of one kind again and again, and let them finish."""
        self.tally.rounds += 1
        out = self._folder / f"{self.tally.rounds}_{kind}"
        whole = self._run(out / "answers.jsonl")
        if kind == "shards":
            chunks = [("--num-chunks", "2", "--chunk-idx", str(k)) for k in range(2)]
            files = [shard_file(whole.file, 2, k) for k in range(2)]
            runs = [self._run(f, *c, "--num-workers", "1") for f, c in zip(files, chunks)]
        else:
            runs = [self._run(whole.file, "--num-workers", "2" if kind == "workers" else "0")]
        for _ in range(KILLS_A_ROUND // len(runs)):
            if time.monotonic() < self._deadline:
                self._kill(runs, kind)
        self._finish(runs)
        if kind == "shards":
            whole.arguments += ["--merge-chunks", "2"]
            self._kill([whole], "merge")
            self._finish([whole])
        self._leave_no_worker()
        if self._essence(whole.file) != self._expected:
            raise WrongError(f"{whole.file} differs from an uninterrupted run's")
        self.tally.answers += QUESTIONS
        shutil.rmtree(out)

    def _run(self, file: Path, *more: str) -> Run:
        return Run([*command(self._folder, "--answers-file", str(file)), *more], file)

    def _uninterrupted(self) -> list[tuple]:
        run = self._run(self._folder / "uninterrupted.jsonl")
        self._finish([run])
        return self._essence(run.file)

    def _essence(self, file: Path) -> list[tuple]:
        answers = [json.loads(line) for line in file.read_bytes().splitlines()]
        return [
            (
                a["question_id"],
                a["prompt"],
                a["text"],
                a["metadata"]["index"],
                a["metadata"]["cost"],
            )
            for a in answers
        ]

    def _finish(self, runs: Sequence[Run]) -> None:
        for run, process in [(run, self._start(run)) for run in runs]:
            if (code := self._wait(process)) != 0:
                raise WrongError(f"the same command ended with {code}: {run.arguments}")
            run.look()

    def _kill(self, runs: Sequence[Run], kind: str) -> None:
        importing = self._random.random() < IMPORTING
        processes = [self._start(run, importing) for run in runs]
        longest = IN_IMPORTS if importing else 0.6
        time.sleep(longest * self._random.random() ** 2)
        number, group = self._random.choice(SIGNALS), self._random.random() < 0.5
        twice = self._random.random() < 0.1
        for process in processes:
            (os.killpg if group else os.kill)(process.pid, number)
        if twice:
            time.sleep(0.05 * self._random.random())
            for process in processes:
                (os.killpg if group else os.kill)(process.pid, signal.SIGTERM)
        told = [number.name, kind, *["group"] * group, *["twice"] * twice]
        told += ["in imports"] * importing
        right = {0, -number if number == signal.SIGKILL else EXIT_INTERRUPTED}
        if importing:
            # Before Python has come to this package, a signal does what it does to any program.
            right |= {1, 2, -number, -signal.SIGTERM}
        for run, process in zip(runs, processes):
            if (code := self._wait(process)) not in right:
                raise WrongError(f"{' '.join(told)}: ended with {code}, see {process.stderr}")
            run.look()
            if code not in (0, 1, 2):  # it had not ended by itself
                partly = 0 < run.kept.count(b"\n") < QUESTIONS
                self.tally.kills.update(told + ["between answers"] * partly)

    def _start(self, run: Run, importing: bool = False) -> Started:
        self.tally.starts += 1
        stderr = self._folder / f"stderr_{self.tally.starts % 100}.txt"
        with stderr.open("wb") as file:
            pid = (_program if importing else _fork)(run.arguments, file)
        self._groups.append(pid)
        return Started(pid, stderr, importing)

    def _wait(self, process: Started) -> int:
        """The exit status; negative: the signal that ended it."""
        deadline = time.monotonic() + PATIENCE
        while True:
            pid, status = os.waitpid(process.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                raise WrongError(f"process {process.pid} does not end")
            time.sleep(0.002)
        text = process.stderr.read_text(errors="replace")
        # Python's start is not ours, until this package has taken the signals.
        ours = str(ROOT / "llava") in text and "from .common import signals" not in text
        reached = ours or not process.importing
        if reached and (wrong := [words for words in FORBIDDEN if words in text]):
            raise WrongError(f"{wrong} in {process.stderr}:\n{text}")
        return os.waitstatus_to_exitcode(status)

    def _leave_no_worker(self) -> None:
        deadline = time.monotonic() + FOLLOWING
        while alive := _alive_in(self._groups):
            if time.monotonic() > deadline:
                raise WrongError(f"processes stay: {alive}")
            time.sleep(0.05)
        self._groups.clear()


def _program(arguments: list[str], stderr: BinaryIO) -> int:
    """Start the program itself, the leader of a group; its process id."""
    return subprocess.Popen(
        [sys.executable, "-m", "llava.eval.model_vqa_loader", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,
    ).pid


def _fork(arguments: list[str], stderr: BinaryIO) -> int:
    """Likewise, with its imports done."""
    # The child is born with the signals blocked, and takes them once it is a program.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    pid = os.fork()
    if pid == 0:
        _be_a_program(arguments, stderr)
    os.setpgid(pid, pid)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return pid


def _be_a_program(arguments: list[str], stderr: BinaryIO) -> NoReturn:
    """What python -m llava.eval.model_vqa_loader does after its imports."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(stderr.fileno(), 2)
        begin_program()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            code = answer(arguments)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def _alive_in(groups: Sequence[int]) -> list[int]:
    """The processes of these groups that are not mere zombies."""
    alive = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(group) in groups and state != "Z":
                alive.append(int(entry.name))
    return alive


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 1 if anything was lost or looked wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill_run", allow_abbrev=False)
    parser.add_argument("--seconds", type=float, help="kill no more after this time")
    parser.add_argument("--kills", type=int, help="stop after the round with this many")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.seconds is None and args.kills is None:
        parser.error("give --seconds or --kills")
    # Whoever starts this may ignore some, as nohup does; the runs must not inherit that.
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    llava.model.builder.load_pretrained_model = StubModel(lambda _: time.sleep(0.002)).load
    begin, kinds = time.monotonic(), ("alone", "workers", "shards")
    deadline = float("inf") if args.seconds is None else begin + args.seconds
    folder = Path(tempfile.mkdtemp(prefix="kill_run_"))
    killer = Killer(folder, args.seed, deadline)
    tally = killer.tally
    try:
        while time.monotonic() < deadline and (args.kills is None or tally.total < args.kills):
            killer.round(kinds[tally.rounds % len(kinds)])
    except WrongError as error:
        print(f"WRONG after {tally.total} kills (seed {args.seed}): {error}", file=sys.stderr)
        print(f"The files are in {folder}.", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    told = ", ".join(f"{count} {name}" for name, count in tally.kills.most_common())
    print(
        f"{tally.total} kills ({told}) in {time.monotonic() - begin:.0f} s: {tally.rounds} runs, "
        f"{tally.answers} answers, nothing lost."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
