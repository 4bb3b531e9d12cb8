"""Scores POPE answers: `python -m llava.eval.eval_pope --annotation-dir ... --result-file ...`.

The flags and the lines for each category are those of haotian-liu/LLaVA's program of this name,
with rates from 0 to 1; the last line on stdout is the result as JSON, with rates in percent.
Needs no model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.common import program

from .benchmarks import pope
from .benchmarks.scoring import answers_in

_RATES = {
    "Accuracy": "accuracy",
    "Precision": "precision",
    "Recall": "recall",
    "F1 score": "f1",
    "Yes ratio": "yes_ratio",
}
_SUMMARY = ("f1", "accuracy", "precision", "recall", "yes_ratio")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if everything was scored, 2 on wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.eval_pope", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "--annotation-dir", type=Path, required=True, help="folder of coco_pope_*.json"
    )
    parser.add_argument("--question-file", type=Path, required=True)
    parser.add_argument("--result-file", type=Path, required=True, help="answers to score")
    parser.add_argument(
        "--allow-missing", action="store_true", help="score what is answered, ignore the rest"
    )
    args = parser.parse_args(argv)
    try:
        result = _score(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for category, entry in result["categories"].items():
        _print_category(category, entry)
    print(f"Mean F1 score: {_fraction(result['f1'], '.4f')}")
    print(json.dumps(result))
    return 0


def _score(args: argparse.Namespace) -> dict[str, Any]:
    truth = pope.load_truth(args.question_file, args.annotation_dir)
    with answers_in(args.result_file) as answers:
        result = pope.score_answers(truth, answers, allow_missing=args.allow_missing)
    return {"result_file": str(args.result_file), **result}


def _print_category(category: str, entry: dict[str, Any]) -> None:
    print(f"Category: {category}, # samples: {entry['samples']}")
    print("TP\tFP\tTN\tFN")
    print("\t".join(str(entry[cell]) for cell in ("tp", "fp", "tn", "fn")))
    for title, rate in _RATES.items():
        print(f"{title}: {_fraction(entry[rate], '.4f')}")
    print(", ".join(_fraction(entry[rate], ".3f") for rate in _SUMMARY))
    print("=" * 36)


def _fraction(percent: float | None, style: str) -> str:
    return "none" if percent is None else format(percent / 100, style)


if __name__ == "__main__":
    program.run(main)
