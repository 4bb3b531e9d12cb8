"""The curve of a training of the demo: losses and shares of right answers over its minutes.

    python -m llava.analysis.training .work/demo/log.jsonl --out training.png

Reads the log that `llava.train.train_demo` writes, a line for some steps and one for each
validation; that of the embedded checkpoint is `playground/demo/training.jsonl`. Above is the loss
of the answers (teacher-forced, of training questions), below what a patch's features tell of what
it shows, and the validation. Dotted lines begin the stages, numbered in the recipe's order. The
last line of stdout is the stages as JSON. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.common import json_files, program
from llava.eval.run.linefile import read_lines

from . import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOSS = "answer"
#: Shares of the log, and what to call them.
_SHARES = {
    "kind_right": "shapes right at a patch",
    "text_right": "words right at a patch",
    "validation": "questions right in validation",
}
_MARKED = ("validation",)  # one value a stage


@dataclass(frozen=True)
class LoggedStage:
    """A stage's name, the minute in which it begins, and its lines of the log."""

    name: str
    begins: float
    lines: Sequence[dict[str, Any]]

    def told(self) -> dict[str, Any]:
        """The stage as JSON: its name, steps, minutes, and the last value of all that is drawn."""
        last: dict[str, Any] = {}
        for line in self.lines:
            last |= {name: line[name] for name in (_LOSS, *_SHARES) if name in line}
        minutes = round(self.lines[-1]["minutes"] - self.begins, 1)
        return {"stage": self.name, "steps": self.lines[-1]["step"], "minutes": minutes, **last}


def read(log: Path) -> list[LoggedStage]:
    """The stages of a log, in order.

    Raises:
        ValueError, OSError: no such file, or lines that the trainer does not write.
    """
    stages: list[LoggedStage] = []
    minutes = 0.0
    for number, _, line in read_lines(log):
        name, now = line.get("stage"), line.get("minutes")
        drawn = [line.get("step"), now, *(line[key] for key in (_LOSS, *_SHARES) if key in line)]
        if not isinstance(name, str) or not all(map(json_files.is_number, drawn)):
            raise ValueError(
                f"{log}, line {number}: expected stage and, as numbers, step and minutes, and "
                f"{', '.join((_LOSS, *_SHARES))} where they are, as the log of a training has, got "
                f"{json_files.shorten(line)}"
            )
        if not stages or stages[-1].name != name:
            stages.append(LoggedStage(name, minutes, []))
        stages[-1].lines.append(line)
        minutes = now
    if not stages:
        raise ValueError(f"{log} is empty: the training has not logged anything yet")
    return stages


def figure(stages: Sequence[LoggedStage]) -> Figure:
    """Loss above, shares in percent below.

    Raises:
        ImportError: matplotlib is not installed; says how to get it.
    """
    result = plotting.new_figure(9, 5)
    above, below = result.subplots(2, 1, sharex=True)

    def draw(axes: Axes, name: str, factor: float, **style: Any) -> None:
        curves = [
            [(line["minutes"], factor * line[name]) for line in stage.lines if name in line]
            for stage in stages
        ]
        # a line does not cross stages that do not measure it
        runs = [[point for points in curves for point in points]] if name in _MARKED else curves
        for points in filter(None, runs):
            minutes, values = zip(*points, strict=True)
            axes.plot(minutes, values, **style)
            style.pop("label", None)

    draw(above, _LOSS, 1, color="C0")
    above.set_ylabel("loss of the answers")
    above.set_yscale("log")
    for number, (name, label) in enumerate(_SHARES.items()):
        style = {"marker": "o", "linestyle": "--"} if name in _MARKED else {}
        draw(below, name, 100, label=label, color=f"C{number}", **style)
    below.set_ylabel("%")
    below.set_ylim(0, 102)
    below.set_xlabel("minutes")
    below.legend(loc="lower center")
    for number, stage in enumerate(stages, 1):
        for axes in (above, below):
            axes.axvline(stage.begins, color="grey", linestyle=":", linewidth=0.8)
        place = (stage.begins, 1.01)
        above.annotate(str(number), place, xycoords=("data", "axes fraction"), fontsize="small")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 2 on wrong input or without matplotlib."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.analysis.training",
        description="Draw the log of a training of the demo.",
        allow_abbrev=False,
    )
    parser.add_argument("log", type=Path, help="log.jsonl of the training's work folder")
    parser.add_argument("--out", type=Path, default=Path("training.png"), metavar="FILE")
    parser.add_argument("--dpi", type=plotting.dpi, default=plotting.DPI)
    args = parser.parse_args(argv)
    try:
        stages = read(args.log)
        plotting.save(figure(stages), args.out, args.dpi)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"out": str(args.out), "stages": [stage.told() for stage in stages]}))
    return 0


if __name__ == "__main__":
    program.run(main)
