"""What the figures that ask a model share: flags for checkpoint and methods, and their meaning."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llava.conversation import conv_templates
from llava.eval.arguments import add_depth_argument, setting_defaults
from llava.eval.depths import meant_for, scale_depths
from llava.eval.models import load_model
from llava.eval.plan import PlannedRun, parse_runs
from llava.pruning import find

DEMO = "playground/demo/llava-demo"

_CURVE = ("x0", "k0", "gamma", "beta", "budget_mode")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add which checkpoint to load, how, and how it is asked."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model-path", default=DEMO, help="checkpoint folder (default: %(default)s)"
    )
    group.add_argument("--model-base", help="base checkpoint, for projector-only checkpoints")
    group.add_argument("--vision-tower", help="CLIP folder instead of the one the config names")
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: the best there is")
    group.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "float16", "bfloat16")
    )
    group.add_argument(
        "--attn-implementation",
        default="sdpa",
        choices=("sdpa", "eager", "flash_attention_2"),
        metavar="KERNEL",
    )
    group.add_argument("--load-4bit", action="store_true", help="needs bitsandbytes")
    group.add_argument("--load-8bit", action="store_true", help="needs bitsandbytes")
    group.add_argument(
        "--conv-mode", default="vicuna_v1", choices=sorted(conv_templates), metavar="TEMPLATE"
    )
    group.add_argument("--max-new-tokens", type=int, default=32)


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one or several methods, their budget and what sets AutoPrune's curve."""
    group = parser.add_argument_group("pruning")
    group.add_argument(
        "--method",
        nargs="+",
        default=["autoprune"],
        metavar="METHOD[:BUDGET][@FIELD=VALUE,...]",
        help="one or several, as the runs of llava.eval.sweep",
    )
    group.add_argument(
        "--target-token-num", type=float, metavar="T", help="budget of methods without one here"
    )
    group.add_argument("--budget-mode", choices=("published", "strict"))
    for name in ("x0", "k0", "gamma", "beta"):
        group.add_argument(f"--{name}", type=float, help="see llava.eval.model_vqa_loader --help")
    add_depth_argument(group)


def planned(args: argparse.Namespace) -> list[PlannedRun]:
    """The methods of the command line, depths as they were given.

    Raises:
        ValueError: no such method, field or value, or the same method twice.
    """
    flags = {name: getattr(args, name) for name in _CURVE}
    return parse_runs([_with_budget(spec, args.target_token_num) for spec in args.method], flags)


def scaled(runs: Sequence[PlannedRun], args: argparse.Namespace, layers: int) -> list[PlannedRun]:
    """The methods for a decoder of `layers` layers; says each depth that changed on stderr.

    Without --depth-layers and --x0, depths are taken to be meant for 32 layers, as the scripts do.
    """
    given_for = meant_for(args.depth_layers, args.x0, layers)
    result = []
    for run in runs:
        pruner, said = scale_depths(run.pruner, given_for, layers)
        for sentence in said:
            print(sentence, file=sys.stderr)
        result.append(replace(run, pruner=pruner))
    return result


def load(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Tokenizer, model and image processor of the command line.

    Raises:
        ValueError, OSError, ImportError: no such checkpoint, device or kernel; says which.
    """
    return load_model(SimpleNamespace(**setting_defaults() | vars(args)))


def demand_ending(path: Path, endings: Sequence[str]) -> None:
    """Raise a ValueError for a file whose ending is none of the formats that can be written."""
    if path.suffix.lower() not in endings:
        raise ValueError(f"--out must end in {', '.join(endings)}, got {path}")


def _with_budget(spec: str, tokens: float | None) -> str:
    method, at, settings = spec.partition("@")
    if tokens is None or ":" in method or "target_" in settings:
        return spec
    takes_one = "target_token_num" in {field.name for field in fields(find(method))}
    return f"{method}:{tokens:g}{at}{settings}" if takes_one else spec
