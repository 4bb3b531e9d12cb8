"""Figure 1 of the paper: where text looks in the picture, layer by layer, for two questions.

    python -m llava.analysis.attention --image PICTURE --simple "What is red?" \
        --complex "What is left of the red thing?" --out attention.png

Paper: arXiv 2509.23931, Figure 1 and section 3.2: for a simple question the attention settles early
and stays, for a complex one it moves on from layer to layer. A row a question, a panel a layer:
attention of the text behind the picture to each patch, mean over its tokens and over the heads, of
the unpruned model, coloured from 0 to the panel's own largest. Each panel names its layer (counted
from 0), its mutual information (summed over heads, bits, as AutoPrune's released settings have it;
--preset paper: as equations 3 and 4), how much of the attention goes to the picture, and how few
visual tokens hold half of that. The paper's layers 2, 4, 8 and 16 are moved to the depth of this
decoder. It takes LLaVA and the models of `llava.hf`. The last line of stdout is what was drawn as
JSON. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from PIL import Image

from llava import pruning
from llava.common import flags, program
from llava.eval.run.arguments import Help
from llava.eval.run.depths import PUBLISHED_LAYERS
from llava.mm_utils import load_image
from llava.pruning.base import Observation, Pruner, PrunerRun
from llava.pruning.cost import DecoderShape
from llava.pruning.indicators import text_relevance
from llava.pruning.layout import TokenLayout
from llava.pruning.methods.autoprune import AutoPrune
from llava.pruning.methods.autoprune.run import information

from . import asking, plotting, traced
from .stock_answers import load_any
from .views import View, demand_places

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER_LAYERS = (2, 4, 8, 16)
_FAINT = 0.35  # of the picture below the heat
_GAP = 0.03  # between two views, of the width of a panel


@dataclass(frozen=True)
class AttentionMap:
    """What text gives to each visual token in a layer.

    weights: by its id (`llava.analysis.views`), mean over heads and text tokens; they sum to the
        share that the picture gets of all attention
    mutual_information: of text and picture in that layer
    """

    layer: int
    weights: tuple[float, ...]
    mutual_information: float

    @property
    def share(self) -> float:
        """Part of the attention that goes to the picture, 0 to 1."""
        return sum(self.weights)

    @property
    def half(self) -> int:
        """The least number of visual tokens that hold half of it."""
        total = 0.0
        for count, weight in enumerate(sorted(self.weights, reverse=True), 1):
            total += weight
            if total >= self.share / 2:
                return count
        return len(self.weights)


@dataclass(frozen=True, kw_only=True)
class AttentionProbe(Pruner):
    """Prunes nothing; leaves a map of the first sample in `maps` for each of the `layers`.

    `measure` has the convention of the mutual information. One probe serves one prefill.
    """

    method: ClassVar[str] = "attention-probe"

    layers: tuple[int, ...]
    measure: AutoPrune = field(default_factory=AutoPrune)
    maps: dict[int, AttentionMap] = field(default_factory=dict)

    def start(self, layout: TokenLayout, shape: DecoderShape) -> PrunerRun:
        if wrong := [layer for layer in self.layers if not 0 <= layer < shape.layers]:
            raise ValueError(
                f"layer {wrong[0]} of a decoder of {shape.layers}: expected 0 to {shape.layers - 1}"
            )
        return _ProbeRun(self)


class _ProbeRun(PrunerRun):
    def __init__(self, probe: AttentionProbe) -> None:
        self._probe = probe

    def rows(self, layer: int, layout: TokenLayout) -> int:
        return max(layout.tail) if layer in self._probe.layers else 0

    def after_layer(self, observation: Observation) -> None:
        if observation.rows is None:
            return
        weights = text_relevance(observation.rows, observation.row_mask)[0]
        self._probe.maps[observation.layer] = AttentionMap(
            layer=observation.layer,
            weights=tuple(weights[observation.layout.is_visual[0]].tolist()),
            mutual_information=float(information(self._probe.measure, observation)[0]),
        )


@dataclass(frozen=True)
class Panels:
    """A question, what kind it is, the answer, what was seen, and the maps by layer."""

    kind: str
    question: str
    answer: str
    views: Sequence[View]
    maps: Sequence[AttentionMap]


def paper_layers(layers: int) -> tuple[int, ...]:
    """The paper's layers at the same relative depth of a decoder of `layers`, ascending."""
    moved = (round(layer * layers / PUBLISHED_LAYERS) for layer in PAPER_LAYERS)
    return tuple(sorted({min(max(layer, 1), layers - 1) for layer in moved}))


def look(
    loaded: tuple[Any, Any, Any],
    image: Image.Image,
    questions: Mapping[str, str],
    layers: Sequence[int],
    measure: AutoPrune,
    conv_mode: str = "vicuna_v1",
    max_new_tokens: int = 32,
) -> list[Panels]:
    """Ask the unpruned model each question, named by its kind, and look at its attention.

    Raises:
        ValueError: a layer that the decoder does not have, tokens without a place on the picture,
            or what `traced.run` raises.
    """
    tokenizer, model, image_processor = loaded
    rows = []
    for kind, question in questions.items():
        probe = AttentionProbe(layers=tuple(layers), measure=measure)
        answer = traced.run(
            model,
            tokenizer,
            image_processor,
            image,
            question,
            probe,
            conv_mode,
            max_new_tokens,
        )
        demand_places(answer.views)
        maps = [probe.maps[layer] for layer in layers]
        rows.append(Panels(kind, question, answer.text, answer.views, maps))
    return rows


