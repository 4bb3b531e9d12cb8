"""GQA in small: attributes and relations over one to three hops.

Official files: `llava_gqa_testdev_balanced.jsonl`, `data/testdev_balanced_questions.json`,
`data/images/`. Structural and semantic types are GQA's; the operations name one look-up a hop.
"""

from __future__ import annotations

from llava.train.benchmarks.common import Folder, SceneQuestion, collect, scenes
from llava.train.turns import SHORT

_QUOTAS = {
    "color": 30,
    "shape": 30,
    "pattern": 30,
    "size": 24,
    "is color": 30,
    "choose side": 40,
    "is side": 40,
    "beside": 48,
    "larger": 20,
    "same color": 24,
    "twin shape": 24,
    "twin pattern": 20,
    "twin side": 40,
}
_TYPES = {  # structural and semantic type, and the last operation
    "color": ("query", "attr", "query: color"),
    "shape": ("query", "obj", "query: shape"),
    "pattern": ("query", "attr", "query: pattern"),
    "size": ("choose", "attr", "choose size: small|large"),
    "is color": ("verify", "attr", "verify color: color"),
    "choose side": ("choose", "rel", "choose rel: side"),
    "is side": ("verify", "rel", "verify rel: side"),
    "beside": ("query", "rel", "query: attribute"),
    "larger": ("choose", "attr", "choose larger: size"),
    "same color": ("compare", "attr", "same color: color"),
    "twin shape": ("query", "obj", "query: shape"),
    "twin pattern": ("query", "attr", "query: pattern"),
    "twin side": ("verify", "rel", "verify rel: side"),
}


def write(folder: Folder) -> None:
    """Write the benchmark."""
    entries = collect(scenes(1), _QUOTAS, per_scene=5, seed=1)
    questions, annotations = [], {}
    for number, entry in enumerate(entries, 1):
        question_id = f"{number:08d}"
        folder.save_picture(entry.scene, f"data/images/{entry.image}")
        questions.append(
            {
                "question_id": question_id,
                "image": entry.image,
                "text": entry.question.text + SHORT,
                "category": "default",
            }
        )
        annotations[question_id] = _annotation(entry)
    folder.write_lines("llava_gqa_testdev_balanced.jsonl", questions)
    folder.write_json("data/testdev_balanced_questions.json", annotations)
    folder.write_metadata(e.metadata(i) for i, e in zip(annotations, entries, strict=True))


def _annotation(entry: SceneQuestion) -> dict[str, object]:
    question = entry.question
    structural, semantic, last = _TYPES[question.kind]
    steps = [
        {"operation": "select" if hop == 0 else "relate", "dependencies": [], "argument": "object"}
        for hop in range(question.hops)
    ]
    operation, argument = last.split(": ")
    steps.append({"operation": operation, "dependencies": [len(steps) - 1], "argument": argument})
    return {
        "semantic": steps,
        "entailed": [],
        "equivalent": [],
        "question": question.text,
        "imageId": entry.image.removesuffix(".jpg"),
        "isBalanced": True,
        "groups": {"global": question.kind if structural == "query" else None, "local": None},
        "answer": question.answer,
        "semanticStr": "",
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
        "types": {"detailed": question.kind, "semantic": semantic, "structural": structural},
        "fullAnswer": question.answer,
    }
