"""Which kinds of questions runs answer rightly, beside what needs no look at picture or question.

    python -m llava.analysis.kinds OUT \
        --runs none no-image [--by kind] [--data playground/data/mini]

OUT is a sweep, `<benchmark>/<run>.jsonl`. Right is an answer that equals the reference of the
metadata; a benchmark's own score may give points for less. *Best single answer* is the share of the
most frequent answer of the group, a letter in multiple choice; over all, of that of each group.
*Guessing* is one of the listed options at random. A run without pictures that does no better has
learned nothing from language alone. Questions without a picture or without a reference are left
out.

Prints a Markdown table; the last line on stdout is everything as JSON. Needs no model.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.common import json_files, program

from ..eval.compare.markdown import table as write_table
from ..eval.run.record import commits
from .information_samples import find_runs
from .question_metadata import Answered, read_answered

_ALL = "all"
_OPTION = re.compile(r"^[A-Z]\. ", re.MULTILINE)


@dataclass(frozen=True)
class Counts:
    """How many questions a group has, how many of them have its most frequent answer, how many are
    guessed on average (None where a question lists no options), and how many each run answers
    rightly."""

    questions: int
    single: int
    guessed: float | None
    right: dict[str, int]

    def shares(self) -> dict[str, float | int | None]:
        """In percent, but for the number of questions."""
        counts = {"best single answer": self.single, "guessing": self.guessed, **self.right}
        shares = {
            name: None if n is None else round(100 * n / self.questions, 1)
            for name, n in counts.items()
        }
        return {"questions": self.questions, **shares}


def count(runs: Mapping[str, Sequence[Answered]], by: str) -> dict[str, Counts]:
    """Count the right answers of runs to the same questions, by a field of the metadata.

    Args:
        runs: the answers by the name of the run.
        by: the field that groups them, as `kind`, `hops` or `unseen`.

    Returns:
        Counts by the value of the field, and over all of them first.

    Raises:
        ValueError: runs that answer different questions, or metadata without that field.
    """
    first, *others = runs
    questions = {run: {a.question.index for a in answers} for run, answers in runs.items()}
    for run in others:
        if questions[run] != questions[first]:
            raise ValueError(f"{first} and {run} answer different questions: run both on the same.")
    groups: dict[str, dict[str, list[Answered]]] = {}
    for run, answers in runs.items():
        for answered in answers:
            if answered.question.image is None or answered.right is None:
                continue
            if by not in answered.known:
                raise ValueError(f"{answered.question} has no {by!r} in its metadata.")
            value = json_files.shorten(answered.known[by])
            group = groups.setdefault(value, {name: [] for name in runs})
            group[run].append(answered)
    counts = {group: _count(answers) for group, answers in sorted(groups.items())}
    return {_ALL: _sum(list(counts.values())), **counts} if counts else {}


def _count(group: Mapping[str, Sequence[Answered]]) -> Counts:
    answers = next(iter(group.values()))
    listed = [len(_OPTION.findall(answered.question.text)) for answered in answers]
    return Counts(
        questions=len(answers),
        single=max(Counter(answered.known["answer"] for answered in answers).values()),
        guessed=sum(1 / n for n in listed) if all(listed) else None,
        right={run: sum(bool(a.right) for a in answers) for run, answers in group.items()},
    )


def _sum(parts: Sequence[Counts]) -> Counts:
    guessed = [part.guessed for part in parts]
    return Counts(
        questions=sum(part.questions for part in parts),
        single=sum(part.single for part in parts),
        guessed=None if None in guessed else sum(guessed),
        right={run: sum(part.right[run] for part in parts) for run in parts[0].right},
    )


def table(by_benchmark: Mapping[str, Mapping[str, Counts]]) -> str:
    """Counts by benchmark and group as a Markdown table of shares."""
    rows = [
        {"benchmark": benchmark, "": group, **counts.shares()}
        for benchmark, groups in by_benchmark.items()
        for group, counts in groups.items()
    ]
    heads = list(rows[0]) if rows else []
    cells = [["" if row[head] is None else str(row[head]) for head in heads] for row in rows]
    return write_table(heads, cells)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 2 on wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.analysis.kinds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="a sweep: <benchmark>/<run>.jsonl")
    parser.add_argument("--runs", nargs="+", required=True, help="of the sweep")
    parser.add_argument("--by", default="kind", help="field of the metadata (default: kind)")
    parser.add_argument(
        "--data", type=Path, default=Path("playground/data/mini"), help="the benchmarks' folders"
    )
    args = parser.parse_args(argv)
    try:
        answers: dict[str, dict[str, list[Answered]]] = {}
        records: list[dict[str, Any]] = []
        for run in args.runs:
            for folder, path in find_runs(args.out, run):
                answered = read_answered(folder, path, args.data)
                answers.setdefault(folder, {})[run] = answered.answers
                records.append(answered.record)
        by_benchmark = {folder: count(runs, args.by) for folder, runs in answers.items()}
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{table(by_benchmark)}\n")
    made_with = commits(records)
    if made_with:
        print(f"Made with git_commit {' and '.join(made_with)}.\n")
    shares: dict[str, Any] = {
        folder: {group: counts.shares() for group, counts in groups.items()}
        for folder, groups in by_benchmark.items()
    }
    print(json.dumps({"by": args.by, "git_commits": made_with, "benchmarks": shares}))
    return 0


if __name__ == "__main__":
    program.run(main)
