"""Which patches survive in each layer: one picture, one question, one or several methods.

    python -m llava.analysis.keep --image PICTURE --question "What is red?" \
        --method autoprune fastv pdrop --target-token-num 64 --out kept.png

A row a method, a panel a layer, titled with the number of visual tokens that enter it. Dropped
patches are dark, patches that only show padding are hatched; a frame is a token averaged from
several, tinted patches are what is in it. Of a tiled picture (LLaVA-1.6) a panel is the overview
and the tiles at their places; newlines are nowhere. Tokens of Senna have no place: its picture is
the darker, the fewer are left. png, jpg and pdf are a sheet of some layers (--layers), gif and webp
run through all of them. json is the ids of the patches instead of a picture, for programs
that prune by them (docs/serving.md). The last line of stdout is what was drawn as JSON. Needs no
matplotlib.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from llava.common import flags, program
from llava.eval.run.arguments import Help
from llava.mm_utils import load_image

from . import asking, plotting, traced
from .overlay import beside, panels, stack, strip
from .stock_answers import load_any
from .traced import TracedAnswer

STILL, MOVING, IDS = (".png", ".jpg", ".pdf"), (".gif", ".webp"), (".json",)
_QUALITY = 80  # of jpg and pdf
_CELL = 8  # pixels of a patch
_FRAME_MS = 700
_PANELS = 8


def some_layers(layers: int, count: int = _PANELS) -> list[int]:
    """About `count` of the layers 0 .. layers - 1, with both ends, denser where pruning begins."""
    steps = (round(layers ** (i / (count - 1))) - 1 for i in range(count))
    return sorted(set(steps))


def panel(answer: TracedAnswer, layer: int, cell: int = _CELL) -> Image.Image:
    """What enters `layer`, drawn over the picture; the number of layers is what is left at last.

    Of a tiled picture the overview, and beside it the tiles at their places.
    """
    return beside(panels(answer, layer, cell))


def title(answer: TracedAnswer, layer: int) -> str:
    """Layer and count of a panel, such as `layer 3: 79 (4 merged)`."""
    where = f"layer {layer}" if layer < answer.layers else "at last"
    merged = f" ({len(answer.merged[layer])} merged)" if answer.merged[layer] else ""
    return f"{where}: {len(answer.kept[layer])}{merged}"


def summary(name: str, answer: TracedAnswer) -> str:
    """A line about an answer: method, text, tokens, FLOPs, mutual information."""
    cost = answer.cost
    parts = [
        f'{name}: "{answer.text}"',
        f"{cost.tokens_entering:.1f} tokens enter a layer",
        f"{cost.prefill_flops / cost.dense_prefill_flops:.1%} of the prefill FLOPs "
        "(published counting)",
        f"{cost.computed_flops / cost.dense_prefill_flops:.1%} computed",
    ]
    if answer.mutual_information is not None:
        parts.append(f"MI {answer.mutual_information:.3f}")
    return ", ".join(parts)


def sheet(
    answers: Mapping[str, TracedAnswer],
    question: str,
    layers: Sequence[int] | None = None,
    cell: int = _CELL,
) -> Image.Image:
    """A row of panels for each method, named by the keys of `answers`.

    Raises:
        ValueError: a layer that the decoder does not have.
    """
    depth = next(iter(answers.values())).layers
    layers = some_layers(depth) if layers is None else list(layers)
    if wrong := [layer for layer in layers if not 0 <= layer <= depth]:
        raise ValueError(
            f"layer {wrong[0]} of a decoder of {depth}: expected 0 to {depth - 1}, or {depth} for "
            "what is left at last"
        )
    rows = [
        strip(
            [panel(answer, layer, cell) for layer in layers],
            [title(answer, layer) for layer in layers],
            heading=(f"{question}\n" if number == 0 else "") + summary(name, answer),
        )
        for number, (name, answer) in enumerate(answers.items())
    ]
    return stack(rows)


def frames(
    answers: Mapping[str, TracedAnswer], question: str, cell: int = 2 * _CELL
) -> list[Image.Image]:
    """A picture for each layer and one for what is left at last, the methods side by side."""
    depth = next(iter(answers.values())).layers
    return [
        strip(
            [panel(answer, layer, cell) for answer in answers.values()],
            [f"{name}, {title(answer, layer)}" for name, answer in answers.items()],
            heading=question,
        )
        for layer in range(depth + 1)
    ]


def places(answer: TracedAnswer) -> dict[str, Any]:
    """Where the ids are, as plain JSON: {"grid": patches a side} of one square; else {"views": ...}
    with the columns and rows of each view, and the id of each of its patches, row by row."""
    views = [view for view in answer.views if not view.mixed]
    if len(views) == 1 and views[0].columns == views[0].rows:
        return {"grid": answer.grid}
    names = ("title", "columns", "rows")
    of_views = [
        {**{name: getattr(view, name) for name in names}, "tokens": list(view.tokens)}
        for view in views
    ]
    return {"views": of_views}


def kept_ids(answers: Mapping[str, TracedAnswer]) -> dict[str, dict[str, Any]]:
    """Of each method the ids of the tokens, of a square row by row from 0, as plain JSON.

    kept: by layer what enters it, and what is left after the last. merged: of these the means, by
    layer id -> ids. before_decoder: whether all of it was decided before layer 0, so that `kept`
    has the same ids in all layers.
    """
    return {
        name: {
            "kept": [list(ids) for ids in answer.kept],
            "merged": [{key: list(ids) for key, ids in of.items()} for of in answer.merged],
            "before_decoder": len(set(answer.kept)) == 1,
        }
        for name, answer in answers.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 2 on wrong input."""
    parser = argparse.ArgumentParser(
        prog=program.name("llava.analysis.keep"),
        description="Draw the patches that survive in each layer.",
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--question", required=True)
    parser.add_argument("--out", type=Path, default=Path("kept.png"), metavar="FILE")
    parser.add_argument(
        "--layers",
        type=flags.whole(),
        nargs="+",
        metavar="L",
        help="panels of a sheet, counted from 0",
    )
    parser.add_argument(
        "--cell", type=flags.whole(most=256), metavar="PIXELS", help="size of a patch"
    )
    asking.add_method_arguments(parser)
    asking.add_model_arguments(parser)
    args = parser.parse_args(argv)
    try:
        plotting.demand_ending(args.out, STILL + MOVING + IDS)
        if args.cell is not None and args.cell < 1:
            raise ValueError(f"--cell must be at least 1, got {args.cell}")
        image, runs = load_image(args.image), asking.planned(args)
        tokenizer, model, image_processor, _ = load_any(args)
        answers = {
            run.name: traced.run(
                model,
                tokenizer,
                image_processor,
                image,
                args.question,
                run.pruner,
                args.conv_mode,
                args.max_new_tokens,
            )
            for run in asking.scaled(runs, args, model.config.get_text_config().num_hidden_layers)
        }
        size = {} if args.cell is None else {"cell": args.cell}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        if args.out.suffix.lower() in IDS:
            ids = {**places(next(iter(answers.values()))), "methods": kept_ids(answers)}
            args.out.write_text(json.dumps(ids) + "\n", encoding="utf-8")
        elif args.out.suffix.lower() in MOVING:
            first, *rest = frames(answers, args.question, **size)
            options = {"append_images": rest, "duration": _FRAME_MS, "loop": 0}
            first.save(args.out, save_all=True, **options)
        else:
            drawn = sheet(answers, args.question, args.layers, **size)
            drawn.save(args.out, optimize=True, quality=_QUALITY)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    methods = {name: _told(answer) for name, answer in answers.items()}
    print(json.dumps({"out": str(args.out), "methods": methods}), flush=True)
    return 0


def _told(answer: TracedAnswer) -> dict[str, Any]:
    return {
        "text": answer.text,
        "entering": answer.sample.entering,
        "leaving": answer.sample.leaving,
        "mutual_information": answer.mutual_information,
        "cost": answer.cost.to_dict(),
        "seconds": dict(answer.seconds),
    }


if __name__ == "__main__":
    program.run(main)
