"""Prints EVAL.md's table of files: `python -m llava.eval.benchmarks`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from itertools import groupby

from llava.common import program

from . import BENCHMARKS
from .base import Benchmark, File, Split

_COLUMNS = ("script", "folder", "questions", "pictures", "true answers", "scored")
_KINDS = ("questions", "images", "annotations")  # that the columns name


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table of all registered benchmarks."""
    name = program.name("llava.eval.benchmarks")
    argparse.ArgumentParser(prog=name, description=__doc__).parse_args(argv)
    print(table(BENCHMARKS.values()))
    return 0


def table(benchmarks: Iterable[Benchmark]) -> str:
    """What each split of the benchmarks needs, and who scores it: a line a split, in Markdown.

    A split that two benchmarks have stands at the first alone.
    """
    rows: dict[Split, str] = {}
    for benchmark in benchmarks:
        for split in reversed(benchmark.splits):
            rows.setdefault(split, _row(benchmark, split))
    lines = (f"| {' | '.join(cells)} |" for cells in (_COLUMNS, ["---"] * len(_COLUMNS)))
    return "\n".join([*lines, *rows.values()])


def _row(benchmark: Benchmark, split: Split) -> str:
    scored = f"by {split.submission.scorer}" if split.submission else "here"
    script = f"`{benchmark.script}`" if benchmark.script else "–"
    cells = (
        script,
        f"`{benchmark.folder}`",
        _cell([split.questions]),
        _cell([split.images]) if split.images else "in it",
        _cell(split.truth) or ("in it" if split.scored_as else "–"),
        scored,
    )
    return f"| {' | '.join(cells)} |"


def _cell(files: Iterable[File]) -> str:
    """The files, each source once."""
    return ", ".join(
        (f"{kind}: " if kind not in _KINDS else "")
        + ", ".join(f"`{file.path}`" for file in same)
        + f" ({source})"
        for (kind, source), same in groupby(files, key=lambda file: (file.kind, file.source))
    )


if __name__ == "__main__":
    program.run(main)
