"""Whether the mutual information of text and picture tells simple questions from complex ones.

    python -m llava.analysis.information --runs OUT [--run NAME] [--data playground/data/mini]
    python -m llava.analysis.information OUT/gqa/n_64.jsonl OUT/pope/n_64.jsonl

AutoPrune's premise (arXiv 2509.23931, sections 1 and 3): high mutual information (MI) in an early
layer means a simple sample, low a complex one. Here a question is simple if it takes one step
("hops" 1 in the metadata), complex if it takes more. If the premise holds, the probability that a
simple question has the higher MI (AUC) is above 0.5, also among questions about the same picture
and with the length of the prompt taken out. Intervals are bootstrapped over pictures. MI is that of
the tokens which the pre-selection of the run left, so a larger budget disturbs it less.

Prints Markdown tables; the last line on stdout is everything as JSON. Needs no model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from llava.common import flags, program

from ..eval.compare.markdown import table as write_table
from .information_samples import Run, Sample, find_runs, load_run, require_comparable
from .rank_statistics import Comparison, compare, describe, partial_spearman, spearman

_BINS = 16
_BAR = 30  # characters of the longest bar of a histogram
_SUMMARY = ("n", "mean", "sd", "q1", "median", "q3")
_NONE = "–"
#: Settings on which the MI depends.
_MI_SETTINGS = (
    "mi_layer",
    "mi_rows",
    "mi_heads",
    "log_base",
    "mi_eps",
    "normalise_rows",
    "preselect_ratio",
    "target_token_num",
    "target_fraction",
    "budget_per",
    "budget_mode",
    "target_flops",
    "target_kv",
)


def distributions(samples: Sequence[Sample]) -> dict[str, dict[str, dict[str, Any]]]:
    """Summaries of MI by hops, distractors, quartile of target size and question kind."""
    sizes = [s.target_patches for s in samples if s.target_patches is not None]
    edges = np.quantile(sizes, (0.25, 0.5, 0.75)) if sizes else np.empty(0)

    def quartile(sample: Sample) -> int | None:
        size = sample.target_patches
        return None if size is None else int(np.searchsorted(edges, size))

    by_size = {}
    for number, group in _grouped(samples, quartile).items():
        members = [s.target_patches for s in group]
        by_size[f"Q{number + 1}: {min(members):g} to {max(members):g}"] = group
    groups = {
        "hops": _grouped(samples, lambda s: s.hops),
        "distractors": _grouped(samples, lambda s: s.distractors),
        "target patches": by_size,
        "kind": _grouped(samples, lambda s: s.kind),
    }
    return {
        factor: {str(value): describe([s.mi for s in group]) for value, group in by.items()}
        for factor, by in groups.items()
    }


def correlations(samples: Sequence[Sample]) -> dict[str, float | None]:
    """Rank correlations of MI; where a factor is not known for all samples, over the others."""

    def with_mi(factor: Callable[[Sample], float | None]) -> float | None:
        known = [(s.mi, factor(s)) for s in samples if factor(s) is not None]
        return spearman([mi for mi, _ in known], [value for _, value in known])

    mi, hops, n_text = ([getattr(s, name) for s in samples] for name in ("mi", "hops", "n_text"))
    return {
        "hops": spearman(mi, hops),
        "distractors": with_mi(lambda s: s.distractors),
        "target_patches": with_mi(lambda s: s.target_patches),
        "n_text": spearman(mi, n_text),
        "hops_given_n_text": partial_spearman(mi, hops, n_text),
    }


def analyse(samples: Sequence[Sample], *, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Everything about a set of samples, as JSON values.

    Returns:
        samples, simple and complex (how many), distributions, correlations; simple_over_complex:
        `all_pairs` and `same_image`, each with auc, its interval low to high, pairs and claim (see
        `verdict`); right_over_wrong: right, wrong, and auc, low, high, pairs of the MI of answers
        that are right against those that are not; histogram.
    """
    images = [s.image for s in samples]
    mi = [s.mi for s in samples]
    simple = [s.hops == 1 for s in samples]
    judged = [s for s in samples if s.right is not None]
    right = [bool(s.right) for s in judged]
    options = {"resamples": resamples, "seed": seed}
    pairs = {
        name: compare(mi, simple, images, within=within, **options)
        for name, within in (("all_pairs", False), ("same_image", True))
    }
    success = compare([s.mi for s in judged], right, [s.image for s in judged], **options)
    return {
        "samples": len(samples),
        "simple": sum(simple),
        "complex": len(samples) - sum(simple),
        "distributions": distributions(samples),
        "correlations": correlations(samples),
        "simple_over_complex": {
            name: {**asdict(comparison), "claim": verdict(comparison)}
            for name, comparison in pairs.items()
        },
        "right_over_wrong": {
            "right": sum(right),
            "wrong": len(right) - sum(right),
            **asdict(success),
        },
        "histogram": histogram(mi, simple),
    }


