"""Programs that read questions, annotations and answers, each with good files and what it needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llava.eval import (
    eval_mmvet,
    eval_pope,
    eval_science_qa,
    eval_senna,
    eval_textvqa,
    score,
)
from llava.eval.benchmarks import gqa, vizwiz, vqav2
from llava.eval.benchmarks.senna import build

from .. import malformed, senna_files
from ..malformed import Program
from .programs import script

TEN = [{"answer": "red"}] * 10
SHORT = "\nAnswer the question using a single word or phrase."
PROMPT = f"What is red?{SHORT}"
QUESTION = {"question_id": 1, "image": "a.jpg", "text": PROMPT, "category": "default"}
ANSWER = {"question_id": 1, "prompt": PROMPT, "text": "red"}
GQA = {
    "1": {
        "question": "What is red?",
        "answer": "red",
        "isBalanced": True,
        "types": {"structural": "query", "semantic": "attr"},
        "semantic": [{"operation": "select", "argument": "thing"}],
        "groups": {"global": "thing"},
    }
}


def scorer(main: Callable[..., int], answers: Any, annotations: Any) -> dict[str, Any]:
    """Of a program with --annotation-file and --result-file."""

    def run(folder: Path) -> int:
        flags = ["--annotation-file", str(folder / "a.json")]
        return main([*flags, "--result-file", str(folder / "r.jsonl")])

    return {"run": run, "files": {"a.json": annotations, "r.jsonl": answers}}


def scored(name: str, file: str, answers: Any, annotations: Any) -> dict[str, Any]:
    """Of a benchmark whose true answers are in one file."""
    command = ["--benchmark", name, "--data"]
    return {
        "run": lambda folder: score.main([*command, str(folder), str(folder / "r.jsonl")]),
        "files": {file: annotations, "r.jsonl": answers},
    }


VQA = scored(
    "vqav2",
    vqav2.ANNOTATIONS,
    [ANSWER],
    {
        "annotations": [
            {"question_id": 1, "question_type": "what", "answer_type": "other", "answers": TEN}
        ]
    },
)
TEXT = scorer(
    eval_textvqa.main,
    [{**ANSWER, "question_id": "a"}],
    {"data": [{"image_id": "a", "question": "What is red?", "answers": ["red"] * 10}]},
)
SCIENCE = {
    "run": lambda folder: eval_science_qa.main(
        ["--base-dir", str(folder), "--result-file", str(folder / "r.jsonl")]
    ),
    "files": {
        "pid_splits.json": {"test": ["1"]},
        "problems.json": {
            "1": {"choices": ["x", "y"], "answer": 0, "image": "i", "subject": "s", "grade": "g"}
        },
        "llava_test_CQM-A.json": [
            {
                "id": "1",
                "image": "1/i.png",
                "conversations": [
                    {"from": "human", "value": "<image>\nWhich?"},
                    {"from": "gpt", "value": "A"},
                ],
            }
        ],
        "r.jsonl": [{"question_id": "1", "prompt": "<image>\nWhich?", "text": "A"}],
    },
}
POPE_LABEL = {"image": "a.jpg", "text": "Is it red?", "label": "yes"}
POPE = {
    "run": lambda folder: eval_pope.main(
        [
            *("--annotation-dir", str(folder), "--question-file", str(folder / "q.jsonl")),
            *("--result-file", str(folder / "r.jsonl")),
        ]
    ),
    "files": {
        **{f"coco_pope_{name}.json": [POPE_LABEL] for name in ("random", "popular", "adversarial")},
        "q.jsonl": [
            {"question_id": i, "image": "a.jpg", "text": "Is it red?", "category": name}
            for i, name in enumerate(("random", "popular", "adversarial"))
        ],
        "r.jsonl": [
            {"question_id": i, "prompt": "Is it red?", "text": "yes", "metadata": {"index": i}}
            for i in range(3)
        ],
    },
}
MMVET = {
    "run": lambda folder: eval_mmvet.main(
        ["--annotation-file", str(folder / "c.json"), "--grade-file", str(folder / "g.json")]
    ),
    "files": {
        "c.json": {"v1_0": {"capability": ["ocr"]}},
        "g.json": {"v1_0": {"model": ["m"], "content": ["c"], "score": [0.5]}},
    },
}


def score_of(name: str) -> Callable[[Path], int]:
    return lambda folder: score.main(
        ["--benchmark", name, "--data", str(folder), str(folder / "r.jsonl")]
    )


MME = {
    "run": score_of("mme"),
    "files": {
        "llava_mme.jsonl": [
            {"question_id": "count/1.png", "image": "count/1.png", "text": f"Is it {n}?"}
            for n in (1, 2)
        ],
        "MME_Benchmark_release_version/count/1.txt": "Is it 1?\tYes\nIs it 2?\tNo\n",
        "r.jsonl": [
            {"question_id": "count/1.png", "prompt": f"Is it {n}?", "text": "Yes"} for n in (1, 2)
        ],
    },
}
VIZWIZ = {
    "run": score_of("vizwiz"),
    "files": {
        vizwiz.QUESTIONS: [QUESTION],
        vizwiz.ANNOTATIONS: [
            {"image": "a.jpg", "question": "What is red?", "answer_type": "other", "answers": TEN}
        ],
        "r.jsonl": [ANSWER],
    },
}


def convert(name: str, *flags: str) -> Callable[[Path], int]:
    program = script(name)
    return lambda folder: program(*(flag.format(folder) for flag in flags))


ANSWER_FIELDS = {"question_id", "prompt", "text"}

PROGRAMS = {
    "vqav2": Program(
        damage=vqav2.ANNOTATIONS,
        needed={
            "annotations",
            "annotations.0",
            *(f"annotations.0.{n}" for n in ("question_id", "question_type", "answer_type")),
            *("annotations.0.answers", "annotations.0.answers.0", "annotations.0.answers.0.answer"),
        },
        **VQA,
    ),
    "vqav2 answers": Program(damage="r.jsonl", needed={"0", "0.question_id", "0.text"}, **VQA),
    "gqa": Program(
        damage=gqa.ANNOTATIONS,
        needed={
            *("1", "1.question", "1.answer", "1.types", "1.types.structural", "1.types.semantic"),
            *("1.semantic", "1.semantic.0", "1.semantic.0.operation", "1.semantic.0.argument"),
        },
        **scored("gqa", gqa.ANNOTATIONS, [ANSWER], GQA),
    ),
    "textvqa": Program(
        damage="a.json",
        needed={
            *("data", "data.0", "data.0.image_id", "data.0.question", "data.0.answers"),
            "data.0.answers.0",
        },
        **TEXT,
    ),
    "textvqa answers": Program(damage="r.jsonl", needed={f"0.{n}" for n in ANSWER_FIELDS}, **TEXT),
    "pope labels": Program(
        damage="coco_pope_popular.json", needed={"0", "0.image", "0.text", "0.label"}, **POPE
    ),
    "pope questions": Program(
        damage="q.jsonl", needed={"0", "0.question_id", "0.image", "0.text", "0.category"}, **POPE
    ),
    "pope answers": Program(damage="r.jsonl", needed={f"0.{n}" for n in ANSWER_FIELDS}, **POPE),
    "mme questions": Program(
        damage="llava_mme.jsonl", needed={"0", "0.question_id", "0.text"}, **MME
    ),
    "mme answers": Program(damage="r.jsonl", needed={f"0.{n}" for n in ANSWER_FIELDS}, **MME),
    "vizwiz": Program(
        damage=vizwiz.ANNOTATIONS,
        needed={
            *("0", "0.image", "0.question", "0.answers", "0.answers.0", "0.answers.0.answer"),
            "0.answer_type",
        },
        **VIZWIZ,
    ),
    "vizwiz answers": Program(damage="r.jsonl", needed={f"0.{n}" for n in ANSWER_FIELDS}, **VIZWIZ),
    "scienceqa splits": Program(damage="pid_splits.json", needed={"test", "test.0"}, **SCIENCE),
    "scienceqa problems": Program(
        damage="problems.json",
        needed={"1", *(f"1.{n}" for n in ("choices", "answer", "image", "subject", "grade"))},
        **SCIENCE,
    ),
    "scienceqa questions": Program(
        damage="llava_test_CQM-A.json",
        needed={
            *("0", "0.id", "0.image", "0.conversations", "0.conversations.0"),
            "0.conversations.0.value",
        },
        **SCIENCE,
    ),
    "scienceqa answers": Program(
        damage="r.jsonl", needed={f"0.{n}" for n in ANSWER_FIELDS}, **SCIENCE
    ),
    "mmvet capabilities": Program(
        damage="c.json", needed={"v1_0", "v1_0.capability", "v1_0.capability.0"}, **MMVET
    ),
    "mmvet grades": Program(damage="g.json", needed={"v1_0", "v1_0.score"}, **MMVET),
    "senna": Program(
        run=lambda folder: eval_senna.main(
            [
                *("--annotation-file", str(folder / "eval_plan_qa.json")),
                *("--result-file", str(folder / "r.jsonl"), "--allow-missing"),
            ]
        ),
        damage="eval_plan_qa.json",
        needed={
            *("0", "0.token", "0.images", "0.images.0", "0.conversations", "0.conversations.0"),
            "0.conversations.0.value",
        },
        files={
            "eval_plan_qa.json": [build.plan_entry(senna_files.frame(token)) for token in "ab"],
            "r.jsonl": [{"question_id": "a", "text": "KEEP, STRAIGHT"}],
        },
    ),
    "senna frames": Program(
        run=lambda folder: build.main(
            ["--frames", str(folder / "f.jsonl"), "--out", str(folder / "out.json")]
        ),
        damage="f.jsonl",
        needed={
            *("0", "0.token", "0.images", "0.images.CAM_FRONT", "0.speed", "0.trajectory"),
            *("0.trajectory.0", "0.trajectory.0.0", "0.target", "0.target.0"),
        },
        files={"f.jsonl": [senna_files.frame("a")]},
    ),
    "val questions of vqav2": Program(
        run=convert("write_val_questions", "--benchmark", "vqav2", "--dir", "{0}"),
        damage="v2_OpenEnded_mscoco_val2014_questions.json",
        needed={
            *("questions", "questions.0", "questions.0.question_id", "questions.0.image_id"),
            "questions.0.question",
        },
        files={
            "v2_OpenEnded_mscoco_val2014_questions.json": {
                "questions": [{"question_id": 1, "image_id": 2, "question": "Is it?"}]
            }
        },
    ),
    "val questions of vizwiz": Program(
        run=convert("write_val_questions", "--benchmark", "vizwiz", "--dir", "{0}"),
        damage="val.json",
        needed={"0", "0.image", "0.question"},
        files={"val.json": [{"image": "a.jpg", "question": "What?"}]},
    ),
    "gqa predictions": Program(
        run=convert("convert_gqa_for_eval", "--src", "{0}/r.jsonl", "--dst", "{0}/p.json"),
        damage="r.jsonl",
        needed={"0", "0.question_id", "0.text"},
        files={"r.jsonl": [ANSWER]},
    ),
    "record of a score": Program(
        run=lambda folder: score.main([str(folder / "vizwiz/r.jsonl")]),
        damage="vizwiz/r.run.json",
        needed={"settings", "settings.question_file"},
        files={f"vizwiz/{name}": content for name, content in VIZWIZ["files"].items()},
        prepare=lambda folder: malformed.write(
            folder / "vizwiz/r.run.json",
            {"settings": {"question_file": str(folder / "vizwiz" / vizwiz.QUESTIONS)}},
        ),
    ),
}
