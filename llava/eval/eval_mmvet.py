"""Scores MM-Vet from grades: `python -m llava.eval.eval_mmvet --annotation-file A --grade-file G`.

A is mm-vet.json of mm-vet.zip, G what MM-Vet's own evaluator wrote after GPT-4 had graded the file
of scripts/convert_mmvet_for_eval.py. The last line on stdout is the result as JSON. Needs no model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.common import program

from .benchmarks import mmvet


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if the grades were read, 2 on wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.eval_mmvet", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--annotation-file", type=Path, required=True)
    parser.add_argument("--grade-file", type=Path, required=True)
    parser.add_argument(
        "--allow-missing", action="store_true", help="score what is graded, ignore the rest"
    )
    args = parser.parse_args(argv)
    try:
        result = mmvet.score_grades(
            mmvet.load_capabilities(args.annotation_file),
            mmvet.load_grades(args.grade_file),
            allow_missing=args.allow_missing,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Samples: {result['samples']}, each graded {result['gradings']} times")
    print(f"Total: {result['total']:.2f} (standard deviation {result['deviation']:.2f})")
    for name, entry in result["by_capability"].items():
        print(f"{name}: {entry['accuracy']:.2f}")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    program.run(main)
