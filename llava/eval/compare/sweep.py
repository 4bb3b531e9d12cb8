"""Runs a whole comparison and prints its table: every benchmark with every method and budget.

    python -m llava.eval.compare.sweep --model-path CHECKPOINT --data playground/data/eval \
        --out RUNS \
        --runs none no-image autoprune:192,128,64 random:64@seed=0 random:64@seed=1

A run is METHOD[:BUDGET[,BUDGET...]][@FIELD=VALUE,...]. Each is an ordinary run of
`llava.eval.model_vqa_loader` with its own answers OUT/<benchmark>/<run>.jsonl and run record: the
same command again continues, and leaves alone what is complete. The model is loaded once, and each
image is read and goes through the vision tower once for all runs that do not merge in it (see
--no-feature-cache), so prefill times are without it.
The last line of stdout is the table as JSON; it has what is complete. A run that its method
refuses, for a budget below its floor, is named on stderr with the reason, and so is one that has
questions without an answer. Exit status: that of model_vqa_loader of the first run that was not
completed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.common import flags, program

from ..benchmarks import BENCHMARKS
from ..benchmarks.base import Benchmark
from ..run.arguments import (
    CHECKPOINT,
    DECODING,
    HARDWARE,
    SPEED,
    Help,
    add_depth_argument,
    add_settings,
    settings_given,
)
from ..run.interruption import Interruption
from ..run.models import ModelOnce, layers_to_scale_to
from ..run.record import COMPLETE, FAILURES, RunRecord, sibling
from ..run.runner import (
    EXIT_COMPLETE,
    EXIT_INTERRUPTED,
    EXIT_SOME_FAILED,
    EXIT_STOPPED,
    EXIT_USAGE,
    run,
)
from ..run.settings import RunSettings
from ..run.subset import take
from ..run.watched import LOADING
from .progress import LiveLine, Steps, Task
from .report import add_output_arguments, report, start_logging
from .runs import (
    SHARED,
    PlannedRun,
    add_shared_arguments,
    parse_runs,
    runs_in_decoder,
    with_shared,
)


@dataclass(frozen=True)
class Outcome:
    """Exit status of a sweep, the answers of its whole runs, and how long it spent loading."""

    code: int
    complete: Sequence[Path] = ()
    loading_seconds: Mapping[str, float] = field(default_factory=dict)


def build_parser(benchmarks: Mapping[str, Benchmark]) -> argparse.ArgumentParser:
    """The command line; defaults are those of `RunSettings`."""
    parser = argparse.ArgumentParser(
        prog=program.name("llava.eval.compare.sweep"),
        description="Run a comparison of pruning methods on several benchmarks, and print its "
        "table. Run the same command again to continue.",
        formatter_class=Help,
        allow_abbrev=False,
    )
    comparison = parser.add_argument_group("comparison")
    add_settings(comparison, CHECKPOINT)
    comparison.add_argument(
        "--data", type=Path, required=True, help="folder of the benchmarks' folders"
    )
    comparison.add_argument("--out", type=Path, required=True, help="answers and records go here")
    comparison.add_argument(
        "--benchmarks",
        nargs="+",
        choices=list(benchmarks),
        metavar="NAME",
        help=f"of {', '.join(benchmarks)}; default: the first of each folder that is in --data",
    )
    comparison.add_argument(
        "--runs",
        nargs="+",
        default=["none", "autoprune:192,128,64"],
        metavar="METHOD[:BUDGET,...][@FIELD=VALUE,...]",
        help="what to compare",
    )
    add_settings(comparison, ["limit"])
    comparison.add_argument(
        "--sample-seed",
        type=flags.whole(0),
        metavar="SEED",
        help="draw the questions of --limit at random with this seed",
    )
    add_output_arguments(comparison)

    curve = parser.add_argument_group("settings of every run that has them and says no other")
    add_shared_arguments(curve)
    add_depth_argument(curve)
    # Benchmarks differ in how long an answer may be and in the prompt; a flag overrules them.
    decoding = parser.add_argument_group("prompt and decoding")
    add_settings(decoding, DECODING, max_new_tokens=None, conv_mode=None)
    add_settings(parser.add_argument_group("device and speed"), [*HARDWARE, *SPEED])
    cache = parser.add_argument_group("features of the vision tower")
    cache.add_argument("--no-feature-cache", action="store_true", help="encode images in each run")
    add_settings(cache, ["feature_cache_gb"], feature_cache_gb=2.0)
    return parser


def main(
    argv: Sequence[str] | None = None, benchmarks: Mapping[str, Benchmark] = BENCHMARKS
) -> int:
    """Run the command line and return its exit status."""
    start_logging()
    args = build_parser(benchmarks).parse_args(argv)
    with Interruption():
        try:
            outcome = run_all(args, benchmarks)
            if outcome.code in (EXIT_USAGE, EXIT_INTERRUPTED) or not outcome.complete:
                return outcome.code
            told = {"loading_seconds": outcome.loading_seconds}
            return report(outcome.complete, args, benchmarks, told) or outcome.code
        except KeyboardInterrupt:
            _say("Interrupted; the same command continues.")
            return EXIT_INTERRUPTED


def run_all(
    args: argparse.Namespace,
    benchmarks: Mapping[str, Benchmark],
    runs: Sequence[PlannedRun] | None = None,
    model: ModelOnce | None = None,
    *,
    live: bool = False,
) -> Outcome:
    """Do what the parsed command line asks for; `runs` are in place of its --runs.

    `model` may be loaded already. `live` shows one line for all runs, nothing of what went well.
    """
    model, read_before = model or ModelOnce(), LOADING.seconds
    try:
        shared = {name: getattr(args, name) for name in SHARED}
        runs = parse_runs(args.runs, shared) if runs is None else with_shared(runs, shared)
        tasks = list(tasks_of(args, benchmarks, runs))
    except (ValueError, OSError) as error:
        _say(f"error: {error}")
        return Outcome(EXIT_USAGE)
    try:
        code, problems = _answer(tasks, model, LiveLine(tasks) if live else Steps(tasks))
    except KeyboardInterrupt:
        _say("Interrupted between two runs; the same command continues.")
        return Outcome(EXIT_INTERRUPTED)
    seconds = {"files": LOADING.seconds - read_before, "model": model.seconds}
    if not live:
        _say(
            f"Loading took {seconds['files']:.1f} s for questions and annotations, "
            f"{seconds['model']:.1f} s for the model."
        )
    for problem in problems:
        _say(problem)
    complete = [task.settings.answers_file for task in tasks if _is_complete(task)]
    if code == EXIT_COMPLETE and len(complete) < len(tasks):
        gone = next(file for task in tasks if (file := task.settings.answers_file) not in complete)
        _say(f"error: {gone} was complete, and something else has changed it since.")
        code = EXIT_STOPPED
    return Outcome(code, complete, seconds)


def tasks_of(
    args: argparse.Namespace, benchmarks: Mapping[str, Benchmark], runs: Sequence[PlannedRun]
) -> Iterator[Task]:
    """Everything to do, checked as far as it can be without the model.

    Raises:
        ValueError, OSError: wrong flags, questions or annotations, or answers of other settings.
    """
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit must be at least 1, got {args.limit}.")
    runs = runs_in_decoder(runs, layers_to_scale_to(args), args.depth_layers)
    for benchmark in _chosen(args, benchmarks):
        folder = args.data / benchmark.folder
        whole = benchmark.load_questions(folder)
        questions = take(whole, args.limit, benchmark.group, args.sample_seed)
        # Annotations that are missing or wrong would otherwise come to light after the last answer.
        benchmark.score(folder, [], allow_missing=True)
        for planned in runs:
            settings = RunSettings(
                **settings_given(args)
                | {
                    "max_new_tokens": args.max_new_tokens or benchmark.max_new_tokens,
                    "conv_mode": args.conv_mode or benchmark.conv_mode,
                    "question_file": whole.path,
                    "image_folder": folder / benchmark.images,
                    "answers_file": args.out / benchmark.name / f"{planned.name}.jsonl",
                    "pruner": planned.pruner,
                    "limit": args.limit if questions is not whole else None,
                    "feature_cache_gb": None if args.no_feature_cache else args.feature_cache_gb,
                }
            )
            record = RunRecord(settings.answers_file, settings.to_dict(questions.sha256))
            left = 0 if record.status == COMPLETE else len(questions) - record.answered
            yield Task(benchmark, planned, settings, questions, left)


def _chosen(args: argparse.Namespace, benchmarks: Mapping[str, Benchmark]) -> list[Benchmark]:
    if args.benchmarks:
        return [benchmarks[name] for name in dict.fromkeys(args.benchmarks)]
    first: dict[str, Benchmark] = {}  # a folder may hold variants, whose scores would count twice
    for benchmark in benchmarks.values():
        if benchmark.scored_here:
            first.setdefault(benchmark.folder, benchmark)
    there = [first[folder] for folder in first if (args.data / folder).is_dir()]
    if not there:
        raise FileNotFoundError(f"{args.data} has none of the folders {', '.join(first)}.")
    return there


def _answer(
    tasks: Sequence[Task], model: ModelOnce, progress: Steps | LiveLine
) -> tuple[int, list[str]]:
    """Do the tasks in their order; the exit status of the first that was not completed, and lines
    about what is not in the table.

    One that fails does not keep the others from being done, unless the model cannot be loaded.
    """
    model.pruners = [task.planned.pruner for task in tasks]
    first_failure = EXIT_COMPLETE
    refused: list[str] = []
    holes: list[str] = []
    for task in tasks:
        progress.begin(task)
        before = model.seconds
        code, summaries = _perform(task, model, progress.bar)
        progress.end(task, summaries, model.seconds - before)
        first_failure = first_failure or code
        for summary in summaries:
            name = f"{task.benchmark.name}, {task.planned.name}"
            if summary.get("refusal"):
                refused.append(f"Refused: {name}: {summary['refusal']}.")
            elif code == EXIT_SOME_FAILED:
                listed = sibling(task.settings.answers_file, FAILURES)
                counts = summary["counts"]
                holes.append(
                    f"Left out: {name}: {counts['failed']} of {counts['questions']} questions "
                    f"have no answer, see {listed}."
                )
        if code in (EXIT_USAGE, EXIT_INTERRUPTED):
            break
    progress.close()
    if model.features_dropped:
        _say(
            f"The feature cache was full and dropped {model.features_dropped} images, which later "
            f"runs encoded again: a larger --feature-cache-gb saves that."
        )
    return first_failure, [*holes, *refused]


def _perform(task: Task, model: ModelOnce, bar: Any) -> tuple[int, list[dict[str, Any]]]:
    """Exit status of a run and its summary, none if it could not begin."""
    summaries: list[dict[str, Any]] = []
    told = summaries.append
    code = run(task.settings, lambda: task.questions, load=model, report=told, bar=bar)
    return code, summaries


def _record(task: Task) -> RunRecord:
    return RunRecord(task.settings.answers_file, task.settings.to_dict(task.questions.sha256))


def _is_complete(task: Task) -> bool:
    try:
        return _record(task).status == COMPLETE
    except (ValueError, OSError):  # its run has said what is wrong with it
        return False


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    program.run(main)
