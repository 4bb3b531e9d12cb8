"""Scores GQA answers: `python -m llava.eval.eval_gqa --annotation-file A --result-file R`.

A is testdev_balanced_questions.json; R holds answers as the answering program writes them, without
conversion. The last line on stdout is the result as JSON. Needs no model.
"""

from __future__ import annotations

from collections.abc import Sequence

from llava.common import program

from .benchmarks import gqa
from .benchmarks.scoring import run_scorer


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if everything was scored, 2 on wrong input."""
    return run_scorer(
        argv,
        program="llava.eval.eval_gqa",
        description=__doc__,
        load=gqa.load_annotations,
        score=gqa.score_answers,
        metrics={"Binary": "binary", "Open": "open", "Accuracy": "accuracy"},
    )


if __name__ == "__main__":
    program.run(main)
