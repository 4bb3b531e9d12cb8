"""What the figures that ask a model share: flags for checkpoint and methods, and their meaning."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llava.common import flags
from llava.eval.compare.runs import (
    SHARED,
    PlannedRun,
    add_shared_arguments,
    parse_runs,
    runs_in_decoder,
)
from llava.eval.run.arguments import add_checkpoint_arguments, add_depth_argument

DEMO = "playground/demo/llava-demo"


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add which checkpoint to load, how, and how it is asked."""
    parser.add_argument("--max-new-tokens", type=flags.whole(1, 10**6), default=32)
    add_checkpoint_arguments(parser, model_path=DEMO)


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one or several methods, their budget and what sets AutoPrune's curve."""
    group = parser.add_argument_group("pruning")
    group.add_argument(
        "--method",
        nargs="+",
        default=["autoprune"],
        metavar="METHOD[:BUDGET][@FIELD=VALUE,...]",
        help="one or several, as the runs of llava.eval.compare.sweep",
    )
    group.add_argument(
        "--target-token-num",
        type=flags.number(),
        metavar="T",
        help="budget of methods without one here",
    )
    group.add_argument("--budget-mode", choices=("published", "strict"))
    add_shared_arguments(group)
    add_depth_argument(group)


def planned(args: argparse.Namespace) -> list[PlannedRun]:
    """The methods of the command line, depths as they were given.

    Raises:
        ValueError: no such method, field or value, or the same method twice.
    """
    shared = {name: getattr(args, name) for name in (*SHARED, "budget_mode")}
    return parse_runs(args.method, shared, args.target_token_num)


def scaled(runs: Sequence[PlannedRun], args: argparse.Namespace, layers: int) -> list[PlannedRun]:
    """The methods in a decoder of `layers` layers; says each depth that changed on stderr."""
    return runs_in_decoder(runs, layers, args.depth_layers)
