"""Scores TextVQA answers: `python -m llava.eval.eval_textvqa --annotation-file A --result-file R`.

The flags and the two lines of output are those of haotian-liu/LLaVA's program of this name; the
last line on stdout is the result as JSON, or `{"results": [...]}` for --result-dir. Needs no model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.common import program

from .benchmarks import textvqa
from .benchmarks.scoring import answers_in


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if everything was scored, 2 on wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.eval_textvqa", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--annotation-file", type=Path, required=True)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--result-file", type=Path, help="answers to score")
    which.add_argument("--result-dir", type=Path, help="score every *.jsonl in this folder")
    parser.add_argument(
        "--allow-missing", action="store_true", help="score what is answered, ignore the rest"
    )
    args = parser.parse_args(argv)
    results = []
    try:
        annotations = textvqa.load_annotations(args.annotation_file)
        files = [args.result_file] if args.result_file else _answer_files(args.result_dir)
        for path in files:
            with answers_in(path) as answers:
                score = textvqa.score_answers(
                    annotations, answers, allow_missing=args.allow_missing
                )
            results.append({"result_file": str(path), **score})
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for result in results:
        accuracy = result["accuracy"]
        print(f"{Path(result['result_file']).stem} ({result['prompts']})")
        print(f"Samples: {result['samples']}")
        print("Accuracy: none" if accuracy is None else f"Accuracy: {accuracy:.2f}%")
    print(json.dumps(results[0] if args.result_file else {"results": results}))
    return 0


def _answer_files(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.glob("*.jsonl") if not p.name.endswith(".errors.jsonl"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no answers: expected files *.jsonl in it.")
    return files


if __name__ == "__main__":
    program.run(main)
