"""Writes VQAv2 answers as the test server takes them.

    python scripts/convert_vqav2_for_submission.py --ckpt NAME --split QUESTIONS [--dir FOLDER]
    python scripts/convert_vqav2_for_submission.py --src ANSWERS.jsonl --test-file T.jsonl --dst F

The first form takes the files from where haotian-liu/LLaVA (same name, same flags) has them in
FOLDER: answers/QUESTIONS/NAME/merge.jsonl, llava_vqav2_mscoco_test2015.jsonl and QUESTIONS.jsonl;
the result is answers_upload/QUESTIONS/NAME.json. The second form, and any of its flags beside the
first, names them. A question of the question file without an answer is an error; the other
questions of the test file get an empty answer.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.common import program
from llava.eval.benchmarks import vqav2
from llava.eval.benchmarks.scoring import answers_in


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if the file was written, 2 on wrong input."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.ckpt and args.split:
        args.src = args.src or args.dir / "answers" / args.split / args.ckpt / "merge.jsonl"
        args.test_file = args.test_file or args.dir / vqav2.TEST_FILE
        args.dst = args.dst or args.dir / "answers_upload" / args.split / f"{args.ckpt}.json"
        args.question_file = args.question_file or args.dir / f"{args.split}.jsonl"
    elif not (args.src and args.test_file and args.dst):
        parser.error("give --ckpt and --split, or --src, --test-file and --dst")
    try:
        with answers_in(args.src) as answers:
            counts = vqav2.write_submission(
                args.dst,
                answers,
                args.test_file,
                question_file=args.question_file,
                allow_missing=args.allow_missing,
            )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({**counts, "file": str(args.dst)}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--dir", type=Path, default=Path("./playground/data/eval/vqav2"))
    parser.add_argument("--ckpt", help="name of the checkpoint's folder of answers")
    parser.add_argument("--split", help="name of the question file, without .jsonl")
    parser.add_argument("--src", type=Path, help="answers in LLaVA's schema")
    parser.add_argument("--test-file", type=Path, help="every question that the server wants")
    parser.add_argument("--dst", type=Path, help="where the submission goes")
    parser.add_argument("--question-file", type=Path, help="the questions that were to be answered")
    parser.add_argument(
        "--allow-missing", action="store_true", help="leave what is not answered empty"
    )
    return parser


if __name__ == "__main__":
    program.run(main)
