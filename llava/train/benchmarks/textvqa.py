"""TextVQA in small: words and numbers on signs, with OCR tokens and, in a second file, without.

Official files: `llava_textvqa_val_v051_ocr.jsonl` (`question_id` is the image id, as there, so it
repeats), `TextVQA_0.5.1_val.json`, `train_images/`. `llava_textvqa_val_v051.jsonl` asks the same
without the line of OCR tokens. The tokens lack every seventh text, and hold the others too.
"""

from __future__ import annotations

import random

from llava.train.benchmarks.common import Folder, collect, scenes
from llava.train.framing import frame
from llava.train.turns import OCR_LINE, SHORT, ocr_tokens

_QUOTAS = {"read": 150, "read place": 80, "sign color": 90}
_ANNOTATORS = 10


def write(folder: Folder) -> None:
    """Write the benchmark."""
    with_ocr, without, annotations = [], [], []
    entries = collect(scenes(0), _QUOTAS, per_scene=3, seed=0)
    for number, entry in enumerate(entries):
        image_id, text = entry.image.removesuffix(".jpg"), entry.question.text
        folder.save_picture(entry.scene, f"train_images/{entry.image}")
        tokens = ocr_tokens(entry.scene, random.Random(f"ocr {entry.scene.seed}"))
        left, top, right, bottom = frame(entry.scene)
        line = {"question_id": image_id, "image": entry.image}
        with_ocr.append({**line, "text": text + OCR_LINE + tokens + SHORT, "category": "default"})
        without.append({**line, "text": text + SHORT, "category": "default"})
        annotations.append(
            {
                "image_id": image_id,
                "question_id": number,
                "question": text,
                "image_width": right - left,
                "image_height": bottom - top,
                "answers": [entry.question.answer] * _ANNOTATORS,
                "set_name": "val",
            }
        )
    folder.write_lines("llava_textvqa_val_v051_ocr.jsonl", with_ocr)
    folder.write_lines("llava_textvqa_val_v051.jsonl", without)
    folder.write_json(
        "TextVQA_0.5.1_val.json",
        {"dataset_type": "val", "dataset_name": "textvqa-mini", "data": annotations},
    )
    folder.write_metadata(entry.metadata(entry.image.removesuffix(".jpg")) for entry in entries)