def figure(rows: Sequence[Panels]) -> Figure:
    """Heat maps over the picture; a row of panels for each question.

    Raises:
        ImportError: matplotlib is not installed; says how to get it.
    """
    columns, heights = len(rows[0].maps), [stacked(row.views)[1] for row in rows]
    result = plotting.new_figure(2.3 * columns, sum(2.3 * height + 0.7 for height in heights))
    result.get_layout_engine().set(h_pad=0.1)  # inches, between a question and its titles
    parts = [result] if len(rows) == 1 else result.subfigures(len(rows), 1, height_ratios=heights)
    for part, row in zip(parts, rows):
        part.suptitle(f'{row.kind}: {row.question} "{row.answer}"', fontsize="medium")
        panels = part.subplots(1, columns, squeeze=False)[0]
        for axes, attention_map in zip(panels, row.maps):
            _draw(axes, row.views, attention_map)
    return result


def stacked(views: Sequence[View]) -> tuple[list[tuple[float, float, float, float]], float]:
    """Where views are in a panel of width 1, as (left, right, bottom, top) downwards from its top,
    and the height of the panel. Two are one below the other, more are in rows as long as these are
    many."""
    across = 1 if len(views) < 3 else isqrt(len(views) - 1) + 1
    width = (1 - _GAP * (across - 1)) / across
    places, top = [], -_GAP
    for start in range(0, len(views), across):
        row = views[start : start + across]
        top += _GAP
        for number, view in enumerate(row):
            left = number * (width + _GAP)
            bottom = top + width * view.rows / view.columns
            places.append((left, left + width, bottom, top))
        top = max(place[2] for place in places)
    return places, top


def _draw(axes: Any, views: Sequence[View], attention_map: AttentionMap) -> None:
    places, height = stacked(views)
    heats = [[attention_map.weights[token] for token in view.tokens] for view in views]
    most = max(map(max, heats))
    for view, weights, place in zip(views, heats, places):
        grey = view.picture.convert("L")
        axes.imshow(grey, cmap="gray", extent=place, vmin=0, vmax=255)
        heat = [weights[i : i + view.columns] for i in range(0, len(weights), view.columns)]
        colours = {"cmap": "inferno", "vmin": 0, "vmax": most, "alpha": 1 - _FAINT}
        axes.imshow(heat, extent=place, interpolation="none", **colours)
    axes.set(xlim=(0, 1), ylim=(height, 0))
    axes.set_title(
        f"layer {attention_map.layer}, MI {attention_map.mutual_information:.3f}\n"
        f"{attention_map.share:.0%} on picture, half on {attention_map.half}",
        fontsize="small",
    )
    axes.set_axis_off()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 2 on wrong input or without matplotlib."""
    parser = argparse.ArgumentParser(
        prog=program.name("llava.analysis.attention"),
        description="Draw the attention of text to a picture, layer by layer, for two questions.",
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--simple", required=True, metavar="QUESTION")
    parser.add_argument("--complex", required=True, metavar="QUESTION")
    parser.add_argument("--out", type=Path, default=Path("attention.png"), metavar="FILE")
    parser.add_argument(
        "--layers",
        type=flags.whole(),
        nargs="+",
        metavar="L",
        help="instead of the paper's, from 0",
    )
    parser.add_argument(
        "--preset",
        choices=sorted(AutoPrune.presets),
        default="released",
        help="how MI is measured",
    )
    parser.add_argument("--dpi", type=plotting.dpi, default=plotting.DPI)
    asking.add_model_arguments(parser)
    args = parser.parse_args(argv)
    try:
        plotting.demand_ending(args.out, plotting.FORMATS)
        plotting.new_figure(1, 1)
        image = load_image(args.image)
        loaded = load_any(args)[:3]
        layers = loaded[1].config.get_text_config().num_hidden_layers
        rows = look(
            loaded,
            image,
            {"simple": args.simple, "complex": args.complex},
            args.layers or paper_layers(layers),
            pruning.build("autoprune", preset=args.preset),
            args.conv_mode,
            args.max_new_tokens,
        )
        plotting.save(figure(rows), args.out, args.dpi)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    told = [
        {
            "kind": row.kind,
            "question": row.question,
            "answer": row.answer,
            "layers": [_told(attention_map) for attention_map in row.maps],
        }
        for row in rows
    ]
    print(json.dumps({"out": str(args.out), "rows": told}), flush=True)
    return 0


def _told(attention_map: AttentionMap) -> dict[str, float]:
    return {
        "layer": attention_map.layer,
        "mutual_information": attention_map.mutual_information,
        "share": attention_map.share,
        "half": attention_map.half,
    }


if __name__ == "__main__":
    program.run(main)
