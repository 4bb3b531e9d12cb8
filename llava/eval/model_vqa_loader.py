"""Answers a question file: `python -m llava.eval.model_vqa_loader --model-path ... --help`.

The flags of haotian-liu/LLaVA's program of this name, and those of device, loading and pruning.
Two defaults differ: greedy decoding and `vicuna_v1`, with which LLaVA's scores are published.
Exit status: 0 every question is answered, 1 stopped (no space, no memory), 2 wrong input, 3 some
images could not be loaded, 130 interrupted. In every case the same command goes on from there.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path

from llava.conversation import conv_templates
from llava.pruning.arguments import add_pruning_arguments, pruner_from_args

from .questions import QuestionFile
from .runner import run
from .settings import RunSettings


class _Help(argparse.HelpFormatter):
    """Shows a default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.help and action.default not in (None, False, [], argparse.SUPPRESS)
        return f"{action.help} (default: %(default)s)" if shown else action.help


def build_parser() -> argparse.ArgumentParser:
    """The command line; defaults are those of `RunSettings`."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.model_vqa_loader",
        description="Answer a JSON-lines question file with a LLaVA checkpoint, with or without "
        "pruning. Run the same command again to continue.",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    files = parser.add_argument_group("files")
    files.add_argument("--model-path", required=True, help="checkpoint folder")
    files.add_argument("--model-base", help="base checkpoint, for projector-only checkpoints")
    files.add_argument("--vision-tower", help="CLIP folder instead of the one the config names")
    files.add_argument("--image-folder", type=Path, help="where the questions' images lie")
    files.add_argument("--question-file", type=Path, required=True)
    files.add_argument("--answers-file", type=Path, required=True, help="continued if it exists")
    files.add_argument("--num-chunks", type=int, help="parts the question file is split into")
    files.add_argument("--chunk-idx", type=int, help="the part to answer, from 0")

    decoding = parser.add_argument_group("prompt and decoding")
    decoding.add_argument("--conv-mode", choices=sorted(conv_templates), metavar="TEMPLATE")
    decoding.add_argument("--temperature", type=float, help="0 is greedy")
    decoding.add_argument("--top_p", type=float, help="only with a temperature above 0")
    decoding.add_argument("--num_beams", type=int)
    decoding.add_argument("--max_new_tokens", type=int)
    decoding.add_argument("--seed", type=int, help="only matters with a temperature above 0")

    device = parser.add_argument_group("device and speed")
    device.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: the best there is")
    device.add_argument("--dtype", choices=("auto", "float32", "float16", "bfloat16"))
    device.add_argument(
        "--attn-implementation", choices=("sdpa", "eager", "flash_attention_2"), metavar="KERNEL"
    )
    device.add_argument("--load-4bit", action="store_true", help="needs bitsandbytes")
    device.add_argument("--load-8bit", action="store_true", help="needs bitsandbytes")
    device.add_argument("--batch-size", type=int, help="questions answered at a time")
    device.add_argument("--num-workers", type=int, help="processes that prepare images ahead")

    parser.add_argument(
        "--visual-token-num",
        type=int,
        help="upper bound on the tokens that the vision tower hands over",
    )
    parser.set_defaults(
        **{f.name: f.default for f in _flags() if f.default is not MISSING},
    )
    add_pruning_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        given = {f.name: getattr(args, f.name) for f in _flags()}
        settings = RunSettings(**given, pruner=pruner_from_args(args))
    except ValueError as error:
        parser.error(str(error))
    return run(
        settings,
        lambda: QuestionFile(settings.question_file, settings.num_chunks, settings.chunk_idx),
    )


def _flags() -> list[Field]:
    """The settings that have a flag of their own name; pruning has flags of its own."""
    return [field for field in fields(RunSettings) if field.name != "pruner"]


if __name__ == "__main__":
    sys.exit(main())
