"""The report of `llava.analysis.reproduce`: one document in Markdown, from what its steps wrote."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from llava.eval.benchmarks import BENCHMARKS
from llava.eval.compare.comparison import compare
from llava.eval.compare.markdown import table as markdown_table
from llava.eval.compare.progress import duration
from llava.eval.compare.published import TABLES
from llava.eval.compare.report import collect, natural_order
from llava.eval.compare.results import find_runs
from llava.eval.run.environment import environment
from llava.eval.run.record import read_record

#: Where published numbers of LLaVA-1.5-7B are, the first that has one counts.
PUBLISHED = ("1", "extended")
_TITLES = {
    "verify": "Is it right?",
    "bench": "Time to first token",
    "sample": "A sample",
    "whole": "All questions",
}


def seconds_of_answers(folder: Path) -> dict[str, float]:
    """By benchmark, the seconds that one question takes, all runs together; none without runs."""
    seconds: dict[str, float] = {}
    for file in find_runs(folder) if any(folder.glob("*/*.jsonl")) else ():
        record = read_record(file)
        if answered := record["counts"]["answered"]:
            each = record["seconds"]["total"] / answered
            seconds[file.parent.name] = seconds.get(file.parent.name, 0) + each
    return seconds


def published(benchmark: str, method: str, tokens: float | None) -> tuple[float, str] | None:
    """The published number of a run of LLaVA-1.5-7B, and its source."""
    metrics = (None, BENCHMARKS[benchmark].metric)
    for name in PUBLISHED:
        columns = [c for c in TABLES[name].columns if c.benchmark == benchmark]
        for column in (c for c in columns if c.metric in metrics):
            for row in TABLES[name].rows:
                same = row.method == method and not row.settings and row.budget() == tokens
                if same and column.key in row.values:
                    return row.values[column.key], row.source or TABLES[name].source
    return None


def scores(folder: Path, data: Path) -> Iterator[str]:
    """The table of a sweep: measured with its 95 % interval, and published."""
    results = collect([folder], data, BENCHMARKS)
    if not results:
        raise ValueError("no run is complete")
    compared = compare(results)
    names, sources = list(compared["benchmarks"]), dict[str, None]()
    headings = ["run"]
    for name in names:
        title = compared["benchmarks"][name]["title"].partition(" (")[0]
        headings += [title, "published"]
    headings += ["relative", "tokens a layer", "FLOPs", "first token"]
    rows = []
    for row in sorted(compared["rows"], key=natural_order):
        tokens = row["budget"]
        cells = ["unpruned" if row["method"] == "none" else f"{row['method']} {tokens:g}"]
        for name in names:
            cell, best = row["benchmarks"][name] or {}, compared["benchmarks"][name]["best"]
            scale = best / 100 if best > 100 else 1  # MME counts points
            value, error = cell.get("percent"), cell.get("standard_error")
            text = "" if value is None else f"{scale * value:.1f}"
            cells.append(text if error is None else f"{text} ± {1.96 * scale * error:.1f}")
            number = published(name, row["method"], tokens)
            cells.append("–" if number is None else f"{number[0]:g}")
            sources |= {number[1]: None} if number else {}
        relative, milliseconds = row["relative"], row["prefill_ms"]
        cells.append("" if relative is None else f"{relative:.1f}")
        cells.append(f"{row['tokens_entering']:.1f}")
        cells.append(f"{row['prefill_flops_ratio_with_scoring']:.1%}")
        cells.append("" if milliseconds is None else f"{milliseconds:.1f} ms")
        rows.append(cells)
    yield markdown_table(headings, rows)
    yield ""
    for name in names:
        about = compared["benchmarks"][name]
        yield (
            f"- {about['title']}: {about['metric']}, {about['answered']} of {about['questions']} "
            "questions."
        )
    yield (
        "- ±: 1.96 standard errors of a share, 95 % of samples; for F1 and MME an approximation. "
        "Rows have the same questions, so their differences vary less."
    )
    if sources:
        yield f"- Published, of LLaVA-1.5-7B on all questions: {'; '.join(sources)}."
    yield "- FLOPs: of the prefill, to the unpruned one, by the published counting and scoring."
    origins = "; ".join(f"{key} {' and '.join(v)}" for key, v in compared["made_with"].items())
    yield f"- Made with {origins}."


def section(args: argparse.Namespace, step: str) -> Iterator[str]:
    """What a step has left."""
    if step in ("sample", "whole"):
        if step == "sample":
            yield (
                f"Of each benchmark {args.questions} questions, drawn at random with seed "
                f"{args.sample_seed}."
            )
            yield ""
        try:
            yield from scores(args.out / step, args.data)
        except (OSError, ValueError) as error:
            yield f"No table: {error}"
        return
    file = args.out / ("bench.md" if step == "bench" else "verify.log")
    text = file.read_text(encoding="utf-8").strip() if file.is_file() else "Nothing was written."
    if step == "verify":
        text = text.replace(args.model_path, Path(args.model_path).name)
        yield f"```\n{text}\n```"
    else:
        yield text.removeprefix("# Time to first token").strip()


def document(args: argparse.Namespace, state: Mapping[str, Any]) -> str:
    """The whole report."""
    place = environment(torch.device(args.device))
    versions = ", ".join(
        f"{name} {place[name]}" for name in ("python", "torch", "transformers", "llava")
    )
    commit = f"commit {place['git_commit']}" + (", changed" if place["git_dirty"] else "")
    rows = [
        [step, "ended well" if done["status"] == 0 else f"exit status {done['status']}",
         duration(done["seconds"]), done["expected"]]
        for step, done in state["steps"].items()
    ]  # fmt: skip
    name = Path(args.model_path).name
    words = ["bash", "scripts/reproduce.sh", "--model-path", name, "--device", args.device]
    words += ["--questions", str(args.questions), "--sample-seed", str(args.sample_seed)]
    words += ["--batch-size", str(args.batch_size), *args.others]
    words += ["--benchmarks", *args.benchmarks] if args.benchmarks else []
    lines = [
        f"# {name} on {place['device_name']}",
        "",
        f"{versions}, {commit}; {place['platform']}; "
        f"{datetime.now(timezone.utc).isoformat(timespec='minutes')}.",
        "",
        f"`{shlex.join(words)}`",
        "",
        markdown_table(["step", "", "took", "expected"], rows),
    ]
    for step in state["steps"]:
        lines += ["", f"## {_TITLES[step]} ({step})", "", *section(args, step)]
    return "\n".join(lines) + "\n"