def verdict(comparison: Comparison) -> str | None:
    """Of the claim that simple questions have the higher MI; None without an interval.

    "holds" or "reversed" where the interval is wholly above or below 0.5, else "undecided".
    """
    if comparison.low is None or comparison.high is None:
        return None
    if comparison.low > 0.5:
        return "holds"
    return "reversed" if comparison.high < 0.5 else "undecided"


def histogram(mi: Sequence[float], simple: Sequence[bool]) -> dict[str, list[float]]:
    """Counts of simple and complex questions in equal bins of MI, and the bins' edges."""
    if not mi:
        return {"edges": [], "simple": [], "complex": []}
    values, marks = np.asarray(mi), np.asarray(simple, dtype=bool)
    edges = np.histogram_bin_edges(values, _BINS)
    counts = {
        name: np.histogram(values[mask], edges)[0].tolist()
        for name, mask in (("simple", marks), ("complex", ~marks))
    }
    return {"edges": edges.tolist(), **counts}


def draw(bins: dict[str, list[float]]) -> str:
    """A histogram in characters; bars are shares of their own group, on one scale for both."""
    names = ("simple", "complex")
    shares = [[count / max(sum(bins[name]), 1) for count in bins[name]] for name in names]
    longest = max((share for row in shares for share in row), default=0.0) or 1.0
    heads = [f"{name} (n = {sum(bins[name])})" for name in names]
    lines = [f"{'MI':^23}  {heads[0]:<{_BAR + 6}}  {heads[1]}"]
    edges = bins["edges"]
    for start, stop, *row in zip(edges, edges[1:], *shares):
        bars = [f"{share:4.0%} {'#' * round(_BAR * share / longest):<{_BAR}}" for share in row]
        lines.append(f"{start:>10.4g} to {stop:<10.4g} {bars[0]}  {bars[1]}".rstrip())
    return "\n".join(lines)


