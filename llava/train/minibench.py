"""Write a small TextVQA-shaped benchmark in TextVQA's own file formats.

    python -m llava.train.minibench --out playground/data/mini/textvqa --scenes 150

Two questions a scene. Files, as the official evaluation expects them: the question file
`llava_textvqa_val_v051_ocr.jsonl` (`question_id` is the image id, as there, so it repeats; the OCR
hint is empty), the annotations `TextVQA_0.5.1_val.json` and the pictures in `train_images/`. The
annotations carry two more keys a question: `kind` and `hardness`.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from llava.train.drawing import render
from llava.train.questions import TEXTVQA_PROMPT, Question, ask
from llava.train.scenes import IMAGE_SIZE, TEST_SEEDS, Scene, make_scene

QUESTION_FILE = "llava_textvqa_val_v051_ocr.jsonl"
ANNOTATION_FILE = "TextVQA_0.5.1_val.json"
IMAGE_FOLDER = "train_images"
ANNOTATORS = 10
_READING_SHARE = 2 / 3  # the other questions ask for a colour, of which there are only ten


def choose_questions(scene: Scene) -> tuple[Question, Question]:
    """Two different questions of a scene, drawn by its seed, about two signs where it has two."""
    rng = random.Random(f"questions {scene.seed}")
    signs = rng.sample(scene.signs, min(2, len(scene.signs)))
    reading, colour = ({q.sign: q for q in ask(scene, (kind,))} for kind in ("read", "colour"))
    if len(signs) == 1:
        return reading[signs[0]], colour[signs[0]]
    first, second = ((reading if rng.random() < _READING_SHARE else colour)[sign] for sign in signs)
    return first, second


def write_textvqa(out: Path, scenes: int, quality: int = 88) -> int:
    """Write the benchmark.

    Args:
        out: destination folder, made if missing; files of the same names are replaced.
        scenes: number of pictures, from the first test seed on.
        quality: of the JPEG files.

    Returns:
        The number of questions.

    Raises:
        ValueError: when `scenes` is below 1 or exceeds the seeds set aside for tests.
    """
    if not 1 <= scenes <= len(TEST_SEEDS):
        raise ValueError(f"scenes must be from 1 to {len(TEST_SEEDS)}, got {scenes}")
    (out / IMAGE_FOLDER).mkdir(parents=True, exist_ok=True)
    questions, annotations = [], []
    for seed in TEST_SEEDS[:scenes]:
        scene = make_scene(seed)
        image_id = f"scene{seed:06d}"
        file_name = f"{image_id}.jpg"
        render(scene).save(out / IMAGE_FOLDER / file_name, quality=quality)
        for question in choose_questions(scene):
            questions.append(
                {
                    "question_id": image_id,
                    "image": file_name,
                    "text": TEXTVQA_PROMPT.format(question=question.text),
                    "category": "default",
                }
            )
            annotations.append(
                {
                    "image_id": image_id,
                    "question_id": len(annotations),
                    "question": question.text,
                    "image_width": IMAGE_SIZE,
                    "image_height": IMAGE_SIZE,
                    "answers": [question.answer] * ANNOTATORS,
                    "set_name": "val",
                    "kind": question.kind,
                    "hardness": question.hardness(scene),
                }
            )
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    (out / QUESTION_FILE).write_text(lines, encoding="utf-8")
    content = {"dataset_type": "val", "dataset_name": "textvqa-mini", "data": annotations}
    (out / ANNOTATION_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return len(questions)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="destination folder")
    parser.add_argument("--scenes", type=int, default=150, help="number of pictures")
    parser.add_argument("--quality", type=int, default=88, help="of the JPEG files")
    args = parser.parse_args(arguments)
    count = write_textvqa(args.out, args.scenes, args.quality)
    print(f"{count} questions about {args.scenes} pictures in {args.out}")


if __name__ == "__main__":
    main()
