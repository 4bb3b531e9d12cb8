"""Figure 2 of the paper: the retention curve of each sample of a benchmark, by mutual information.

    python -m llava.eval.compare.sweep --model-path CHECKPOINT --data DATA --out RUNS \
        --benchmarks textvqa \
        --runs autoprune:64 autoprune:64@preset=paper
    python -m llava.analysis.curves RUNS/textvqa/autoprune-64.jsonl \
        RUNS/textvqa/autoprune-64@preset=paper.jsonl --out curves.png

Paper: arXiv 2509.23931, Figure 2. A panel a run of AutoPrune: a line a question, the visual tokens
that leave each layer (with --budget-mode strict: that enter it, which is what that budget counts),
coloured by its mutual information; their mean; the budget. First layers in which all curves are
alike, such as a pre-selection, may lie above the panel; a corner tells them. Nothing is run again:
an answer records slope, inflection and its counts, from which the schedule follows; its mean has
to be the one that was recorded. The last line of stdout is what was drawn as JSON. Needs
matplotlib.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from llava.common import json_files, program
from llava.eval.compare.comparison import budget as recorded_budget
from llava.eval.compare.comparison import recorded_pruner
from llava.eval.compare.report import budget_text
from llava.eval.run.linefile import read_lines
from llava.eval.run.models import decoder_shape
from llava.eval.run.record import read_record
from llava.pruning.cost import DecoderShape
from llava.pruning.methods.autoprune import AutoPrune
from llava.pruning.methods.autoprune.budget import budget, solve_plan

from . import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_LARGEST = 10**9  # of tokens, and of what was measured


@dataclass(frozen=True)
class SampleCurve:
    """A sample: its mutual information, and visual tokens by layer as the budget counts them."""

    mutual_information: float
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Panel:
    """The curves of a run.

    counted: "leaving" or "entering" a layer
    budget:  tokens a layer; None for a fraction of FLOPs or KV bytes, or where samples differ in it
    whole:   samples within the budget, which are not pruned and have no curve
    """

    title: str
    counted: str
    budget: float | None
    curves: Sequence[SampleCurve]
    whole: int

    @property
    def mean(self) -> list[float]:
        """Mean over the samples, by layer."""
        return [fmean(counts) for counts in zip(*(curve.tokens for curve in self.curves))]


def read(answers_file: Path, model_path: str | None = None) -> Panel:
    """The curves of a run of AutoPrune from its answers and its record.

    `model_path` is the checkpoint, whose config.json gives the shape; None for the record's.

    Raises:
        ValueError, OSError: no record, no run of AutoPrune, no sample that was pruned, or answers
            and settings of another version; says which.
    """
    settings = read_record(answers_file)["settings"]
    config = _config(answers_file, settings)
    shape = decoder_shape(settings["model_path"] if model_path is None else model_path)
    curves, budgets, whole = [], set(), 0
    for number, _, answer in read_lines(answers_file):
        where = f"{answers_file}, line {number}"
        metadata = _metadata(answer, where)
        try:
            resolved = config.resolved((metadata["n_visual"],))
            curve = _curve(resolved, shape, metadata)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if curve is None:
            whole += 1
        else:
            curves.append(curve)
            budgets.add(resolved.target_token_num)
    if not curves:
        raise ValueError(
            f"{answers_file}: no sample was pruned, so there is no curve. Give a run of a smaller "
            "budget on questions with pictures."
        )
    tokens = config.target_flops is None and config.target_kv is None and len(budgets) == 1
    return Panel(
        title=_title(answers_file, config),
        counted=config.counted,
        budget=budgets.pop() if tokens else None,
        curves=curves,
        whole=whole,
    )


def _metadata(answer: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The metadata of an answer, with all that a curve follows from."""
    place = f"{where}, metadata"
    try:
        metadata = json_files.check(answer, where, {"metadata": dict})["metadata"]
        json_files.check(metadata, place, {"n_visual": int, "n_text": int, "cost": dict})
        cost = {name: metadata["cost"].get(name) for name in ("tokens_entering", "tokens_leaving")}
        numbers = {"n_visual": metadata["n_visual"], "n_text": metadata["n_text"], **cost}
        if "complexity" not in metadata:
            raise ValueError(f"{place}: complexity is missing")
        if measured := metadata["complexity"]:
            json_files.check(
                measured, f"{place}, complexity", dict.fromkeys(("k", "x0", "mi"), float)
            )
            numbers |= {name: measured[name] for name in ("k", "x0", "mi")}
        for name, value in numbers.items():
            if not json_files.is_number(value, _LARGEST):
                shown = json_files.shorten(value)
                raise ValueError(f"{place}: {name} must be a number of usual size, got {shown}")
    except ValueError as error:
        raise ValueError(
            f"{error}: no recorded curve. These answers were written by an older version: run them "
            "again, into another file."
        ) from None
    return metadata


def _config(answers_file: Path, settings: Mapping[str, Any]) -> AutoPrune:
    values = dict(settings.get("pruner") or {})
    if values.get("method") != AutoPrune.method:
        raise ValueError(
            f"{answers_file} is a run of {values.get('method')!r}: only AutoPrune has a curve of "
            "its own for each sample"
        )
    config = recorded_pruner(answers_file, values)
    if config.indicator != "mutual_information":
        raise ValueError(
            f"{answers_file} measured {config.indicator} and no mutual information to colour by"
        )
    return config


