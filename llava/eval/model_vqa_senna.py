"""Answers Senna's plan questions: `python -m llava.eval.model_vqa_senna --model-path ... --help`.

The flags of `llava.eval.model_vqa_loader`, whose exit status it shares, with the defaults of
Senna's own evaluation: conversation `llava_v1` and up to 512 new tokens. --question-file is a JSON
list in Senna's format. The views stay in the list's order, though the labels in the text have
another one: so Senna was trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llava.common import program

from .benchmarks.senna import benchmark as senna
from .benchmarks.senna.questions import SennaQuestions
from .model_vqa_loader import answer, build_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = build_parser(
        "llava.eval.model_vqa_senna",
        "Senna's questions about driving plans",
        max_new_tokens=senna.BENCHMARK.max_new_tokens,
        conv_mode=senna.BENCHMARK.conv_mode,
    )
    return answer(parser, argv, _questions)


def _questions(args: argparse.Namespace) -> SennaQuestions:
    return SennaQuestions(args.question_file, args.num_chunks, args.chunk_idx)


if __name__ == "__main__":
    program.run(main)
