"""A report of finished runs as one HTML file: tables, plots, and the answers that pruning changed.

    python -m llava.analysis.page RUNS --data playground/data/mini --out report.html

RUNS are folders of `sweep`, or answers of finished runs. The file opens from disk and
loads nothing from elsewhere. For the answers that differ most from those of the unpruned model
(`differences`) the checkpoint is loaded and asked again, one question at a time and greedily, to
see which patches it keeps; --no-model leaves that out, and with it the pictures. --model-path may
name another one, of `llava.hf` too, which is asked by its own chat template, one picture a
question. Where the answer is then another one than was recorded, which sums in another order can
do, both are shown. The last line of stdout is what is on the page as JSON. Needs no matplotlib.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tqdm import tqdm

from llava.common import flags, program
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.benchmarks.base import Benchmark
from llava.eval.compare.comparison import compare, recorded_pruner
from llava.eval.compare.report import add_runs_arguments, collect, natural_order, start_logging
from llava.eval.compare.results import Result
from llava.eval.run.arguments import add_settings, setting_defaults
from llava.pruning.base import Pruner

from . import traced
from .differences import Difference, budget_of, find, method_of, most_different
from .page_html import Card, Content, render
from .stock_answers import fits, is_stock, load_any
from .traced import TracedAnswer
from .tradeoff import foremost, series

_MOST = 120
_NOT_SHOWN = (
    "question_file",
    "answers_file",
    "image_folder",
    "pruner",
    "question_sha256",
    "offline",
)


class Asker:
    """Asks the checkpoint of some runs again, with the settings that they recorded.

    `model_path`, `device` and `offline` replace the record's; `model` is what `load_any` gives,
    `name` the checkpoint's.

    Raises:
        ValueError, OSError, ImportError: no such checkpoint, device or kernel; says which.
    """

    def __init__(
        self,
        result: Result,
        data: Path,
        model_path: str | None,
        device: str | None,
        offline: bool,
    ) -> None:
        settings = setting_defaults() | result.settings | {"device": device, "offline": offline}
        if model_path is not None:
            settings["model_path"] = model_path
        self.name = Path(settings["model_path"]).name
        self.model = load_any(SimpleNamespace(**settings))
        self._data = data
        self._questions: dict[str, Any] = {}

    def __call__(self, difference: Difference) -> TracedAnswer | None:
        """The pruned answer with its trace; None where a model of transformers cannot be asked so:
        about several pictures, or with a method that `llava.hf` does not run.

        Raises:
            ValueError, OSError: the picture cannot be read, or the record's settings of pruning
                are not those of this version.
        """
        benchmark, settings = difference.result.benchmark, difference.result.settings
        folder = self._data / benchmark.folder
        if benchmark.name not in self._questions:
            self._questions[benchmark.name] = benchmark.load_questions(folder)
        bound = settings.get("visual_token_num")
        question, source = difference.question, self._questions[benchmark.name]
        tokenizer, model, processor, _ = self.model
        pruner = _pruner(difference.result)
        if is_stock(model) and (len(question.images) > 1 or not fits(model, pruner)):
            return None
        opened = [
            source.open_image(replace(question, image=name), folder / benchmark.images)
            for name in question.images
        ]
        several = dict(zip(picture_names(question.images), opened, strict=True))
        return traced.run(
            model,
            tokenizer,
            processor,
            several if len(opened) > 1 else opened[0],
            question.model_text,
            pruner,
            settings.get("conv_mode", "vicuna_v1"),
            settings.get("max_new_tokens", benchmark.max_new_tokens),
            **({} if bound is None else {"visual_token_num": bound}),
        )


def picture_names(paths: Sequence[str]) -> list[str]:
    """Of several pictures of a question: their folders, where these tell them apart (as cameras of
    nuScenes do), else numbers."""
    folders = [Path(path).parent.name for path in paths]
    if all(folders) and len({*folders}) == len(paths):
        return [folder.replace("_", " ") for folder in folders]
    return [f"picture {number} of {len(paths)}" for number, _ in enumerate(paths, 1)]


def _pruner(result: Result) -> Pruner:
    try:
        return recorded_pruner(result.answers_file, result.pruner)
    except ValueError as error:
        raise ValueError(f"{error} Or give --no-model.") from None


def gather(
    results: Sequence[Result],
    data: Path,
    most: int,
    *,
    title: str | None = None,
    ask: Asker | None = None,
) -> Content:
    """What the page shows of these runs; without `ask` the cards have no pictures.

    Raises:
        ValueError, OSError: what `differences.find` and `ask` raise.
    """
    table = compare(results)
    table["rows"].sort(key=natural_order)
    lines, left_out = series(table)
    drawn, others = foremost(lines)
    differences, changes = find(results, data)
    chosen = most_different(differences, most)
    shown = chosen if ask is None else tqdm(chosen, unit="question", desc="asked again")
    cards = [Card(difference, None if ask is None else ask(difference)) for difference in shown]
    names = [entry["title"].partition(" (")[0] for entry in table["benchmarks"].values()]
    return Content(
        title=title or f"{', '.join(table['made_with']['model'])}: {', '.join(names)}",
        table=table,
        drawn=drawn,
        left_out=left_out,
        others=others,
        settings={_name(result): _settings(result) for result in results},
        changes=changes,
        cards=cards,
        differences=len(differences),
        again=None if ask is None else ask.name,
    )


def main(
    argv: Sequence[str] | None = None, benchmarks: Mapping[str, Benchmark] = BENCHMARKS
) -> int:
    """Run the command line; 2 on wrong input."""
    start_logging()
    parser = argparse.ArgumentParser(
        prog=program.name("llava.analysis.page"),
        description="Write a report of finished runs as one HTML file.",
        allow_abbrev=False,
    )
    add_runs_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE")
    parser.add_argument("--title", help="default: the model and the benchmarks")
    parser.add_argument(
        "--most",
        type=flags.whole(),
        default=_MOST,
        metavar="N",
        help="answers to show (default: %(default)s)",
    )
    parser.add_argument("--no-model", action="store_true", help="do not ask again: no pictures")
    parser.add_argument(
        "--model-path",
        help="the checkpoint, where it is no longer in its place; or another one to look at",
    )
    add_settings(parser, ["device", "offline"])
    args = parser.parse_args(argv)
    try:
        if args.most < 0:
            raise ValueError(f"--most must be 0 or more, got {args.most}")
        results = collect(args.runs, args.data, benchmarks)
        asks_model = not args.no_model and args.most
        place = args.data, args.model_path, args.device, args.offline
        ask = Asker(results[0], *place) if asks_model else None
        content = gather(results, args.data, args.most, title=args.title, ask=ask)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        # Half of a surrogate pair, which JSON can hold and UTF-8 cannot, is shown as "?".
        args.out.write_text(render(content), encoding="utf-8", errors="replace")
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    told = {
        "out": str(args.out),
        "bytes": args.out.stat().st_size,
        "rows": len(content.table["rows"]),
        "differences": content.differences,
        "shown": len(content.cards),
        "answered_as_recorded": sum(
            card.trace is not None and card.trace.text == card.difference.pruned.text
            for card in content.cards
        ),
    }
    print(json.dumps(told), flush=True)
    return 0


def _name(result: Result) -> str:
    run = f"{method_of(result)} {budget_of(result)}".strip()
    seed = result.pruner.get("seed")
    return f"{result.benchmark.name}: {run}" + ("" if seed is None else f", seed {seed}")


def _settings(result: Result) -> dict[str, Any]:
    rest = {key: value for key, value in result.settings.items() if key not in _NOT_SHOWN}
    # The page may go elsewhere: where the checkpoint lay is nobody's business.
    rest["model_path"] = Path(rest["model_path"]).name
    for name in ("model_base", "vision_tower"):
        if rest.get(name):
            rest[name] = Path(rest[name]).name
    return {**result.pruner, **rest}


if __name__ == "__main__":
    program.run(main)
