"""Answers ScienceQA: `python -m llava.eval.model_vqa_science --model-path ... --help`.

The flags of haotian-liu/LLaVA's program of this name, except --answer-prompter, and those of
`llava.eval.model_vqa_loader`, whose exit status it shares. Greedy decoding and `vicuna_v1` are the
defaults, with which LLaVA-1.5's scores are published; they also need --single-pred-prompt.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llava.common import program

from .benchmarks import scienceqa
from .model_vqa_loader import answer, build_parser
from .run.question_list import QuestionList


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = build_parser(
        "llava.eval.model_vqa_science",
        "ScienceQA, a JSON array like llava_test_CQM-A.json,",
        max_new_tokens=scienceqa.BENCHMARK.max_new_tokens,
    )
    result.add_argument(
        "--single-pred-prompt", action="store_true", help="ask for the option's letter alone"
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return answer(parser(), argv, _questions)


def _questions(args: argparse.Namespace) -> QuestionList:
    instruction = scienceqa.INSTRUCTION if args.single_pred_prompt else None
    return scienceqa.read_questions(
        args.question_file, args.num_chunks, args.chunk_idx, instruction=instruction
    )


if __name__ == "__main__":
    program.run(main)
