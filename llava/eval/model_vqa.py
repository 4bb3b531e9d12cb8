"""Answers free questions, such as MM-Vet's: `python -m llava.eval.model_vqa --help`.

The program of this name in haotian-liu/LLaVA. It is `llava.eval.model_vqa_loader`, whose flags and
exit status it has, with room for longer answers: 1024 new tokens instead of 128.
"""

from __future__ import annotations

from collections.abc import Sequence

from llava.common import program

from .benchmarks import mmvet
from .model_vqa_loader import answer, build_parser, read_question_file


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    tokens = mmvet.BENCHMARK.max_new_tokens
    return answer(
        build_parser("llava.eval.model_vqa", max_new_tokens=tokens), argv, read_question_file
    )


if __name__ == "__main__":
    program.run(main)
