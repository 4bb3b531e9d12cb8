"""The first hour with real weights: four steps, and one report in Markdown.

    bash scripts/reproduce.sh --model-path models/llava-v1.5-7b

verify: `autoprune verify`. bench: the GPU report of `autoprune bench`. sample: TextVQA and POPE,
unpruned and with AutoPrune at 192, 128 and 64 tokens, on 500 questions each, drawn at random.
whole: the same on all questions of every benchmark that is in --data.

Says before each step how long it will take, by what was measured so far. The same command again
continues; a step that has ended well is not repeated. Several GPUs (CUDA_VISIBLE_DEVICES, else all)
share the runs. After each step OUT/report.md has everything up to then, with versions. Flags that
are not named below go to `autoprune verify`, `autoprune sweep` or both, to whom knows them.
Exit status: 0, or that of the first step that failed; after a failed `verify` nothing else is run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from llava.common import flags, json_files, program
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.benchmarks.base import Benchmark
from llava.eval.compare import sweep
from llava.eval.compare.progress import duration
from llava.eval.run.runner import EXIT_INTERRUPTED, EXIT_USAGE
from llava.model.builder import default_device

from . import gpu_report, reproduction
from . import verify as verifying

STEPS = ("verify", "bench", "sample", "whole")
RUNS = ("none", "autoprune:192", "autoprune:128", "autoprune:64")
BENCHMARKS_OF_SAMPLE = ("textvqa", "pope")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Relative paths are those of the caller, and what is in no flag is kept in
    `others`."""
    parser = argparse.ArgumentParser(
        prog=program.name("llava.analysis.reproduce"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    place = os.environ.get
    parser.add_argument("--model-path", default=place("MODEL_PATH") or "models/llava-v1.5-7b")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(place("DATA") or "playground/data/eval"),
        help="folder of the benchmarks' folders; default: $DATA, else playground/data/eval",
    )
    parser.add_argument("--out", type=Path, help="default: answers/first-hour in --data")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS, help="default: all")
    parser.add_argument(
        "--benchmarks",
        nargs="+",
        choices=list(BENCHMARKS),
        metavar="NAME",
        help="of sample and whole; default: textvqa pope, and all that are in --data",
    )
    parser.add_argument(
        "--questions", type=flags.whole(1), default=500, help="of each in sample; default: 500"
    )
    parser.add_argument(
        "--sample-seed", type=flags.whole(0), default=0, help="of their choice; default: 0"
    )
    parser.add_argument("--device", help="cuda or cpu; default: the best there is")
    parser.add_argument("--batch-size", type=flags.whole(1), default=1, help="default: 1")
    args, args.others = parser.parse_known_args(argv)
    for flag in (words[0] for words in _flags(args.others)):
        if not any(flag in known for known in _known().values()):
            parser.error(f"unrecognized argument: {flag}")
    caller = Path(os.environ.get("LLAVA_CALLER") or Path.cwd())
    if (caller / args.model_path).is_dir():
        args.model_path = str(caller / args.model_path)
    if (caller / args.data).is_dir():
        args.data = caller / args.data
    args.out = caller / args.out if args.out else args.data / "answers" / "first-hour"
    args.device = args.device or default_device()
    return args


@cache
def _known() -> dict[str, set[str]]:
    """The flags of the two programs that get what is not a flag of this one."""
    parsers = {"verify": verifying.build_parser(), "sweep": sweep.build_parser(BENCHMARKS)}
    return {
        name: {flag for action in parser._actions for flag in action.option_strings}
        for name, parser in parsers.items()
    }


def _flags(words: Sequence[str]) -> list[list[str]]:
    """Words of a command line, each flag with its values."""
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not groups:
            name, equals, value = word.partition("=")
            groups.append([name, value] if equals else [word])
        else:
            groups[-1].append(word)
    return groups


