"""Scores TextVQA answers: `python -m llava.eval.eval_textvqa --annotation-file A --result-file R`.

The flags and the two lines of output are those of haotian-liu/LLaVA's program of this name; the
last line on stdout is the result as JSON. Needs no model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .benchmarks import textvqa
from .linefile import read_lines


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
    try:
        annotations = textvqa.load_annotations(args.annotation_file)
        files = [args.result_file] if args.result_file else _answer_files(args.result_dir)
        results = [_score(file, annotations, args.allow_missing) for file in files]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for result in results:
        print(f"{Path(result['result_file']).stem} ({result['prompts']})")
        print(f"Samples: {result['samples']}")
        accuracy = result["accuracy"]
        print("Accuracy: none" if accuracy is None else f"Accuracy: {accuracy:.2f}%")
    print(json.dumps(results[0] if args.result_file else {"results": results}))
    return 0


def _answer_files(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.glob("*.jsonl") if not p.name.endswith(".errors.jsonl"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no answers: expected files *.jsonl in it.")
    return files


def _score(path: Path, annotations: dict[textvqa.Key, list[str]], missing: bool) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"Answer file {path} not found: llava.eval.model_vqa_loader --answers-file writes it."
        )
    answers = [entry for _, _, entry in read_lines(path)]
    try:
        result = textvqa.score(annotations, answers, allow_missing=missing)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return {"result_file": str(path), **result}


if __name__ == "__main__":
    sys.exit(main())
