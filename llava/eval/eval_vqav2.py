"""Scores VQAv2 answers: `python -m llava.eval.eval_vqav2 --annotation-file A --result-file R`.

A is v2_mscoco_val2014_annotations.json; only the server scores answers to the test questions (see
scripts/convert_vqav2_for_submission.py). The last line on stdout is the result as JSON. Needs no
model.
"""

from __future__ import annotations

from collections.abc import Sequence

from llava.common import program

from .benchmarks import vqav2
from .benchmarks.scoring import run_scorer


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if everything was scored, 2 on wrong input."""
    return run_scorer(
        argv,
        program="llava.eval.eval_vqav2",
        description=__doc__,
        load=vqav2.load_annotations,
        score=vqav2.score_answers,
        metrics={"Accuracy": "accuracy"},
    )


if __name__ == "__main__":
    program.run(main)