def report(results: dict[str, dict[str, Any]]) -> str:
    """The results of `analyse` by the name of their samples, as Markdown."""
    parts = ["## Is MI higher for simple questions?", _claims(results)]
    parts += ["## Rank correlation of MI", _correlations(results)]
    parts += ["## Does MI tell right answers from wrong ones?", _successes(results)]
    for name, result in results.items():
        rows = [
            [factor, value, *(_number(summary[key], ".4g") for key in _SUMMARY)]
            for factor, by in result["distributions"].items()
            for value, summary in by.items()
        ]
        parts += [f"## MI in {name}", write_table(("factor", "value", *_SUMMARY), rows)]
        parts += [f"```text\n{draw(result['histogram'])}\n```"]
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 2 on wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.analysis.information",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "answers", type=Path, nargs="*", help="answer files, each in a folder named as a benchmark"
    )
    parser.add_argument("--runs", type=Path, help="instead, a sweep: <benchmark>/<run>.jsonl")
    parser.add_argument("--run", help="of the sweep; default: AutoPrune with the largest budget")
    parser.add_argument(
        "--data", type=Path, default=Path("playground/data/mini"), help="the benchmarks' folders"
    )
    parser.add_argument(
        "--resamples", type=flags.whole(1, 10**6), default=2000, help="of the bootstrap"
    )
    parser.add_argument("--seed", type=flags.whole(0), default=0, help="of the bootstrap")
    args = parser.parse_args(argv)
    if bool(args.answers) == bool(args.runs) or (args.run and not args.runs):
        parser.error("give answer files, or --runs and perhaps --run")
    options = {"resamples": args.resamples, "seed": args.seed}
    try:
        files = (
            find_runs(args.runs, args.run)
            if args.runs
            else [(path.resolve().parent.name, path) for path in args.answers]
        )
        runs = [load_run(name, path, args.data) for name, path in files]
        require_comparable(runs)
        results = {run.benchmark: analyse(run.samples, **options) for run in runs}
        if len(runs) > 1:
            results["pooled"] = analyse([s for run in runs for s in run.samples], **options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    settings = {key: runs[0].pruner[key] for key in _MI_SETTINGS if key in runs[0].pruner}
    print(_heading(runs, settings))
    print(f"\n{report(results)}\n")
    pooled = results.pop("pooled", None)
    print(
        json.dumps(
            {
                "answers": {run.benchmark: str(run.path) for run in runs},
                "text_only": {run.benchmark: run.text_only for run in runs},
                "model_path": runs[0].model_path,
                "git_commits": _commits(runs),
                "settings": settings,
                **options,
                "benchmarks": results,
                "pooled": pooled,
            }
        )
    )
    return 0


def _heading(runs: Sequence[Run], settings: dict[str, Any]) -> str:
    lines = ["# Mutual information against complexity", "", f"Model: {runs[0].model_path}"]
    if code := _commits(runs):
        lines.append(f"Made with git_commit {' and '.join(code)}")
    lines += ["", ", ".join(f"{key} {value}" for key, value in settings.items()), ""]
    for run in runs:
        left_out = f", {run.text_only} without a picture left out" if run.text_only else ""
        lines.append(f"- {run.benchmark}: {run.path}, {len(run.samples)} answers{left_out}")
    return "\n".join(lines)


def _commits(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(commit for run in runs for commit in run.git_commits))


def _claims(results: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, result in results.items():
        row = [name, str(result["simple"]), str(result["complex"])]
        for comparison in result["simple_over_complex"].values():
            row += [str(comparison["pairs"]), _interval(comparison), comparison["claim"] or _NONE]
        rows.append(row)
    columns = ("pairs", "AUC [95 %]", "claim")
    of_image = (f"same image: {column}" for column in columns)
    return write_table(("", "simple", "complex", *columns, *of_image), rows)


def _correlations(results: dict[str, dict[str, Any]]) -> str:
    names = ("hops", "distractors", "target patches", "n_text", "hops given n_text")
    rows = [
        [name, *(_number(value) for value in result["correlations"].values())]
        for name, result in results.items()
    ]
    return write_table(("", *names), rows)


def _successes(results: dict[str, dict[str, Any]]) -> str:
    rows = [
        [name, str(comparison["right"]), str(comparison["wrong"]), _interval(comparison)]
        for name, comparison in ((name, r["right_over_wrong"]) for name, r in results.items())
    ]
    return write_table(("", "right", "wrong", "AUC [95 %]"), rows)


def _grouped(samples: Iterable[Sample], key: Callable[[Sample], Any]) -> dict[Any, list[Sample]]:
    """Samples by key, ascending; those for which it is None are left out."""
    groups: dict[Any, list[Sample]] = {}
    for sample in samples:
        if (value := key(sample)) is not None:
            groups.setdefault(value, []).append(sample)
    return dict(sorted(groups.items()))


def _number(value: float | None, form: str = ".3f") -> str:
    if value is None:
        return _NONE
    return str(value) if isinstance(value, int) else format(value, form)


def _interval(comparison: dict[str, Any]) -> str:
    if comparison["low"] is None:
        return _number(comparison["auc"])
    return f"{comparison['auc']:.3f} [{comparison['low']:.3f}, {comparison['high']:.3f}]"


if __name__ == "__main__":
    program.run(main)