def _curve(
    config: AutoPrune, shape: DecoderShape, metadata: Mapping[str, Any]
) -> SampleCurve | None:
    """The curve of a sample from its answer's metadata; `config` has its budget as a number."""
    measured = metadata["complexity"]
    if not measured:
        return None
    target = budget(config, shape, metadata["n_visual"], metadata["n_text"])
    plan = solve_plan(config, shape, target, measured["k"], measured["x0"])
    cost = metadata["cost"]
    for name in ("entering", "leaving"):
        now, then = sum(getattr(plan, name)) / shape.layers, cost[f"tokens_{name}"]
        if abs(now - then) > 1e-6:
            raise ValueError(
                f"its settings give {now:.4f} tokens {name} a layer, recorded were {then:.4f}. "
                "Another version or another checkpoint made it (run it again, into another file, "
                "or name the checkpoint with --model-path), or each of several pictures had a "
                "budget of its own, which is not recorded."
            )
    return SampleCurve(measured["mi"], getattr(plan, config.counted))


def _title(answers_file: Path, config: AutoPrune) -> str:
    values = config.to_dict()
    presets = AutoPrune.presets.items()
    changed = [name for name, fields in presets if fields and fields.items() <= values.items()]
    preset = changed[0] if changed else "released"
    mode = " strict" if config.strict else ""
    return f"{answers_file.parent.name}: {preset}, {budget_text(recorded_budget(values))}{mode}"


def figure(panels: Sequence[Panel]) -> Figure:
    """The panels side by side, each with its own scale of mutual information.

    Raises:
        ImportError: matplotlib is not installed; says how to get it.
    """
    result = plotting.new_figure(5.2 * len(panels), 4)
    from matplotlib.collections import LineCollection

    for axes, panel in zip(result.subplots(1, len(panels), squeeze=False)[0], panels):
        # The most common values last would hide the others: draw from low to high.
        ordered = sorted(panel.curves, key=lambda curve: curve.mutual_information)
        lines = LineCollection(
            [list(enumerate(curve.tokens)) for curve in ordered],
            array=[curve.mutual_information for curve in ordered],
            cmap="viridis",
            linewidths=0.8,
            alpha=0.6,
        )
        axes.add_collection(lines)
        mean = panel.mean
        axes.plot(range(len(mean)), mean, color="black", linewidth=1.5, label="mean")
        if panel.budget is not None:
            label = f"budget {panel.budget:g}"
            axes.axhline(panel.budget, color="red", linestyle="--", linewidth=1, label=label)
        axes.set_title(f"{panel.title} (n = {len(panel.curves)})")
        axes.set_xlabel("layer")
        axes.set_ylabel(f"visual tokens {panel.counted} it")
        axes.set_xlim(0, len(mean) - 1)
        axes.set_ylim(0, _top(panel))
        if above := [(i, count) for i, count in enumerate(mean) if count > axes.get_ylim()[1]]:
            told = "\n".join(f"layer {layer}: {count:.0f}" for layer, count in above)
            axes.annotate(told, (0.22, 0.97), xycoords="axes fraction", va="top", fontsize="small")
        axes.legend(loc="upper right")
        result.colorbar(lines, ax=axes, label="mutual information")
    return result


def _top(panel: Panel) -> float:
    """Where the panel ends: above all that is behind the layers in which every curve is alike."""
    layers = list(zip(*(curve.tokens for curve in panel.curves)))
    apart = next((i for i, counts in enumerate(layers) if len(set(counts)) > 1), 0)
    largest = max(max(counts) for counts in layers[apart:])
    return 1.25 * max(largest, panel.budget or 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 2 on wrong input or without matplotlib."""
    parser = argparse.ArgumentParser(
        prog=program.name("llava.analysis.curves"),
        description="Draw the retention curves of finished runs of AutoPrune.",
        allow_abbrev=False,
    )
    parser.add_argument("answers", type=Path, nargs="+", help="answers of runs of AutoPrune")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), metavar="FILE")
    parser.add_argument("--model-path", help="the checkpoint, where it is no longer in its place")
    parser.add_argument("--dpi", type=plotting.dpi, default=plotting.DPI)
    args = parser.parse_args(argv)
    try:
        panels = [read(path, args.model_path) for path in args.answers]
        plotting.save(figure(panels), args.out, args.dpi)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"out": str(args.out), "panels": [_told(p) for p in panels]}), flush=True)
    return 0


def _told(panel: Panel) -> dict[str, Any]:
    values = [curve.mutual_information for curve in panel.curves]
    return {
        "title": panel.title,
        "counted": panel.counted,
        "budget": panel.budget,
        "samples": len(panel.curves),
        "whole": panel.whole,
        "different_curves": len({curve.tokens for curve in panel.curves}),
        "mutual_information": [min(values), fmean(values), max(values)],
        "mean": panel.mean,
    }


if __name__ == "__main__":
    program.run(main)
