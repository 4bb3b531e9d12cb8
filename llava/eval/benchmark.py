"""Answers a benchmark, then scores the answers or writes what somebody else scores.

    python -m llava.eval.benchmark NAME TOKENS [flags of the benchmark's answering program]

TOKENS is how many visual tokens to keep in each layer on average, or a share of those that the
picture has, such as 0.1. The checkpoint is --model-path or $MODEL_PATH, else models/<its name>; the
folder of the benchmark's files is --data or $DATA, else playground/data/eval/<folder>. What is
missing is named with where it comes from. With several devices in $CUDA_VISIBLE_DEVICES each
answers a part. Exit status: that of the answering program, then of the scoring one.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from llava.common import program
from llava.common.signals import EXIT_INTERRUPTED

from .benchmarks import BENCHMARKS, Benchmark
from .benchmarks.base import VISUAL_TOKENS, Split
from .run.launch import launch

_TOKENS = re.compile(r"[1-9][0-9]*|0?\.[0-9]*[1-9][0-9]*")
_HUB_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*/[A-Za-z0-9._-]+")
_OF_EACH_VIEW = re.compile(" --budget-per[= ]image ")
_EXIT_UNANSWERED = 3

# Flags of the answering program that are looked at here and passed on; True for paths.
_PASSED_ON = {
    "--method": False,
    "--num-chunks": False,
    "--chunk-idx": False,
    "--answers-file": False,
    "--question-file": True,
    "--image-folder": True,
    "--model-base": True,
    "--vision-tower": True,
}


@dataclass(frozen=True)
class Job:
    """One run of a benchmark: where everything lies, and the flags of the answering program."""

    benchmark: Benchmark
    split: Split
    model_path: str
    data: Path
    questions: Path
    images: Path
    answers: Path
    arguments: list[str]
    part: str  # of several, such as 4_2; empty for the whole

    def missing(self, checkpoint: str) -> str:
        """What is not there, each with its source; empty if everything is."""
        needed = {
            self.questions: self.split.questions,
            **{self.data / file.path: file for file in self.split.truth},
        }
        if self.split.images:
            needed[self.images] = self.split.images
        absent = {path: file.origin(self.data) for path, file in needed.items()}
        if not _HUB_NAME.fullmatch(self.model_path):
            absent = {
                Path(self.model_path): f"checkpoint {checkpoint} on the Hugging Face hub",
                **absent,
            }
        return "".join(
            f"  {path}\n      " + origin.replace("\n", "\n      ") + "\n"
            for path, origin in absent.items()
            if not path.exists()
        )

    def scoring(self) -> list[str]:
        """The program that scores the answers or writes the submission, and its arguments."""
        if self.split.scored_as:
            places = {
                "name": self.split.scored_as,
                "folder": self.data,
                "questions": self.questions,
                "answers": self.answers,
            }
            return [word.format(**places) for word in self.benchmark.scoring]
        upload = self.answers.with_name(self.answers.name.removesuffix(".jsonl") + ".upload.json")
        return [
            "llava.eval.score",
            "--benchmark",
            self.benchmark.name,
            "--data",
            str(self.data),
            "--question-file",
            str(self.questions),
            "--submission",
            str(upload),
            str(self.answers),
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status, 2 if something is missing."""
    words = sys.argv[1:] if argv is None else list(argv)
    args, others = _parse(words)
    job = _job(args, others)
    if missing := job.missing(args.checkpoint):
        print(
            f"Missing, and where to get it:\n{missing}\n"
            "MODEL_PATH and DATA (the folder of this benchmark) name other places. Without any of "
            "this, the\nembedded demo runs at once:\n  bash scripts/demo.sh",
            file=sys.stderr,
        )
        return 2
    if status := _answer(job):
        return status
    if job.part:
        index, count = job.part.split("_")[::-1]
        print(
            f"Part {index} of {count} is in {job.answers}. A part is not scored; when all are "
            f"there, --merge-chunks {count} in place of the two flags merges and scores them.",
            file=sys.stderr,
        )
        return 0
    return perform(*job.scoring())


def perform(module: str, *arguments: str) -> int:
    """Run a program of this package in this process; its exit status."""
    try:
        return import_module(module).main(list(arguments))
    except SystemExit as stop:  # of argparse
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _answer(job: Job) -> int:
    """Answer on one device or on each; says why there is no score unless every answer is there."""
    devices = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    merging = any(word.startswith("--merge-chunks") for word in job.arguments)
    if len(devices) > 1 and not (job.part or merging):
        status = launch(["-m", job.benchmark.program, *job.arguments], len(devices))
    else:
        status = perform(job.benchmark.program, *job.arguments)
    if status == _EXIT_UNANSWERED:
        print(
            "Not scored: some questions have no answer (see above). Repair their images, where "
            "these are the reason, and run this again, or score the others with --allow-missing "
            "of the scoring program.",
            file=sys.stderr,
        )
    elif status:
        print(f"Not scored: the answers are not complete (exit status {status}).", file=sys.stderr)
    return status


