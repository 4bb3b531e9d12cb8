"""Finished runs put together: a row for each method and budget, a column for each benchmark.

Runs that differ in nothing but a seed share a row, with the mean and the standard deviation (of a
sample, n - 1) over them. Relative accuracy is that of the papers: the mean over benchmarks of
score / unpruned score. What a run costs is summed over all questions of all benchmarks, so every
question weighs the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from llava.pruning import METHODS, Pruner, build

from ..run.record import commit_label, commits, environments
from ..run.settings import OLDER
from .results import Result
from .runs import BUDGETS, CURVE

_SEED = "seed"


@dataclass(frozen=True)
class Cell:
    """The scores of a row on a benchmark, a run (so a seed) each, in percent of the best."""

    results: Sequence[Result]

    @property
    def percents(self) -> list[float]:
        return [result.percent for result in self.results if result.percent is not None]

    @property
    def unparsed(self) -> list[float]:
        return [result.unparsed for result in self.results if result.unparsed is not None]

    def to_dict(self) -> dict[str, Any]:
        """The JSON of a cell; `standard_error` is that of one run, see `standard_error`."""
        raw = [result.raw for result in self.results if result.raw is not None]
        percent, counted = _mean(self.percents), self.results[0].counted
        return {
            "percent": percent,
            "sd": _deviation(self.percents),
            "raw": _mean(raw),
            "raw_sd": _deviation(raw),
            "standard_error": standard_error(percent, counted),
            "unparsed": _mean(self.unparsed),
            "runs": len(self.results),
            "answers_files": [str(result.answers_file) for result in self.results],
        }


def standard_error(percent: float | None, counted: int) -> float | None:
    """Of a share of right answers, in percent points: sqrt(p (100 - p) / n)."""
    return None if percent is None or not counted else sqrt(percent * (100 - percent) / counted)


def accuracy(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Mean of a row's scores in percent of the best, and half of its 95 % interval.

    The interval is 1.96 standard errors, those of the benchmarks taken as independent. None where a
    benchmark has no score, or its error is not known.
    """
    cells = [cell or {} for cell in row["benchmarks"].values()]
    scores = [cell["percent"] for cell in cells if cell.get("percent") is not None]
    errors = [cell["standard_error"] for cell in cells if cell.get("standard_error") is not None]
    if len(scores) < len(cells):
        return None, None
    if len(errors) < len(cells):
        return fmean(scores), None
    return fmean(scores), 1.96 * sqrt(sum(error**2 for error in errors)) / len(errors)


def compare(results: Sequence[Result]) -> dict[str, Any]:
    """The comparison as JSON: benchmarks, rows in the order of the results, and how it was made.

    Scores are in percent of the best, `raw` as the benchmark counts; ratios are to the unpruned
    model; tokens are means over layers and questions, and milliseconds over questions. What was not
    run is None, as is what would need it. `prefill_flops_ratio` is by the published counting,
    `computed_flops_ratio` what really ran with scoring and merging, to the same unpruned FLOPs;
    None where a record of an older version lacks it.

    Raises:
        ValueError: two runs of the same settings on one benchmark.
    """
    names = list(dict.fromkeys(result.benchmark.name for result in results))
    rows: dict[str, list[Result]] = {}
    for result in results:
        rows.setdefault(_identity(result), []).append(result)
    pruners = [runs[0].pruner for runs in rows.values()]
    common = _common_curves(pruners)
    dense = next((runs for runs in rows.values() if runs[0].pruner["method"] == "none"), [])
    return {
        "benchmarks": {name: _describe(results, name) for name in names},
        "rows": [_row(runs, names, dense, common) for runs in rows.values()],
        "vision_apart": _vision_apart(results),
        "settings_of_all": {m: values for m, values in common.items() if values},
        "made_with": _made_with(results),
    }


