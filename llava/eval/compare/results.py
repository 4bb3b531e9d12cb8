"""One finished run as a comparison needs it: its benchmark, its score and its record."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..benchmarks.base import Benchmark
from ..benchmarks.scoring import answers_in
from ..run.record import COMPLETE, RECORD, read_record
from ..run.settings import OLDER

# How many answers or questions a metric is a mean of, where it is not every answer.
_COUNTED_BY = {"img_accuracy": "img_samples", "circular": "questions"}

# How many answers gave no letter, as MMBench's and ScienceQA's scores call it.
_UNPARSED = ("unparsed", "failed")

_NEEDED = {
    "settings": ("model_path", "question_file"),
    "pruner": ("method",),
    "counts": ("answered",),
    "tokens": ("entering", "leaving"),
    "flops": ("prefill", "scoring", "merging", "dense_prefill"),
    "kv_bytes": ("total", "dense"),
    "seconds": ("prefill",),
}

# The settings that the runs of a table share.
_SAME = (
    "model_path",
    "model_base",
    "vision_tower",
    "load_4bit",
    "load_8bit",
    "dtype",
    "conv_mode",
    "visual_token_num",
    "temperature",
    "top_p",
    "num_beams",
    "merge_type",
    "processing",
)


@dataclass(frozen=True)
class Result:
    """A run's record and its score on its benchmark."""

    answers_file: Path
    benchmark: Benchmark
    record: Mapping[str, Any]
    score: Mapping[str, Any]

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.record["settings"]

    @property
    def pruner(self) -> dict[str, Any]:
        return dict(self.settings["pruner"])

    @property
    def answered(self) -> int:
        return self.record["counts"]["answered"]

    @property
    def raw(self) -> float | None:
        """The headline number as the benchmark has it."""
        return self.score[self.benchmark.metric]

    @property
    def best(self) -> float:
        """What `raw` is for a perfect model."""
        return self.score.get("best", self.benchmark.best)

    @property
    def percent(self) -> float | None:
        """The headline number in percent of the best."""
        return None if self.raw is None else 100 * self.raw / self.best

    @property
    def unparsed(self) -> float | None:
        """The answers that give no letter and count as wrong, in percent; None where a benchmark
        asks for none."""
        for name in _UNPARSED:
            if name in self.score and self.score["samples"]:
                return 100 * self.score[name] / self.score["samples"]
        return None

    @property
    def counted(self) -> int:
        """How many questions the headline number is made of."""
        return self.score[_COUNTED_BY.get(self.benchmark.metric, "samples")]


def read_result(answers_file: Path, data: Path, benchmarks: Mapping[str, Benchmark]) -> Result:
    """Score a finished run against the benchmarks' folders in `data`.

    Raises:
        FileNotFoundError, ValueError: the run has no record, that of an older version or is not
            complete, its benchmark cannot be told, and what the scorer raises.
    """
    record = read_record(answers_file)
    if absent := list(_absent(record)):
        raise ValueError(
            f"the record of {answers_file} lacks {', '.join(absent)}: it is not that of a run, or "
            "an older version wrote it; run it again, into another file"
        )
    if record.get("status") != COMPLETE:
        raise ValueError(
            f"{answers_file} is {record.get('status')!r}: run the command that made it again, "
            "it continues"
        )
    benchmark = find_benchmark(answers_file, record["settings"], data, benchmarks)
    part = record["settings"].get("limit") is not None
    with answers_in(answers_file) as answers:
        score = benchmark.score(data / benchmark.folder, answers, allow_missing=part)
    return Result(answers_file, benchmark, record, score)


def _absent(record: Mapping[str, Any]) -> Iterator[str]:
    """What a comparison looks at and the record does not have, with dotted names."""
    groups = {**record, "pruner": record["settings"].get("pruner")}
    for group, names in _NEEDED.items():
        values = groups.get(group)
        if not isinstance(values, Mapping):
            yield group
            continue
        # A mean of nothing is null; nothing else is.
        null = group == "tokens"
        known = {name for name, value in values.items() if null or value is not None}
        yield from (f"{group}.{name}" for name in names if name not in known)


def find_runs(folder: Path) -> list[Path]:
    """The answers files with a run record in a folder, of all benchmarks, in natural order.

    Raises:
        FileNotFoundError: there is none.
    """
    files = [
        path.with_name(path.name.removesuffix(RECORD) + ".jsonl")
        for path in folder.rglob(f"*{RECORD}")
    ]
    if not files:
        raise FileNotFoundError(f"{folder} holds no runs: expected <benchmark>/<run>{RECORD} in it")
    return sorted(files)


def require_comparable(results: Sequence[Result]) -> None:
    """Raise a ValueError unless nothing but the pruning and the benchmark tells the runs apart."""
    for name in _SAME:
        _require_same(results, name)
    by_benchmark: dict[str, list[Result]] = {}
    for result in results:
        by_benchmark.setdefault(result.benchmark.name, []).append(result)
    for same in by_benchmark.values():
        for name in ("limit", "max_new_tokens", "question_sha256"):
            _require_same(same, name)


def _require_same(results: Iterable[Result], name: str) -> None:
    first: dict[str, Result] = {}
    for result in results:
        first.setdefault(json.dumps(result.settings.get(name, OLDER.get(name))), result)
    if len(first) > 1:
        shown = "; ".join(f"{value} in {result.answers_file}" for value, result in first.items())
        raise ValueError(f"these runs cannot stand in one table, their {name} differs: {shown}")


def find_benchmark(
    answers_file: Path,
    settings: Mapping[str, Any],
    data: Path,
    benchmarks: Mapping[str, Benchmark],
) -> Benchmark:
    """The one that the folder of the answers is named after, or that has the question file.

    Raises:
        ValueError: there is none.
    """
    if answers_file.parent.name in benchmarks:
        return benchmarks[answers_file.parent.name]
    question_file = Path(settings["question_file"])
    for benchmark in benchmarks.values():
        if benchmark.folder == question_file.parent.name:
            try:
                questions = benchmark.load_questions(data / benchmark.folder)
            except FileNotFoundError:  # of another variant of the benchmark
                continue
            if questions.path.name == question_file.name:
                return benchmark
    raise ValueError(
        f"{answers_file} answers {question_file}, which is no benchmark's question file in {data}. "
        f"Expected one of {', '.join(benchmarks)}, or answers in a folder of such a name."
    )
