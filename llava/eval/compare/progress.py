"""What a comparison has to do, and how far it is: a line for each run, or one live line for all."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from tqdm import tqdm

from ..benchmarks.base import Benchmark
from ..run.answers import QuestionSource
from ..run.settings import RunSettings
from .runs import PlannedRun


@dataclass(frozen=True)
class Task:
    """One run on one benchmark, and how many of its questions had no answer at the start."""

    benchmark: Benchmark
    planned: PlannedRun
    settings: RunSettings
    questions: QuestionSource
    left: int


class Steps:
    """Says on stderr which run of how many this is, and about how long the rest takes."""

    bar = None  # each run has its own

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._count = len(tasks)
        self._number = 0
        self._left = sum(task.left for task in tasks)
        self._answered = 0
        self._seconds = 0.0
        self._since = 0.0

    def begin(self, task: Task) -> None:
        self._number += 1
        self._since = perf_counter()
        about = f", about {duration(self._estimate())} left" if self._answered else ""
        print(
            f"[{self._number}/{self._count}] {task.benchmark.name}: {task.planned.name}{about}",
            file=sys.stderr,
            flush=True,
        )

    def end(self, task: Task, summaries: Sequence[Mapping[str, Any]], loading: float) -> None:
        """loading: seconds of them that went into the model, which no other run waits for."""
        self._left -= task.left
        for summary in summaries:
            if new := summary["counts"]["answered"] - summary["counts"]["resumed"]:
                self._answered += new
                self._seconds += perf_counter() - self._since - loading

    def close(self) -> None:
        """Nothing is open."""

    def _estimate(self) -> float:
        return self._left * self._seconds / self._answered


class LiveLine:
    """One line on stderr for all runs: what is being asked, how far it is, what is left."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        total = sum(len(task.questions) for task in tasks)
        left = sum(task.left for task in tasks)
        shown = "{desc:36.36} {n_fmt:>5} of {total_fmt} answers {bar:20} {remaining} left"
        # A log gets a line now and then, a terminal one that moves.
        pause = 0.1 if sys.stderr.isatty() else 10
        self.bar = tqdm(
            total=total, initial=total - left, bar_format=shown, mininterval=pause, smoothing=0.05
        )

    def begin(self, task: Task) -> None:
        self.bar.set_description_str(f"{task.benchmark.name}: {task.planned.name}", refresh=False)

    def end(self, task: Task, summaries: Sequence[Mapping[str, Any]], loading: float) -> None:
        """Nothing to add: the run has moved the bar."""

    def close(self) -> None:
        self.bar.set_description_str("all answered", refresh=False)
        self.bar.close()


def duration(seconds: float) -> str:
    """Such as `40 s`, `12 min`, `3.5 h`."""
    minutes = seconds / 60
    if minutes < 1.5:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