def _parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags that are looked at here, and the others as they are."""
    name = words[0] if words else ""
    benchmark = BENCHMARKS.get(name)
    script = os.environ.get("LLAVA_SCRIPT")
    called = f"bash {script}" if script else f"{program.name('llava.eval.benchmark')} NAME"
    answering = benchmark.program if benchmark else "the answering program"
    parser = argparse.ArgumentParser(
        usage=f"{called} TOKENS [flags of {answering}]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("tokens", type=_tokens, metavar="TOKENS")
    parser.add_argument(
        "--checkpoint",
        default=benchmark.checkpoint if benchmark else None,
        metavar="NAME",
        help="on the Hugging Face hub, of the checkpoint in models/ (default: the benchmark's)",
    )
    parser.add_argument("--model-path", help="folder of a checkpoint, or its name on the hub")
    parser.add_argument("--data", metavar="FOLDER", help="of the benchmark's files")
    passed_on = parser.add_argument_group("flags of the answering program that decide names here")
    for flag in _PASSED_ON:
        passed_on.add_argument(flag, metavar="")
    args, others = parser.parse_known_args(words)
    if words[1] != args.tokens:
        parser.error("TOKENS stands in front of all flags")
    return args, others


def _tokens(text: str) -> str:
    if not _TOKENS.fullmatch(text):
        raise argparse.ArgumentTypeError(
            "it is how many visual tokens to keep in each layer on average, a positive whole "
            f"number, or the share of those that the picture has, such as 0.1; got {text!r}"
        )
    return text


def _job(args: argparse.Namespace, others: list[str]) -> Job:
    benchmark: Benchmark = BENCHMARKS[args.name]
    given = {flag: vars(args)[flag[2:].replace("-", "_")] for flag in _PASSED_ON}
    given = {flag: value for flag, value in given.items() if value is not None}
    for flag, is_path in _PASSED_ON.items():
        if is_path and flag in given:
            given[flag] = _from_caller(given[flag])
    if "--answers-file" in given:
        given["--answers-file"] = str(_caller() / given["--answers-file"])

    named = args.model_path or os.environ.get("MODEL_PATH") or ""
    model_path = _from_caller(named) or str(
        Path.cwd() / "models" / args.checkpoint.rpartition("/")[2]
    )
    data = Path(
        _from_caller(args.data or os.environ.get("DATA") or "")
        or Path.cwd() / "playground/data/eval" / benchmark.folder
    )
    question_file = given.get("--question-file")
    split = benchmark.split_of(data, Path(question_file) if question_file else None)
    questions = Path(question_file or data / split.questions.path)
    images = Path(given.get("--image-folder") or data / (split.images.path if split.images else ""))
    part = ""
    if given.get("--num-chunks", "1") != "1":
        part = f"{given['--num-chunks']}_{given.get('--chunk-idx', '0')}"
    folder = data / "answers"
    if split.apart:
        folder /= questions.name.removesuffix(".jsonl")
    run = Path(model_path).name, given.get("--method", "autoprune"), f"n_{args.tokens}", part
    answers = Path(given.get("--answers-file") or f"{folder.joinpath(*filter(None, run))}.jsonl")
    places = {
        "--model-path": model_path,
        "--question-file": str(questions),
        "--image-folder": str(images),
        "--answers-file": str(answers),
    }
    arguments = [
        *(word for flag in places.items() for word in flag),
        *_protocol(benchmark, args.checkpoint),
        *_budget(benchmark, args.tokens, others),
        *benchmark.flags,
        *others,
        *(word for flag in given.items() for word in flag),
    ]
    return Job(benchmark, split, model_path, data, questions, images, answers, arguments, part)


def _protocol(benchmark: Benchmark, checkpoint: str) -> list[str]:
    """What the answering program cannot know: conversation, room for tokens, length of answers."""
    flags: list[str] = []
    if checkpoint in VISUAL_TOKENS:
        flags += ["--conv-mode", benchmark.conv_mode]
        flags += ["--visual-token-num", str(VISUAL_TOKENS[checkpoint])]
    of_program = Benchmark.max_new_tokens, Benchmark.program
    if benchmark.max_new_tokens != of_program[0] and benchmark.program == of_program[1]:
        flags += ["--max_new_tokens", str(benchmark.max_new_tokens)]
    return flags


def _budget(benchmark: Benchmark, tokens: str, others: list[str]) -> list[str]:
    if "." in tokens:
        return ["--target-fraction", tokens]
    shared = not _OF_EACH_VIEW.search(f" {' '.join(others)} ")
    return ["--target-token-num", str(int(tokens) * (benchmark.views if shared else 1))]


def _caller() -> Path:
    """Where paths that the user gives start: a script, which changes to its checkout, says it."""
    return Path(os.environ.get("LLAVA_CALLER") or Path.cwd())


def _from_caller(path: str) -> str:
    """The path from the user's folder if there is such a thing, else as it is (a hub name)."""
    here = _caller() / path
    return str(here) if path and here.exists() else path


if __name__ == "__main__":
    program.run(main)
