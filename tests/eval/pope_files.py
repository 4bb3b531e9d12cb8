"""Writes POPE's files in the official format: small ones of a test, or the published ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

DATA = Path(__file__).parents[1] / "data" / "pope"
INSTRUCTION = "\nAnswer the question using a single word or phrase."
# The categories in the order of the question file, and the id before the first of each.
IDS = {"adversarial": 0, "random": 10_000_000, "popular": 20_000_000}
Labels = dict[str, list[dict]]

_ROW = re.compile(r"([+-])([a-z ]+)(\*?)")


def label(picture: int, thing: str, answer: str, place: str = "image") -> dict:
    text = f"Is there {thing} in the {place}?"
    return {"image": f"COCO_val2014_{picture:012d}.jpg", "text": text, "label": answer}


def write_lines(path: Path, entries: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def write_labels(folder: Path, labels: Labels) -> None:
    for category, entries in labels.items():
        rows = [{"question_id": i, **entry} for i, entry in enumerate(entries, 1)]
        write_lines(folder / "coco" / f"coco_pope_{category}.json", rows)


def write_questions(folder: Path, labels: Labels) -> list[dict]:
    questions = [
        {
            "question_id": IDS[category] + number,
            "image": entry["image"],
            "text": entry["text"] + INSTRUCTION,
            "category": category,
        }
        for category in IDS
        for number, entry in enumerate(labels[category], 1)
    ]
    write_lines(folder / "llava_pope_test.jsonl", questions)
    return questions


def reply(questions: list[dict], texts: list[str]) -> list[dict]:
    assert len(questions) == len(texts)
    return [
        {"question_id": q["question_id"], "prompt": q["text"], "text": text, "metadata": {}}
        for q, text in zip(questions, texts)
    ]


def counts(score: dict) -> dict[str, tuple]:
    return {
        category: (*(entry[c] for c in ("tp", "fp", "tn", "fn")), round(entry["f1"], 2))
        for category, entry in score["categories"].items()
    }


def published_labels() -> Labels:
    """The labels that tests/data/pope holds in short."""
    labels: Labels = {}
    for category in IDS:
        lines = (DATA / f"coco_pope_{category}.txt").read_text().splitlines()
        labels[category] = [
            label(
                int(picture),
                found[2],
                {"+": "yes", "-": "no"}[found[1]],
                "imange" if found[3] else "image",
            )
            for picture, rows in (line.split(": ") for line in lines)
            for found in _ROW.finditer(rows)
        ]
    return labels


def published_texts() -> list[str]:
    """The answers of LLaVA-1.5-13B, in the order of the question file."""
    letters = (DATA / "llava-v1.5-13b.answers.txt").read_text().replace("\n", "")
    return [{"Y": "Yes", "N": "No"}[letter] for letter in letters]
