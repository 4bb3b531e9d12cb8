"""A table of finished runs: score, both token averages, FLOPs, KV bytes and prefill time.

    python -m llava.eval.report --annotation-file A.json RUN.jsonl [RUN.jsonl ...]

Everything comes from the answers and the run record beside them; no model is needed. Times are
those of the machine that answered. The last line of stdout is the table as JSON.
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
from .record import COMPLETE, sibling

#: Heading, key, and how a value is shown.
_COLUMNS = (
    ("run", "run", "{}"),
    ("accuracy", "accuracy", "{:.1f}"),
    ("tokens entering", "tokens_entering", "{:.1f}"),
    ("tokens leaving", "tokens_leaving", "{:.1f}"),
    ("prefill FLOPs", "prefill_flops_ratio", "{:.1%}"),
    ("with scoring", "prefill_flops_ratio_with_scoring", "{:.1%}"),
    ("KV bytes", "kv_bytes_ratio", "{:.1%}"),
    ("prefill ms", "prefill_ms", "{:.1f}"),
)


def row(answers_file: Path, annotations: dict[textvqa.Key, list[str]]) -> dict[str, Any]:
    """One run as a dict; ratios are against the unpruned model, tokens are means over layers.

    Raises ValueError when the run has no record or is not complete, and what the scorer raises.
    """
    path = sibling(answers_file, ".run.json")
    if not path.is_file():
        raise ValueError(f"{answers_file} has no run record {path.name} beside it")
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("status") != COMPLETE:
        raise ValueError(
            f"{answers_file} is {record.get('status')!r}: run the command that made it again, "
            "it continues"
        )
    score = textvqa.score(annotations, [entry for _, _, entry in read_lines(answers_file)])
    pruner = record["settings"]["pruner"]
    answered = record["counts"]["answered"]
    return {
        "run": _name(pruner),
        "accuracy": score["accuracy"],
        "samples": score["samples"],
        "tokens_entering": record["tokens"]["entering"],
        "tokens_leaving": record["tokens"]["leaving"],
        "prefill_flops_ratio": record["flops"]["prefill_ratio"],
        "prefill_flops_ratio_with_scoring": record["flops"][
            "prefill_ratio_with_scoring_and_merging"
        ],
        "kv_bytes_ratio": record["kv_bytes"]["ratio"],
        "prefill_ms": 1000 * record["seconds"]["prefill"] / answered,
        "answers_file": str(answers_file),
    }


def _name(pruner: dict[str, Any]) -> str:
    """Method and budget, in the words of the flags."""
    for fraction in ("target_flops", "target_kv"):
        if pruner.get(fraction) is not None:
            return f"{pruner['method']} {fraction} {pruner[fraction]:g}"
    if "target_token_num" not in pruner:
        return pruner["method"]
    strict = " strict" if pruner.get("budget_mode") == "strict" else ""
    return f"{pruner['method']}{strict} {pruner['target_token_num']:g}"


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(heading for heading, _, _ in _COLUMNS) + " |"]
    lines.append("|" + " --- |" * len(_COLUMNS))
    for entry in rows:
        cells = [
            "" if entry[key] is None else shown.format(entry[key]) for _, key, shown in _COLUMNS
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 2 on wrong input."""
    parser = argparse.ArgumentParser(prog="python -m llava.eval.report", description=__doc__)
    parser.add_argument("answers", type=Path, nargs="+", help="answers of finished TextVQA runs")
    parser.add_argument("--annotation-file", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        annotations = textvqa.load_annotations(args.annotation_file)
        rows = [row(path, annotations) for path in args.answers]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(markdown(rows))
    print(json.dumps({"rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
