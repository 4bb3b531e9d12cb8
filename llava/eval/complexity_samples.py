"""Finished AutoPrune runs joined with what is known about their questions, one sample an answer.

A sweep folder has `<benchmark>/<run>.jsonl`, each with its run record. The benchmark's data folder
has, beside the official files, `metadata.jsonl`: a line for each question, in their order, with
`index`, `question_id`, `kind`, `hops`, `distractors` and `target_patches` (both may be null),
`answer` (a text, may be left out) and, where questions about one picture do not name it alike (the
rows of MMBench), `image`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .answer_normaliser import normalise
from .benchmarks import BENCHMARKS, Benchmark
from .linefile import read_lines
from .questions import Question
from .record import COMPLETE, read_record
from .settings import OLDER

METADATA = "metadata.jsonl"


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
    pruner: dict[str, Any]
    samples: list[Sample]
    text_only: int


def is_right(text: str, reference: str) -> bool:
    """Whether an answer is the reference, up to case, full stop, articles and spelt-out numbers."""
    if _plain(text) == _plain(reference):
        return True
    # The normaliser takes the option "A" for an article, so what is empty then is no agreement.
    return normalise(text) == normalise(reference) != ""


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
        FileNotFoundError: no answers, no metadata or no questions.
        ValueError: an unknown benchmark, a run without record, that is not complete or measured no
            mutual information, or answers and metadata that do not belong to the questions.
    """
    benchmark = _benchmark(name)
    if not answers_file.is_file():
        raise FileNotFoundError(f"Answer file {answers_file} not found.")
    record = read_record(answers_file)
    if record.get("status") != COMPLETE:
        raise ValueError(
            f"{answers_file} is {record.get('status')!r}, not {COMPLETE!r}: run the command that "
            f"made it again, it continues."
        )
    source = data / benchmark.folder
    loaded = benchmark.load_questions(source)
    questions = {q.index: q for q in (loaded[i] for i in range(len(loaded)))}
    known = read_metadata(source / METADATA, questions)
    samples, text_only, seen = [], 0, set()
    for number, _, answer in read_lines(answers_file):
        where = f"{answers_file}, line {number}"
        metadata = answer.get("metadata")
        index = metadata.get("index") if isinstance(metadata, dict) else None
        question = questions.get(index) if isinstance(index, int) else None
        asked = (answer.get("question_id"), answer.get("prompt"))
        if question is None or asked != (question.question_id, question.prompt):
            raise ValueError(
                f"{where}: no answer to a question of {source}: index {index!r}, question_id "
                f"{asked[0]!r}, prompt {str(asked[1])[:80]!r}. Was the run made with these files?"
            )
        if index in seen:
            raise ValueError(f"{where}: a second answer to {question}. Remove one of them.")
        seen.add(index)
        if question.image is None:
            text_only += 1
        else:
            samples.append(_sample(benchmark.name, question, answer, known[index], where))
    # Not all questions: a sweep may be limited to some of them.
    if len(seen) != (answered := (record.get("counts") or {}).get("answered")):
        raise ValueError(
            f"{answers_file} has {len(seen)} answers, but its run record counts {answered}. Give "
            f"the file as it was written."
        )
    settings = record["settings"]
    model = settings.get("model_path"), settings.get("merge_type", OLDER["merge_type"])
    pruner = settings.get("pruner") or {}
    return Run(benchmark.name, answers_file, *model, pruner, samples, text_only)


def require_comparable(runs: Sequence[Run]) -> None:
    """Raise a ValueError for two runs of a benchmark, or of other models or pruning settings."""

    def settings(run: Run) -> dict[str, Any]:
        # A record of an older version does not name what came later.
        names = {**runs[0].pruner, **run.pruner}
        own = {name: run.pruner.get(name, OLDER.get(f"pruner.{name}")) for name in names}
        return {"model_path": run.model_path, "merge_type": run.merge_type, **own}

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


