"""Scores Senna's plans: `python -m llava.eval.eval_senna --annotation-file A --result-file R`.

A is eval_plan_qa.json; R holds answers as `llava.eval.model_vqa_senna` writes them. Prints both
accuracies, the table by class and F1 by action. The last line on stdout is the result as JSON.
Needs no model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.common import program

from .benchmarks.scoring import answers_in
from .benchmarks.senna import benchmark as senna
from .benchmarks.senna.score import describe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if everything was scored, 2 on wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.eval_senna", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--annotation-file", type=Path, required=True)
    parser.add_argument("--result-file", type=Path, required=True, help="answers to score")
    parser.add_argument(
        "--allow-missing", action="store_true", help="score what is answered, ignore the rest"
    )
    args = parser.parse_args(argv)
    try:
        plans = senna.load_plans(args.annotation_file)
        with answers_in(args.result_file) as answers:
            result = senna.score_answers(plans, answers, allow_missing=args.allow_missing)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(describe(result)))
    print(json.dumps({"result_file": str(args.result_file), **result}))
    return 0


if __name__ == "__main__":
    program.run(main)
