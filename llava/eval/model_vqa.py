"""Answers free questions, such as MM-Vet's: `python -m llava.eval.model_vqa --help`.

The program of this name in haotian-liu/LLaVA. It is `llava.eval.model_vqa_loader`, whose flags and
exit status it has, with room for longer answers: 1024 new tokens instead of 128.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llava.common import program

from .benchmarks import mmvet
from .model_vqa_loader import answer, build_parser
from .run.questions import QuestionFile


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = build_parser("llava.eval.model_vqa")
    result.set_defaults(max_new_tokens=mmvet.BENCHMARK.max_new_tokens)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return answer(
        parser(),
        argv,
        lambda args: QuestionFile(args.question_file, args.num_chunks, args.chunk_idx),
    )


if __name__ == "__main__":
    program.run(main)
