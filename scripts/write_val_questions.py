"""Writes the question files of the two val splits that LLaVA only has test questions of.

    python scripts/write_val_questions.py --benchmark vqav2 [--dir playground/data/eval/vqav2]
    python scripts/write_val_questions.py --benchmark vizwiz [--dir playground/data/eval/vizwiz]

Reads v2_OpenEnded_mscoco_val2014_questions.json or val.json in the folder, as visualqa.org and
vizwiz.org have them, and writes llava_vqav2_mscoco_val2014.jsonl or llava_val.jsonl beside it. The
questions get the instructions that LLaVA's own files for the test splits have.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llava.common import json_files, program
from llava.eval.benchmarks import vizwiz, vqav2

SHORT = "Answer the question using a single word or phrase."
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


def vqav2_questions(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of the question file; `path` is the official file."""
    data = json_files.check(json_files.read(path), path, {"questions": list})
    for number, entry in enumerate(data["questions"], 1):
        fields = {"question_id": (str, int), "image_id": int, "question": str}
        json_files.check(entry, f"{path}, question {number}", fields)
        yield {
            "question_id": entry["question_id"],
            "image": f"COCO_val2014_{entry['image_id']:012d}.jpg",
            "text": f"{entry['question']}\n{SHORT}",
            "category": "default",
        }


def vizwiz_questions(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of the question file; `path` is val.json."""
    for number, entry in enumerate(json_files.read(path, list)):
        json_files.check(entry, f"{path}, entry {number + 1}", {"image": str, "question": str})
        yield {
            "question_id": number,
            "image": entry["image"],
            "text": f"{entry['question']}\n{UNANSWERABLE}\n{SHORT}",
            "category": "default",
        }


# Official file, function that reads it, file to write.
SOURCES = {
    "vqav2": ("v2_OpenEnded_mscoco_val2014_questions.json", vqav2_questions, vqav2.QUESTIONS),
    "vizwiz": (vizwiz.ANNOTATIONS, vizwiz_questions, vizwiz.QUESTIONS),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if the file was written, 2 on wrong input."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--benchmark", required=True, choices=SOURCES)
    parser.add_argument("--dir", type=Path, help="folder of the benchmark's files")
    args = parser.parse_args(argv)
    name, read, target_name = SOURCES[args.benchmark]
    folder = args.dir or Path("playground/data/eval") / args.benchmark
    source, target = folder / name, folder / target_name
    try:
        lines = [json.dumps(line) for line in read(source)]
        target.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except ValueError as error:
        print(f"error: {error}. Expected the official file of this name.", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"questions": len(lines), "file": str(target)}))
    return 0


if __name__ == "__main__":
    program.run(main)
