"""Scores the answers of any benchmark again, without a model.

    python -m llava.eval.score [--benchmark NAME --data FOLDER] ANSWERS.jsonl [--allow-missing]

FOLDER holds the benchmark's official files (playground/data/eval/<folder>). Answers with a run
record beside them need neither flag: the record names the questions. With --submission FILE the
answers are not scored but written as whoever scores them takes them. Prints the headline
metric, out of what a perfect model gets, and the other numbers of the score; rates are in percent.
The last line on stdout is the whole score as JSON, with the name of its headline as `metric`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.common import json_files, program

from .benchmarks import BENCHMARKS, Benchmark
from .benchmarks.scoring import answers_in
from .compare.results import find_benchmark
from .run.record import RECORD, read_record, sibling


def score_file(
    benchmark: Benchmark, folder: Path, answers_file: Path, *, allow_missing: bool = False
) -> dict[str, Any]:
    """The score of an answers file: `result_file`, `metric` and what the benchmark's score has.

    Raises:
        FileNotFoundError: no such answers file, data folder or file in it.
        ValueError: what the benchmark's score raises.
    """
    with answers_in(answers_file, f"scoring {{}} as {benchmark.title}") as answers:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"Data folder {folder} not found: expected the files of {benchmark.title}, as in "
                f"playground/data/eval/{benchmark.folder}."
            )
        result = benchmark.score(folder, answers, allow_missing=allow_missing)
    return {"result_file": str(answers_file), "metric": benchmark.metric, **result}


def recorded(answers_file: Path) -> tuple[str, Path]:
    """Name of the benchmark and its folder, by the run record beside the answers.

    Raises:
        ValueError: no record, or it names no benchmark's questions.
    """
    try:
        settings = read_record(answers_file)["settings"]
        where = f"{sibling(answers_file, RECORD)}, settings"
        json_files.check(settings, where, {"question_file": str})
        folder = Path(settings["question_file"]).parent
        return find_benchmark(answers_file, settings, folder.parent, BENCHMARKS).name, folder
    except ValueError as error:
        raise ValueError(f"give --benchmark and --data: {error}") from None


def write_submission(
    benchmark: Benchmark, folder: Path, answers_file: Path, target: Path, question_file: Path | None
) -> dict[str, Any]:
    """Write what whoever scores the answers takes, and tell about it; its counts and `file`.

    Raises:
        ValueError: the split of the questions is scored here; what is wrong with the answers.
        OSError: a file cannot be read or written.
    """
    split = benchmark.split_of(folder, question_file)
    if split.submission is None:
        raise ValueError(f"answers to {split.questions.path} are scored here: no --submission")
    with answers_in(answers_file) as answers:
        questions = question_file or folder / split.questions.path
        counts = split.submission.write(target, folder, questions, answers)
    print(split.submission.note.format(file=target), file=sys.stderr)
    return {**counts, "file": str(target)}


def describe(benchmark: Benchmark, result: dict[str, Any]) -> list[str]:
    """The score in lines to read: title, headline, counts and every other single number."""
    best = result.get("best", benchmark.best)
    value = result[benchmark.metric]
    headline = "none" if value is None else f"{value:.2f} of {best:g}"
    lines = [f"{benchmark.title}: {result['result_file']}", f"{benchmark.metric}: {headline}"]
    told = {"result_file", "metric", "benchmark", "best", benchmark.metric}
    for key, entry in result.items():
        if key in told or not isinstance(entry, (str, int, float)):
            continue
        lines.append(f"{key}: {entry:.2f}" if isinstance(entry, float) else f"{key}: {entry}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if everything was scored, 2 on wrong input."""
    parser = argparse.ArgumentParser(
        prog=program.name("llava.eval.score"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("answers", type=Path, metavar="ANSWERS.jsonl", help="answers to score")
    parser.add_argument("--benchmark", choices=BENCHMARKS)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="of the benchmark's files")
    parser.add_argument(
        "--allow-missing", action="store_true", help="score what is answered, ignore the rest"
    )
    parser.add_argument("--submission", type=Path, metavar="FILE", help="for whoever scores them")
    parser.add_argument("--question-file", type=Path, help="of a --submission, if not the folder's")
    args = parser.parse_args(argv)
    try:
        name, folder = args.benchmark, args.data
        if name is None or folder is None:
            recorded_name, recorded_folder = recorded(args.answers)
            name, folder = name or recorded_name, folder or recorded_folder
        benchmark = BENCHMARKS[name]
        if args.submission is not None:
            written = write_submission(
                benchmark, folder, args.answers, args.submission, args.question_file
            )
            print(json.dumps(written))
            return 0
        result = score_file(benchmark, folder, args.answers, allow_missing=args.allow_missing)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(describe(benchmark, result)))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    program.run(main)
