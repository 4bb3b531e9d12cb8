"""VQAv2 in small: open questions with ten annotators, who do not always agree.

Official files: `v2_mscoco_val2014_annotations.json`, `val2014/`, and in LLaVA's form
`llava_vqav2_mscoco_val2014.jsonl`. At least six of ten annotators give the right answer; the others
give another that would be possible.
"""

from __future__ import annotations

import random

from llava.train.benchmarks.common import Folder, SceneQuestion, collect, scenes
from llava.train.turns import SHORT

_QUOTAS = {
    "is color": 40,
    "exists colored": 30,
    "is side": 30,
    "same color": 20,
    "count": 80,
    "color": 40,
    "shape": 36,
    "pattern": 30,
    "sign color": 30,
    "read": 30,
    "place": 24,
}
_ANNOTATORS = 10
_FEWEST = 6  # annotators with the right answer


def write(folder: Folder) -> None:
    """Write the benchmark."""
    entries = collect(scenes(6), _QUOTAS, per_scene=4, seed=6)
    questions, annotations = [], []
    for number, entry in enumerate(entries):
        question_id = entry.scene.seed * 1000 + number
        folder.save_picture(entry.scene, f"val2014/{entry.image}")
        questions.append(
            {
                "question_id": question_id,
                "image": entry.image,
                "text": entry.question.text + SHORT,
                "category": "default",
            }
        )
        annotations.append(_annotation(question_id, entry))
    folder.write_lines("llava_vqav2_mscoco_val2014.jsonl", questions)
    folder.write_json(
        "v2_mscoco_val2014_annotations.json",
        {"data_type": "mscoco", "data_subtype": "val2014", "annotations": annotations},
    )
    folder.write_metadata(
        e.metadata(q["question_id"]) for q, e in zip(questions, entries, strict=True)
    )


def _annotation(question_id: int, entry: SceneQuestion) -> dict[str, object]:
    rng = random.Random(f"annotators {question_id}")
    question = entry.question
    others = [o for o in question.options or ("yes", "no") if o != question.answer]
    answers = [question.answer] * rng.choice((10, 10, 9, 8, 7, _FEWEST))
    answers += [rng.choice(others) for _ in range(_ANNOTATORS - len(answers))]
    answers = [answer.lower() for answer in answers]  # as the real ones are written
    rng.shuffle(answers)
    answer_type = "number" if question.kind == "count" else "other"
    return {
        "question_type": " ".join(question.text.lower().split()[:2]),
        "multiple_choice_answer": question.answer.lower(),
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": index}
            for index, answer in enumerate(answers, 1)
        ],
        "image_id": entry.scene.seed,
        "answer_type": "yes/no" if question.answer in ("yes", "no") else answer_type,
        "question_id": question_id,
    }
