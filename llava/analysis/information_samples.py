"""Finished AutoPrune runs joined with what is known about their questions, one sample an answer.

A sweep folder has `<benchmark>/<run>.jsonl`, each with its run record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.common import json_files

from ..eval.run.record import COMPLETE, commits, read_record
from ..eval.run.settings import OLDER
from .question_metadata import Answered, read_answered


@dataclass(frozen=True)
class Sample:
    """An answer to a question about a picture.

    mi: mutual information of text and picture as the run measured it. n_text: tokens of the prompt
    that are not visual. target_patches: area of the smallest thing asked about, in patches.
    right: None where no reference answer is known. `image` is (benchmark, name): the prompts of two
    benchmarks differ, so questions of both are not compared even where the picture is the same.
    """

    image: tuple[str, str]
    mi: float
    n_text: int
    kind: str
    hops: int
    distractors: int | None
    target_patches: float | None
    right: bool | None


@dataclass(frozen=True)
class Run:
    """The samples of one benchmark; `text_only` questions have no picture and are not in them."""

    benchmark: str
    path: Path
    model_path: str | None
    merge_type: str | None
    processing: str
    pruner: dict[str, Any]
    samples: list[Sample]
    text_only: int
    git_commits: tuple[str, ...] = ()


def find_runs(out: Path, run: str | None) -> list[tuple[str, Path]]:
    """The answers of `run` in every benchmark of a sweep, as (benchmark folder, file).

    Without a name, the finished AutoPrune run that all benchmarks have and in which most visual
    tokens enter a layer; runs that prune nothing measure nothing and are passed over.

    Raises:
        FileNotFoundError: no sweep there, or a benchmark without that run.
        ValueError: no run of AutoPrune that all benchmarks have.
    """
    answers = {
        folder: {
            path.stem: path
            for path in sorted(folder.glob("*.jsonl"))
            if not path.name.endswith(".errors.jsonl")
        }
        for folder in sorted(path for path in out.glob("*") if path.is_dir())
    }
    answers = {folder: files for folder, files in answers.items() if files}
    if not answers:
        raise FileNotFoundError(f"{out} holds no sweep: expected files <benchmark>/<run>.jsonl.")
    if run is None:
        run = _largest(answers, out)
    for folder, files in answers.items():
        if run not in files:
            raise FileNotFoundError(f"{folder} has no run {run!r}, only {', '.join(files)}.")
    return [(folder.name, files[run]) for folder, files in answers.items()]


def load_run(name: str, answers_file: Path, data: Path) -> Run:
    """The samples of a run; `name` is the benchmark's or its folder's, `data` holds these folders.

    Raises:
        FileNotFoundError, ValueError: as `read_answered`, or no mutual information was measured.
    """
    answered_run = read_answered(name, answers_file, data)
    shown = [answered for answered in answered_run.answers if answered.question.image is not None]
    samples = [_sample(answered_run.benchmark.name, answered) for answered in shown]
    settings = answered_run.record["settings"]
    views = [settings.get(name, OLDER[name]) for name in ("merge_type", "processing")]
    model = settings.get("model_path"), *views
    pruner = settings.get("pruner") or {}
    text_only = len(answered_run.answers) - len(shown)
    code = tuple(commits([answered_run.record]))
    return Run(answered_run.benchmark.name, answers_file, *model, pruner, samples, text_only, code)


def require_comparable(runs: Sequence[Run]) -> None:
    """Raise a ValueError for two runs of a benchmark, or of other models or pruning settings."""

    def settings(run: Run) -> dict[str, Any]:
        # A record of an older version does not name what came later.
        names = {**runs[0].pruner, **run.pruner}
        pruner = {name: run.pruner.get(name, OLDER.get(f"pruner.{name}")) for name in names}
        views = {"merge_type": run.merge_type, "processing": run.processing}
        return {"model_path": run.model_path, **views, **pruner}

    first, *others = runs
    for other in others:
        old, new = settings(first), settings(other)
        if changed := sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k)):
            shown = ", ".join(f"{k} {old.get(k)!r} and {new.get(k)!r}" for k in changed)
            raise ValueError(
                f"{first.path} and {other.path} differ in {shown}. Their mutual information cannot "
                f"be compared: give runs of the same settings."
            )
    counts = Counter(run.benchmark for run in runs)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"more than one run of {', '.join(twice)}: give one for each benchmark.")


def _sample(benchmark: str, answered: Answered) -> Sample:
    question, answer, known, where = answered
    metadata, text = answer["metadata"], answer.get("text")
    complexity, n_text = metadata.get("complexity"), metadata.get("n_text")
    mi = complexity.get("mi") if isinstance(complexity, dict) else None
    if mi is None:
        raise ValueError(
            f"{where}: no mutual information for {question}. Only AutoPrune measures it, with the "
            f"indicator mutual_information and not where its budget holds all visual tokens: give "
            f"such a run of a smaller budget."
        )
    numbers = json_files.is_number(mi) and json_files.is_one_of(n_text, int)
    if not (numbers and json_files.is_number(n_text) and isinstance(text, str)):
        shown = " and ".join(map(json_files.shorten, (text, n_text, mi)))
        raise ValueError(
            f"{where}: expected text, and in metadata n_text and a finite complexity.mi, got "
            f"{shown}."
        )
    return Sample(
        image=(benchmark, known.get("image") or str(question.image)),
        mi=float(mi),
        n_text=n_text,
        kind=known["kind"],
        hops=known["hops"],
        distractors=known["distractors"],
        target_patches=known["target_patches"],
        right=answered.right,
    )


def _largest(answers: dict[Path, dict[str, Path]], out: Path) -> str:
    """The run with most tokens entering a layer, mean over benchmarks, of those that all have."""
    common = set.intersection(*(set(files) for files in answers.values()))
    entering = {}
    for run in sorted(common):
        records = [read_record(files[run]) for files in answers.values()]
        if all(map(_prunes, records)):
            entering[run] = sum(record["tokens"]["entering"] for record in records)
    if not entering:
        runs = "; ".join(f"{f.name}: {', '.join(files)}" for f, files in answers.items())
        raise ValueError(
            f"{out} has no finished AutoPrune run that prunes in all of its benchmarks ({runs}). "
            f"Name one with --run, or give the answer files of some benchmarks."
        )
    return max(entering, key=entering.__getitem__)


def _prunes(record: dict[str, Any]) -> bool:
    if record.get("status") != COMPLETE:
        return False
    tokens = record.get("tokens") or {}
    entering = tokens.get("entering") or 0
    autoprune = (record["settings"].get("pruner") or {}).get("method") == "autoprune"
    return autoprune and 0 < entering < (tokens.get("visual") or 0)
