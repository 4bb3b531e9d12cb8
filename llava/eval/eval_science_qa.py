"""Scores ScienceQA answers: `python -m llava.eval.eval_science_qa --base-dir D --result-file R`.

The flags, the line of output and the two files are those of haotian-liu/LLaVA's program of this
name; the last line on stdout is the result as JSON. Needs no model. Which questions have an image
comes from problems.json, and unanswered questions are an error: see benchmarks/scienceqa.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.common import program

from .benchmarks import scienceqa
from .benchmarks.scienceqa import Graded
from .benchmarks.scoring import answers_in


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if everything was scored, 2 on wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.eval_science_qa", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "--base-dir", type=Path, required=True, help="folder of pid_splits.json and problems.json"
    )
    parser.add_argument("--result-file", type=Path, required=True, help="answers to score")
    parser.add_argument("--output-file", type=Path, help="write every graded answer here")
    parser.add_argument("--output-result", type=Path, help="write accuracy and choices here")
    parser.add_argument("--split", default="test", help="of pid_splits.json (default: test)")
    parser.add_argument(
        "--allow-missing", action="store_true", help="score what is answered, ignore the rest"
    )
    args = parser.parse_args(argv)
    try:
        problems = scienceqa.load_problems(args.base_dir, args.split)
        with answers_in(args.result_file) as answers:
            graded = scienceqa.grade(problems, answers, allow_missing=args.allow_missing)
        result = scienceqa.summarise(graded, len(problems))
        if args.output_file:
            _write(args.output_file, _analysis(graded))
        if args.output_result:
            _write(args.output_result, _choices(graded, result))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    accuracy, img_accuracy = map(_percent, (result["accuracy"], result["img_accuracy"]))
    print(
        f"Total: {result['samples']}, Correct: {result['correct']}, Accuracy: {accuracy}, "
        f"IMG-Accuracy: {img_accuracy}"
    )
    print(json.dumps({"result_file": str(args.result_file), **result}))
    return 0


def _analysis(graded: list[Graded]) -> dict[str, list[dict[str, Any]]]:
    result: dict[str, list[dict[str, Any]]] = {"correct": [], "incorrect": []}
    for entry in graded:
        result["correct" if entry.correct else "incorrect"].append(
            {
                "question_id": entry.question_id,
                "parsed_ans": entry.parsed,
                "ground_truth": entry.problem.letter,
                "question": entry.prompt,
                "pred": entry.text,
                "is_multimodal": entry.problem.has_image,
            }
        )
    return result


def _choices(graded: list[Graded], result: dict[str, Any]) -> dict[str, Any]:
    return {
        "acc": result["accuracy"],
        "correct": result["correct"],
        "count": result["samples"],
        "results": {entry.question_id: entry.choice for entry in graded},
        "outputs": {entry.question_id: entry.text for entry in graded},
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}%"


if __name__ == "__main__":
    program.run(main)
