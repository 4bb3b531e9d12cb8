"""Train a tiny Senna on the small driving world and write it in Senna's checkpoint format.

    python -m llava.train.train_drive --out playground/demo/drive-demo

A run that was stopped continues where it was when started again with the same work folder. The
questions to evaluate it on are written by `llava.train.drivebench`.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch

from llava.common import flags, program
from llava.model.tokenizer import load_tokenizer
from llava.train.drive.data import VOCAB_SIZE, corpus
from llava.train.drive.model import DriveModel, Shape, export
from llava.train.drive.trainer import Trainer
from llava.train.tokenizer import kept_tokenizer


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the exported checkpoint")
    parser.add_argument("--work", type=Path, default=Path(".work/drive"), help="resumable state")
    parser.add_argument(
        "--minutes", type=flags.number(0), default=math.inf, help="time limit of this run"
    )
    parser.add_argument(
        "--threads", type=flags.whole(0, 4096), default=0, help="CPU threads; 0: torch's default"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=flags.whole(0), default=0, help="of the initial weights")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    tokenizer_model = kept_tokenizer(args.work / "tokenizer", corpus, VOCAB_SIZE)
    tokenizer = load_tokenizer(args.work / "tokenizer")
    torch.manual_seed(args.seed)
    trainer = Trainer(
        DriveModel(Shape(vocab_size=len(tokenizer))), tokenizer, args.work, device=args.device
    )
    trainer.run(args.minutes)
    export(trainer.model, tokenizer_model, args.out)
    state = "the recipe is finished" if trainer.finished else "stopped early, run again to go on"
    print(f"{state}; wrote {args.out}", file=sys.stderr)


if __name__ == "__main__":
    program.run(main)