def _sample(
    benchmark: str, question: Question, answer: dict[str, Any], known: dict[str, Any], where: str
) -> Sample:
    metadata, text, reference = answer["metadata"], answer.get("text"), known.get("answer")
    complexity, n_text = metadata.get("complexity"), metadata.get("n_text")
    mi = complexity.get("mi") if isinstance(complexity, dict) else None
    if mi is None:
        raise ValueError(
            f"{where}: no mutual information for {question}. Only AutoPrune measures it, with the "
            f"indicator mutual_information and not where its budget holds all visual tokens: give "
            f"such a run of a smaller budget."
        )
    if not (_is_number(mi) and isinstance(n_text, int) and isinstance(text, str)):
        raise ValueError(
            f"{where}: expected text, and in metadata n_text and a finite complexity.mi, got "
            f"{text!r}, {n_text!r} and {mi!r}."
        )
    return Sample(
        image=(benchmark, known.get("image") or str(question.image)),
        mi=float(mi),
        n_text=n_text,
        kind=known["kind"],
        hops=known["hops"],
        distractors=known["distractors"],
        target_patches=known["target_patches"],
        right=None if reference is None else is_right(text, reference),
    )


def read_metadata(path: Path, questions: dict[int, Question]) -> dict[int, dict[str, Any]]:
    """The lines of a metadata file by index, one for each of the questions.

    Raises:
        FileNotFoundError, ValueError: no such file, or lines that are not about these questions.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} not found: expected a line with index, question_id, kind, hops, distractors "
            f"and target_patches for each question, as the mini benchmarks have."
        )
    known: dict[int, dict[str, Any]] = {}
    for number, _, line in read_lines(path):
        index = line.get("index")
        question = questions.get(index) if isinstance(index, int) else None
        if question is None or question.question_id != line.get("question_id"):
            raise ValueError(
                f"{path}, line {number}: index {index!r} with question_id "
                f"{line.get('question_id')!r} is none of the questions beside it. Write both anew."
            )
        if question.index in known:
            raise ValueError(f"{path}, line {number}: a second line about {question}.")
        if not _is_metadata(line):
            raise ValueError(
                f"{path}, line {number}: expected kind (text), hops (1 or more), distractors (a "
                f"whole number or null), target_patches (a number or null) and, if there are any, "
                f"answer and image (texts), got {str(line)[:200]}."
            )
        known[question.index] = line
    if missing := [q for i, q in questions.items() if i not in known]:
        raise ValueError(f"{path} has no line about {len(missing)} questions, as {missing[0]}.")
    return known


def _is_metadata(line: dict[str, Any]) -> bool:
    if "distractors" not in line or "target_patches" not in line:
        return False
    distractors, patches, hops = line["distractors"], line["target_patches"], line.get("hops")
    return (
        isinstance(line.get("kind"), str)
        and (type(hops) is int and hops >= 1)
        and (distractors is None or (type(distractors) is int and distractors >= 0))
        and (patches is None or (_is_number(patches) and patches >= 0))
        and all(isinstance(line.get(key), (str, type(None))) for key in ("answer", "image"))
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _largest(answers: dict[Path, dict[str, Path]], out: Path) -> str:
    """The run with most tokens entering a layer, mean over benchmarks, of those that all have."""
    common = set.intersection(*(set(files) for files in answers.values()))
    entering = {}
    for run in sorted(common):
        records = [read_record(files[run]) for files in answers.values()]
        if all(map(_prunes, records)):
            entering[run] = sum(record["tokens"]["entering"] for record in records)
    if not entering:
        found = "; ".join(f"{f.name}: {', '.join(files)}" for f, files in answers.items())
        raise ValueError(
            f"{out} has no finished AutoPrune run that prunes in all of its benchmarks ({found}). "
            f"Name one with --run, or give the answer files of some benchmarks."
        )
    return max(entering, key=entering.__getitem__)


def _prunes(record: dict[str, Any]) -> bool:
    if record.get("status") != COMPLETE:
        return False
    tokens = record.get("tokens") or {}
    entering = tokens.get("entering") or 0
    autoprune = record["settings"].get("pruner", {}).get("method") == "autoprune"
    return autoprune and 0 < entering < (tokens.get("visual") or 0)


def _benchmark(name: str) -> Benchmark:
    """The benchmark that is called so or, if none is, the first whose folder is."""
    for benchmark in (BENCHMARKS.get(name), *BENCHMARKS.values()):
        if benchmark is not None and name in (benchmark.name, benchmark.folder):
            return benchmark
    raise ValueError(
        f"{name!r} is no benchmark; known are {', '.join(BENCHMARKS)}. Answers belong in a folder "
        f"of the benchmark's name."
    )


def _plain(text: str) -> str:
    return text.strip().rstrip(".").lower()