def _row(
    runs: Sequence[Result],
    names: Sequence[str],
    dense: Sequence[Result],
    common: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    pruner = runs[0].pruner
    cells = {name: _cell(runs, name) for name in names}
    shown = {k: v for k, v in settings_of(pruner).items() if k not in common[pruner["method"]]}
    relative = _relative(cells, {name: _cell(dense, name) for name in names})
    flops, kv = _sums(runs, "flops"), _sums(runs, "kv_bytes")
    overhead = flops["scoring"] + flops["merging"]
    known = all(run.record["flops"].get("computed") is not None for run in runs)
    answered = sum(run.answered for run in runs)
    apart = _vision_apart(runs)
    return {
        "method": pruner["method"],
        "settings": shown,
        "budget": budget(pruner),
        "seeds": sorted({run.pruner[_SEED] for run in runs if run.pruner.get(_SEED) is not None}),
        "benchmarks": {name: cell.to_dict() if cell else None for name, cell in cells.items()},
        "relative": _mean(relative),
        "relative_sd": _deviation(relative),
        "tokens_entering": _per_question(runs, "entering"),
        "tokens_leaving": _per_question(runs, "leaving"),
        "prefill_flops_ratio": _ratio(flops["prefill"], flops["dense_prefill"]),
        "prefill_flops_ratio_with_scoring": _ratio(
            flops["prefill"] + overhead, flops["dense_prefill"]
        ),
        "computed_flops_ratio": _ratio(flops["computed"], flops["dense_prefill"])
        if known
        else None,
        "kv_bytes_ratio": _ratio(kv["total"], kv["dense"]),
        # Sums of two kinds of time mean nothing.
        "prefill_ms": None
        if apart is None
        else _ratio(1000 * _sums(runs, "seconds")["prefill"], answered),
        "questions": answered,
        "git_commits": commits(run.record for run in runs),
    }


def budget(pruner: Mapping[str, Any]) -> float | str | None:
    """Tokens a layer, or the fraction that a run is bound to; None without any."""
    for name in BUDGETS:
        if pruner.get(name) is not None:
            return pruner[name] if name == "target_token_num" else f"{name} {pruner[name]:g}"
    return None


def settings_of(pruner: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a pruner's settings from its method's default ones, budget, seed and where files
    lie apart.

    All values of a preset are its name.
    """
    method = METHODS.get(pruner["method"])
    defaults = {field.name: field.default for field in fields(method)} if method else {}
    # A record has lists where settings have tuples.
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in pruner.items()}
    rest = {k: v for k, v in values.items() if k not in ("method", "clip", _SEED, *BUDGETS)}
    result: dict[str, Any] = {}
    for name, preset in method.presets.items() if method else ():
        # Depths of the curve are scaled to the decoder: a preset is told by the others.
        if preset and all(rest.get(k) == value for k, value in preset.items() if k not in CURVE):
            result["preset"] = name
            defaults |= preset
    return result | {k: v for k, v in rest.items() if k not in defaults or v != defaults[k]}


def recorded_pruner(answers_file: Path, values: Mapping[str, Any]) -> Pruner:
    """The method that a record names, with its settings.

    Raises:
        ValueError: settings that this version does not have.
    """
    # A record has lists where settings have tuples.
    settings: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
    }
    try:
        return build(**settings)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{answers_file}: the record's settings are not those of this version ({error}). Run "
            "it again, into another file."
        ) from None


def _identity(result: Result) -> str:
    method = METHODS.get(result.pruner["method"])
    # An older record does not name every setting.
    defaults = {field.name: field.default for field in fields(method)} if method else {}
    pruner = {k: v for k, v in (defaults | dict(result.pruner)).items() if k != _SEED}
    return json.dumps(pruner, sort_keys=True)


def _cell(runs: Iterable[Result], name: str) -> Cell | None:
    of_benchmark = [run for run in runs if run.benchmark.name == name]
    seen: dict[tuple[Any, Any], Result] = {}
    for run in of_benchmark:
        seeds = run.pruner.get(_SEED), run.settings.get(_SEED)
        if seeds in seen:
            raise ValueError(
                f"{seen[seeds].answers_file} and {run.answers_file} are runs of the same settings "
                f"on {name}: leave one out"
            )
        seen[seeds] = run
    return Cell([seen[seeds] for seeds in sorted(seen, key=str)]) if of_benchmark else None


def _relative(cells: Mapping[str, Cell | None], dense: Mapping[str, Cell | None]) -> list[float]:
    """Relative accuracy in percent, one a seed; none where a score is missing."""
    ratios: list[list[float]] = []
    for name, cell in cells.items():
        whole = _mean(dense[name].percents) if dense[name] else None
        if cell is None or not whole or len(cell.percents) < len(cell.results):
            return []
        ratios.append([100 * percent / whole for percent in cell.percents])
    # A seed that some benchmark lacks would weigh another benchmark more.
    return [fmean(row) for row in zip(*ratios)] if len(set(map(len, ratios))) == 1 else []


def _common_curves(pruners: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By method, settings of its curve that differ from the defaults alike in all its runs."""
    common: dict[str, dict[str, Any]] = {}
    for pruner in pruners:
        curve = {k: v for k, v in settings_of(pruner).items() if k in CURVE}
        earlier = common.setdefault(pruner["method"], curve)
        common[pruner["method"]] = dict(earlier.items() & curve.items())
    return common


def _describe(results: Sequence[Result], name: str) -> dict[str, Any]:
    result = next(each for each in results if each.benchmark.name == name)
    samples = result.score["samples"]
    return {
        "title": result.benchmark.title,
        "metric": result.benchmark.metric,
        "best": result.best,
        "answered": samples,
        "questions": samples + result.score["missing"],
        "counted": result.counted,
        "limit": result.settings.get("limit"),
        "max_new_tokens": result.settings.get("max_new_tokens"),
    }


def _vision_apart(results: Sequence[Result]) -> bool | None:
    """Whether prefill times are without the vision tower; None if some are."""
    kinds = {result.record["seconds"].get("vision") is not None for result in results}
    return kinds.pop() if len(kinds) == 1 else None


def _made_with(results: Sequence[Result]) -> dict[str, list[str]]:
    """Every value of what the runs were made with, in order of appearance."""
    origins: dict[str, dict[str, None]] = {}
    for result in results:
        settings, record = result.settings, result.record
        origins.setdefault("model", {})[Path(settings["model_path"]).name] = None
        for name in ("merge_type", "processing"):
            if (value := settings.get(name, OLDER[name])) != OLDER[name]:
                origins.setdefault(name, {})[value] = None
        for name in ("dtype", "batch_size"):
            origins.setdefault(name, {})[str(settings.get(name))] = None
        for where in environments(record):
            told = {**where, "git_commit": commit_label(where)}
            for name in ("device_name", "threads", "torch", "transformers", "llava", "git_commit"):
                if told.get(name) is not None:
                    origins.setdefault(name, {})[str(told[name])] = None
    return {name: list(values) for name, values in origins.items()}


def _per_question(runs: Sequence[Result], name: str) -> float | None:
    known = [(run.record["tokens"][name], run.answered) for run in runs]
    known = [(value, weight) for value, weight in known if value is not None]
    return _ratio(sum(v * w for v, w in known), sum(w for _, w in known))


def _sums(runs: Sequence[Result], group: str) -> dict[str, float]:
    names = runs[0].record[group]
    return {name: sum(run.record[group].get(name) or 0 for run in runs) for name in names}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _deviation(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None
