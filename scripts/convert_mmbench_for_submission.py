"""Writes MMBench answers as the Excel file that the MMBench server takes; needs openpyxl.

    python scripts/convert_mmbench_for_submission.py --annotation-file mmbench_dev_20230712.tsv \\
        --result-dir FOLDER --upload-dir FOLDER --experiment NAME

Reads NAME.jsonl in the one folder and writes NAME.xlsx into the other. The test split needs it;
`python -m llava.eval.score --benchmark mmbench` scores the dev split without. Flags:
haotian-liu/LLaVA, scripts/convert_mmbench_for_submission.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.common import program
from llava.eval.benchmarks import mmbench
from llava.eval.benchmarks.scoring import answers_in


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if the file was written, 2 on wrong input or without openpyxl."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--annotation-file", type=Path, required=True, help="the TSV file")
    parser.add_argument("--result-dir", type=Path, required=True, help="has the answers")
    parser.add_argument("--upload-dir", type=Path, required=True, help="where the file goes")
    parser.add_argument("--experiment", required=True, help="name of the answers, without .jsonl")
    args = parser.parse_args(argv)
    # No with_suffix: a name may have a dot of its own, such as llava-v1.5-7b.
    target = args.upload_dir / f"{args.experiment}.xlsx"
    try:
        with answers_in(args.result_dir / f"{args.experiment}.jsonl") as answers:
            count = mmbench.write_submission(target, args.annotation_file, answers)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"answers": count, "file": str(target)}))
    return 0


if __name__ == "__main__":
    program.run(main)
