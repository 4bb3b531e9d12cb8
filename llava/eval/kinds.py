"""Which kinds of questions runs answer rightly, beside what the best single answer would get.

    python -m llava.eval.kinds OUT --runs none no-image [--by kind] [--data playground/data/mini]

OUT is a sweep, `<benchmark>/<run>.jsonl`. Right is an answer that equals the reference of the
metadata; a benchmark's own score may give points for less. *Best single answer* is the share of the
most frequent answer of the group, a letter in multiple choice; over all, of that of each group. A
run without pictures that does no better has learned nothing from language alone. Questions without
a picture or without a reference are left out.

Prints a Markdown table; the last line on stdout is everything as JSON. Needs no model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .complexity_samples import find_runs
from .question_metadata import Answered, read_answered

_ALL = "all"


@dataclass(frozen=True)
class Counts:
    """How many questions a group has, how many of them have its most frequent answer, and how many
    each run answers rightly."""

    questions: int
    single: int
    right: dict[str, int]

    def shares(self) -> dict[str, float | int]:
        """In percent, but for the number of questions."""
        counts = {"best single answer": self.single, **self.right}
        shares = {name: round(100 * n / self.questions, 1) for name, n in counts.items()}
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
    asked = {run: {a.question.index for a in answers} for run, answers in runs.items()}
    for run in others:
        if asked[run] != asked[first]:
            raise ValueError(f"{first} and {run} answer different questions: run both on the same.")
    references: dict[str, Counter[str]] = {}
    right: dict[str, Counter[str]] = {}
    for run, answers in runs.items():
        for answered in answers:
            if answered.question.image is None or answered.right is None:
                continue
            if by not in answered.known:
                raise ValueError(f"{answered.question} has no {by!r} in its metadata.")
            group = str(answered.known[by])
            right.setdefault(group, Counter())[run] += answered.right
            if run == first:
                references.setdefault(group, Counter())[answered.known["answer"]] += 1
    found = {
        group: Counts(
            answers.total(), max(answers.values()), {run: right[group][run] for run in runs}
        )
        for group, answers in sorted(references.items())
    }
    total = {run: sum(counts.right[run] for counts in found.values()) for run in runs}
    questions, single = (
        sum(getattr(counts, name) for counts in found.values()) for name in ("questions", "single")
    )
    return {_ALL: Counts(questions, single, total), **found} if found else {}


def table(found: Mapping[str, Mapping[str, Counts]]) -> str:
    """Counts by benchmark and group as a Markdown table of shares."""
    rows = [
        {"benchmark": benchmark, "": group, **counts.shares()}
        for benchmark, groups in found.items()
        for group, counts in groups.items()
    ]
    heads = list(rows[0]) if rows else []
    lines = [heads, ["---"] * len(heads), *([str(row[head]) for head in heads] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 2 on wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.kinds",
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
        for run in args.runs:
            for folder, path in find_runs(args.out, run):
                answers.setdefault(folder, {})[run] = read_answered(folder, path, args.data).answers
        found = {folder: count(runs, args.by) for folder, runs in answers.items()}
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{table(found)}\n")
    shares: dict[str, Any] = {
        folder: {group: counts.shares() for group, counts in groups.items()}
        for folder, groups in found.items()
    }
    print(json.dumps({"by": args.by, "benchmarks": shares}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