def passed_on(args: argparse.Namespace, name: str) -> list[str]:
    """What of the other flags `verify` or `sweep` knows."""
    known = _known()[name]
    return [word for words in _flags(args.others) if words[0] in known for word in words]


def devices(args: argparse.Namespace) -> list[str]:
    """The GPUs to share the runs, as CUDA_VISIBLE_DEVICES has them; one "" where there is none."""
    if args.device != "cuda":
        return [""]
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(index) for index in range(torch.cuda.device_count())] or [""]


def shares(
    names: Sequence[str], runs: Sequence[str], count: int
) -> list[tuple[Sequence[str], Sequence[str]]]:
    """(benchmarks, runs) of at most `count` processes, which have every pair once."""
    columns = min(count, len(runs))
    rows = min(count // columns, len(names))
    return [(names[i::rows], runs[j::columns]) for i in range(rows) for j in range(columns)]


def benchmarks_of(args: argparse.Namespace, step: str) -> dict[str, Benchmark]:
    """What a step asks: of `whole` one of each folder, as a sweep without --benchmarks.

    Raises FileNotFoundError, which says where it is from, for questions that are not there.
    """
    names = args.benchmarks or BENCHMARKS_OF_SAMPLE
    if step == "whole" and not args.benchmarks:
        first: dict[str, str] = {}
        for name, benchmark in BENCHMARKS.items():
            if benchmark.scored_here and (args.data / benchmark.folder).is_dir():
                first.setdefault(benchmark.folder, name)
        names = tuple(first.values())
    return {name: BENCHMARKS[name] for name in names}


def commands(args: argparse.Namespace, step: str) -> list[list[str]]:
    """What a step runs, a command for each process, behind `python -m`."""
    checkpoint = ["--model-path", args.model_path, "--device", args.device]
    if step == "verify":
        json_file = str(args.out / "verify.json")
        others = passed_on(args, "verify")
        return [["llava.analysis.verify", *checkpoint, "--json", json_file, *others]]
    if step == "bench":
        bench = ["llava.analysis.latency", "--gpu-report", str(args.out / "bench.md")]
        tiny = [] if args.device.startswith("cuda") else ["--shape", "tiny", "--repeats", "1"]
        return [[*bench, "--device", args.device, *tiny]]
    sample = ["--limit", str(args.questions), "--sample-seed", str(args.sample_seed)]
    fixed = ["llava.eval.compare.sweep", *checkpoint, "--batch-size", str(args.batch_size)]
    fixed += ["--data", str(args.data), "--out", str(args.out / step), *passed_on(args, "sweep")]
    fixed += sample if step == "sample" else []
    return [
        [*fixed, "--benchmarks", *names, "--runs", *runs]
        for names, runs in shares(list(benchmarks_of(args, step)), RUNS, len(devices(args)))
    ]


def expectation(args: argparse.Namespace, step: str) -> str:
    """How long a step will take, in words, and what that is known from."""
    if step == "verify":
        flags_of_verify = ["--model-path", args.model_path, *passed_on(args, step)]
        seconds = verifying.build_parser().parse_args(flags_of_verify).time_budget
        return f"loading, and at most {seconds:.0f} s"
    if step == "bench":
        return f"at most {gpu_report.SECONDS / 60:.0f} min"
    counts = {
        name: len(benchmark.load_questions(args.data / benchmark.folder))
        for name, benchmark in benchmarks_of(args, step).items()
    }
    seconds = {}
    if step == "sample":
        counts = {name: min(count, args.questions) for name, count in counts.items()}
    else:
        seconds = reproduction.seconds_of_answers(args.out / "sample")
    try:
        if seconds:
            source = "by the seconds an answer of the sample took"
            other = sum(seconds.values()) / len(seconds)
        else:
            source = "by the time to 20 tokens, which is more than these answers have"
            times = json_files.read(args.out / "verify.json")["seconds"]
            other = times["unpruned"]["all"] + (len(RUNS) - 1) * times["pruned"]["all"]
    except (OSError, ValueError, KeyError):
        return "nothing was measured yet"
    processes = len(commands(args, step))
    total = sum(count * seconds.get(name, other) for name, count in counts.items()) / processes
    where = f" on {processes} devices" if processes > 1 else ""
    return f"about {duration(total)}{where}, {source}, and loading"


def perform(args: argparse.Namespace, step: str) -> int:
    """Run a step's commands, one on each device; the status of the first that failed, or 0.

    What the first prints is shown, and what each prints is kept in OUT/<step>.log or
    <step>-<i>.log.
    """
    processes, logs = [], []
    lines, places = commands(args, step), devices(args)
    for i, line in enumerate(lines):
        log = args.out / (f"{step}-{i}.log" if i else f"{step}.log")
        environment = dict(os.environ)
        if len(places) > 1:
            environment["CUDA_VISIBLE_DEVICES"] = places[i]
        logs.append(log.open("w", encoding="utf-8"))
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", *line],
                stdout=logs[-1] if i else subprocess.PIPE,
                stderr=logs[-1] if i else None,
                env=environment,
                text=True,
            )
        )
    try:
        for text in processes[0].stdout or ():
            if not text.startswith("{"):  # the JSON at the end of most programs
                print(text, end="", flush=True)
            logs[0].write(text)
        statuses = [process.wait() for process in processes]
    except KeyboardInterrupt:
        for process in processes:
            process.terminate()  # a terminal tells them itself, `kill` does not
        for process in processes:
            process.communicate()
        return EXIT_INTERRUPTED
    finally:
        for log in logs:
            log.close()
    return next((status for status in statuses if status), 0)


