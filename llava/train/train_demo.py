"""Train the embedded demo checkpoint from scratch and write it in the original LLaVA format.

    python -m llava.train.train_demo --out playground/demo/llava-demo

A run that was stopped continues where it was when started again with the same work folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from llava.common import flags, program
from llava.model.tokenizer import load_tokenizer
from llava.train.export import export
from llava.train.model import DemoModel, Shape
from llava.train.recipe import DEMO
from llava.train.tokenizer import corpus, kept_tokenizer
from llava.train.trainer import Trainer
from llava.train.warm_start import start_from


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the exported checkpoint")
    parser.add_argument("--work", type=Path, default=Path(".work/demo"), help="resumable state")
    parser.add_argument(
        "--minutes", type=flags.number(0), default=float("inf"), help="time limit of this run"
    )
    parser.add_argument(
        "--threads", type=flags.whole(0, 4096), default=0, help="CPU threads; 0: torch's default"
    )
    parser.add_argument(
        "--workers", type=flags.whole(1, 256), default=1, help="processes that render"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--precision",
        choices=("bfloat16", "float32"),
        default="bfloat16" if torch.cuda.is_available() else "float32",
        help="bfloat16 is slow on processors without instructions for it",
    )
    parser.add_argument("--init", type=Path, help="checkpoint folder whose weights to start from")
    parser.add_argument("--start", metavar="STAGE", help="with --init: the stage to begin with")
    parser.add_argument("--seed", type=flags.whole(0), default=0, help="of the initial weights")
    args = parser.parse_args(arguments)
    if args.start and not args.init:
        parser.error("--start needs --init: the stages before it would be missing")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    tokenizer_model = kept_tokenizer(args.work / "tokenizer", corpus)
    tokenizer = load_tokenizer(args.work / "tokenizer")
    shape = Shape(vocab_size=len(tokenizer))
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    trainer = Trainer(
        DemoModel(shape),
        DEMO,
        tokenizer,
        args.work,
        device=device,
        bfloat16=args.precision == "bfloat16",
        workers=args.workers,
    )
    if args.init and trainer.fresh:
        known = start_from(trainer.model, tokenizer, args.init)
        message = f"started from {args.init}, which knows {known} of {len(tokenizer)} pieces"
        print(message, file=sys.stderr)
        if args.start:
            trainer.skip_to(args.start)
    trainer.run(args.minutes)
    export(trainer.model, tokenizer_model, args.out)
    state = "the recipe is finished" if trainer.finished else "stopped early, run again to go on"
    print(f"{state}; wrote {args.out}", file=sys.stderr)


if __name__ == "__main__":
    program.run(main)
