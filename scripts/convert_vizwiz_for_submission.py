"""Writes VizWiz answers as the test server takes them; every question needs its answer.

    python scripts/convert_vizwiz_for_submission.py --annotation-file llava_test.jsonl \\
        --result-file ANSWERS.jsonl --result-upload-file UPLOAD.json

Flags: haotian-liu/LLaVA, scripts/convert_vizwiz_for_submission.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.common import program
from llava.eval.benchmarks import vizwiz
from llava.eval.benchmarks.scoring import answers_in


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if the file was written, 2 on wrong input."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--annotation-file", type=Path, required=True, help="the questions: llava_test.jsonl"
    )
    parser.add_argument("--result-file", type=Path, required=True, help="answers to them")
    parser.add_argument("--result-upload-file", type=Path, required=True, help="where it goes")
    args = parser.parse_args(argv)
    try:
        with answers_in(args.result_file) as answers:
            count = vizwiz.write_submission(args.result_upload_file, args.annotation_file, answers)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"answers": count, "file": str(args.result_upload_file)}))
    return 0


if __name__ == "__main__":
    program.run(main)