def run_steps(args: argparse.Namespace, state: dict[str, Any]) -> int:
    """Do what is left to do; the exit status."""
    status = 0
    for step in (step for step in STEPS if step in args.steps):
        done = state["steps"].get(step, {})
        if done.get("status") == 0:
            say(f"[{step}] done already, in {duration(done['seconds'])}")
            continue
        expected = expectation(args, step)
        say(f"[{step}] {expected}")
        start = time.monotonic()
        code = perform(args, step)
        seconds = time.monotonic() - start
        say(f"[{step}] took {duration(seconds)}, exit status {code}")
        state["steps"][step] = {"status": code, "seconds": seconds, "expected": expected}
        save(args, state)
        if code == EXIT_INTERRUPTED:
            say("Interrupted; the same command continues.")
        elif code:
            say(f"[{step}] failed: docs/first-gpu-hour.md says what to do about it")
        status = status or code
        if code == EXIT_INTERRUPTED or (code and step == "verify"):
            break
    return status


def save(args: argparse.Namespace, state: Mapping[str, Any]) -> None:
    """Write how far it is, and the report of it."""
    (args.out / "steps.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    text = reproduction.document(args, state)
    (args.out / "report.md").write_text(text, encoding="utf-8")


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What a report has one of."""
    names = (
        "model_path",
        "benchmarks",
        "questions",
        "sample_seed",
        "device",
        "batch_size",
        "others",
    )
    return {name: getattr(args, name) for name in names} | {"data": str(args.data)}


def say(message: str) -> None:
    """Print a line at once."""
    print(message, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see the module for the status."""
    args = parse(argv)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        settings, file = settings_of(args), args.out / "steps.json"
        state = json_files.read(file) if file.is_file() else {"settings": settings, "steps": {}}
        if state.get("settings") != settings:
            raise ValueError(f"{args.out} was begun with other settings; give another --out")
        for step in {"sample", "whole"}.intersection(args.steps):
            for benchmark in benchmarks_of(args, step).values():
                benchmark.load_questions(args.data / benchmark.folder)
        status = run_steps(args, state)
        save(args, state)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("Interrupted; the same command continues.", file=sys.stderr)
        return EXIT_INTERRUPTED
    say(f"Written: {args.out / 'report.md'}, which can be attached to an issue.")
    return status


if __name__ == "__main__":
    program.run(main)
