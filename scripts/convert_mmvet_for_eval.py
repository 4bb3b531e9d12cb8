"""Writes MM-Vet answers as MM-Vet's evaluator, which has GPT-4 grade them, takes them.

    python scripts/convert_mmvet_for_eval.py --src ANSWERS.jsonl --dst RESULTS.json

With --question-file, a question without an answer is an error. Flags: haotian-liu/LLaVA,
scripts/convert_mmvet_for_eval.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.common import program
from llava.eval.benchmarks import mmvet
from llava.eval.benchmarks.scoring import answers_in


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if the file was written, 2 on wrong input."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--src", type=Path, required=True, help="answers in LLaVA's schema")
    parser.add_argument("--dst", type=Path, required=True, help="where the file goes")
    parser.add_argument("--question-file", type=Path, help="the questions that were to be answered")
    args = parser.parse_args(argv)
    try:
        with answers_in(args.src) as answers:
            count = mmvet.write_submission(args.dst, answers, args.question_file)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(mmvet.GRADING, file=sys.stderr)
    print(json.dumps({"answers": count, "file": str(args.dst)}))
    return 0


if __name__ == "__main__":
    program.run(main)
