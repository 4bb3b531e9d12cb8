"""Answers MMBench: `python -m llava.eval.model_vqa_mmbench --model-path ... --help`.

The flags of haotian-liu/LLaVA's program of this name and those of `llava.eval.model_vqa_loader`,
whose exit status it shares. Greedy decoding and `vicuna_v1` are the defaults, with which LLaVA's
scores are published; they also need --single-pred-prompt, and --lang cn for MMBench-CN. Images come
out of the TSV file, so --image-folder is accepted and does nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llava.common import program

from .benchmarks import mmbench
from .model_vqa_loader import answer, build_parser
from .run.question_list import TableQuestions


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = build_parser(
        "llava.eval.model_vqa_mmbench",
        "a TSV file of MMBench or MMBench-CN",
        max_new_tokens=mmbench.MMBENCH.max_new_tokens,
    )
    result.add_argument(
        "--single-pred-prompt", action="store_true", help="ask for the option's letter alone"
    )
    result.add_argument(
        "--lang", choices=sorted(mmbench.INSTRUCTIONS), default="en", help="of --single-pred-prompt"
    )
    result.add_argument("--all-rounds", action="store_true", help="refused: the TSV is rotated")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return answer(parser(), argv, _questions)


def _questions(args: argparse.Namespace) -> TableQuestions:
    if args.all_rounds:
        raise ValueError(
            "--all-rounds rotates the options in the program, but the official TSV already has "
            "every rotation as a row of its own (index + 1000000, + 2000000, ...). Leave it out."
        )
    instruction = mmbench.INSTRUCTIONS[args.lang] if args.single_pred_prompt else None
    return mmbench.read_questions(
        args.question_file, args.num_chunks, args.chunk_idx, instruction=instruction
    )


if __name__ == "__main__":
    program.run(main)
