"""Writes GQA answers as GQA's own eval.py reads them; `llava.eval.score` needs no such file.

    python scripts/convert_gqa_for_eval.py --src ANSWERS.jsonl --dst PREDICTIONS.json

Flags: haotian-liu/LLaVA, scripts/convert_gqa_for_eval.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.common import program
from llava.eval.benchmarks import gqa
from llava.eval.benchmarks.scoring import answers_in


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if the file was written, 2 on wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--src", type=Path, required=True, help="answers in LLaVA's schema")
    parser.add_argument("--dst", type=Path, required=True, help="where the predictions go")
    args = parser.parse_args(argv)
    try:
        with answers_in(args.src) as answers:
            count = gqa.write_predictions(args.dst, answers)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"predictions": count, "file": str(args.dst)}))
    return 0


if __name__ == "__main__":
    program.run(main)
