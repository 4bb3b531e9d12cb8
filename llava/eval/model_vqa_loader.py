"""Answers a question file: `python -m llava.eval.model_vqa_loader --model-path ... --help`.

The flags of haotian-liu/LLaVA's program of this name, and those of device, loading and pruning.
Two defaults differ: greedy decoding and `vicuna_v1`, with which LLaVA's scores are published.
Exit status: 0 every question is answered, 1 stopped (no space, no memory), 2 wrong input, 3 some
questions have no answer, 130 interrupted. In every case the same command goes on from there.
Under `torchrun` or `accelerate launch` with several processes each answers a part, and the first
merges them; see `llava.eval.run.sharding`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from llava.common import flags, program
from llava.pruning.arguments import add_pruning_arguments

from .run.answers import QuestionSource
from .run.arguments import (
    CHECKPOINT,
    DECODING,
    HARDWARE,
    SPEED,
    Help,
    add_depth_argument,
    add_settings,
    settings_given,
)
from .run.depths import pruner_in_decoder
from .run.interruption import Interruption
from .run.models import layers_to_scale_to
from .run.questions import QuestionFile
from .run.runner import EXIT_INTERRUPTED, run
from .run.settings import RunSettings
from .run.sharding import launched, merge_chunks, run_launched


def build_parser(
    program: str = "llava.eval.model_vqa_loader",
    questions: str = "a JSON-lines question file",
    **defaults: Any,
) -> argparse.ArgumentParser:
    """The command line of an answering `program`; `defaults` replace those of `RunSettings`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=f"Answer {questions} with a LLaVA checkpoint, with or without pruning. Run "
        "the same command again to continue.",
        formatter_class=Help,
        allow_abbrev=False,
    )
    files = parser.add_argument_group("files")
    add_settings(files, [*CHECKPOINT, "image_folder", "question_file", "answers_file"])
    add_settings(files, ["num_chunks", "chunk_idx"])
    files.add_argument(
        "--merge-chunks",
        type=flags.whole(),
        metavar="N",
        help="answer nothing: merge ANSWERS/N_0.jsonl to N_<N-1>.jsonl into the answers file",
    )

    add_settings(parser.add_argument_group("prompt and decoding"), DECODING, **defaults)
    add_settings(parser.add_argument_group("device and speed"), [*HARDWARE, *SPEED])
    add_settings(parser, ["visual_token_num"])
    add_pruning_arguments(parser)
    add_depth_argument(parser)
    return parser


def settings_from(args: argparse.Namespace) -> RunSettings:
    """The settings of a parsed command line, depths those of the checkpoint's decoder.

    Raises:
        ValueError, OSError: a number out of its range; no checkpoint to scale to.
    """
    pruner = pruner_in_decoder(args, layers_to_scale_to(args))
    return RunSettings(**settings_given(args), pruner=pruner)


def answer(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    read_questions: Callable[[argparse.Namespace], QuestionSource],
) -> int:
    """Run an answering program with these questions and return its exit status."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    args = parser.parse_args(argv)
    with Interruption():
        try:
            return _answer(parser, args, read_questions)
        except KeyboardInterrupt:
            print("Interrupted; the same command continues.", file=sys.stderr)
            return EXIT_INTERRUPTED


def _answer(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    read_questions: Callable[[argparse.Namespace], QuestionSource],
) -> int:
    try:
        settings = settings_from(args)
        if args.merge_chunks is not None:
            return merge_chunks(settings, read_questions(args), args.merge_chunks)
        if launch := launched():
            return run_launched(launch, settings, args, read_questions)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return run(settings, lambda: read_questions(args))


def read_question_file(args: argparse.Namespace) -> QuestionFile:
    """The questions of a parsed command line; raises as `QuestionFile`."""
    return QuestionFile(args.question_file, args.num_chunks, args.chunk_idx)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return answer(build_parser(), argv, read_question_file)


if __name__ == "__main__":
    program.run(main)
