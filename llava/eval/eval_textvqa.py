"""Scores TextVQA answers: `python -m llava.eval.eval_textvqa --annotation-file A --result-file R`.

The flags and the two lines of output are those of haotian-liu/LLaVA's program of this name; the
last line on stdout is the result as JSON. Needs no model.
"""

from __future__ import annotations

from collections.abc import Sequence

from llava.common import program

from .benchmarks import textvqa
from .benchmarks.scoring import run_scorer


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if everything was scored, 2 on wrong input."""
    return run_scorer(
        argv,
        program="llava.eval.eval_textvqa",
        description=__doc__,
        load=textvqa.load_annotations,
        score=textvqa.score_answers,
        metrics={"Accuracy": "accuracy"},
        variant="prompts",
    )


if __name__ == "__main__":
    program.run(main)
