"""Whatever stands in a file, each program that reads it ends with a message that names the file.

A good file of each kind is damaged in each of its places, with fewer values in those that may be
missing. A program may accept the damage, where it does not look or where the value is a good one;
it never ends otherwise than with its status.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from llava.analysis import curves, page, tradeoff, training
from llava.eval import (
    complexity,
    eval_gqa,
    eval_mmvet,
    eval_pope,
    eval_science_qa,
    eval_senna,
    eval_textvqa,
    eval_vqav2,
    kinds,
    report,
    score,
)
from llava.eval.answers import AnswerFile
from llava.eval.benchmarks import mme, vizwiz
from llava.eval.questions import QuestionFile
from llava.eval.record import RunRecord
from llava.eval.senna import build
from llava.eval.settings import RunSettings
from llava.eval.sharding import merge_chunks, shard_settings

from .. import malformed, senna_files
from ..analysis import page_runs
from .benchmark_files import BENCHMARKS, write_benchmark
from .programs import script
from .run_files import write_run
from .sweep_files import Asked
from .sweep_files import write_benchmark as write_asked
from .sweep_files import write_run as write_measured

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


@dataclass(frozen=True)
class Program:
    """A program and good files for it, by their names in a folder; `written` by code.

    `damage`: the file that is damaged, `needed`: the fields it cannot be without, dotted.
    """

    run: Callable[[Path], int | None]
    damage: str
    needed: set[str]
    files: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Path], Any] = lambda folder: None

    def write(self, folder: Path) -> Any:
        """All files; the content of the one to damage."""
        self.prepare(folder)
        for name, content in self.files.items():
            malformed.write(folder / name, content)
        path = folder / self.damage
        if path.suffix == ".jsonl" or path.name.startswith("coco_pope"):
            return [json.loads(line) for line in path.read_text().splitlines()]
        return json.loads(path.read_text())


def scorer(main: Callable[..., int], answers: Any, annotations: Any) -> dict[str, Any]:
    """Of a program with --annotation-file and --result-file."""

    def run(folder: Path) -> int:
        flags = ["--annotation-file", str(folder / "a.json")]
        return main([*flags, "--result-file", str(folder / "r.jsonl")])

    return {"run": run, "files": {"a.json": annotations, "r.jsonl": answers}}


VQA = scorer(
    eval_vqav2.main,
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


def run_on_alpha(folder: Path) -> int:
    return report.main([str(folder / "out"), "--data", str(folder / "data")], BENCHMARKS)


def write_alpha(folder: Path) -> None:
    write_benchmark(folder / "data", "alpha", 4)
    write_run(folder, "alpha/none", 4)


ASKED = [Asked("a.jpg", 1, 0.75, text="red"), Asked("a.jpg", 3, 0.25)]


def write_measured_run(folder: Path) -> None:
    write_asked(folder / "data", "gqa", ASKED)
    write_measured(folder / "out/gqa/n_64.jsonl", ASKED, target_token_num=64)


def measure(program: Callable[..., int], *flags: str) -> Callable[[Path], int]:
    def run(folder: Path) -> int:
        runs = [flag.format(folder) for flag in flags]
        return program([*runs, "--data", str(folder / "data")])

    return run


METADATA = {
    "index": 0,
    "n_visual": 9,
    "n_text": 9,
    "new_tokens": 2,
    "complexity": {},
    "cost": {"tokens_entering": 9.0, "prefill_flops": 10},
    "seconds": {"prefill": 0.5, "total": 1.0},
}


def settings(folder: Path) -> RunSettings:
    return RunSettings(
        model_path="m", question_file=folder / "q.jsonl", answers_file=folder / "answers.jsonl"
    )


def write_shards(folder: Path) -> None:
    malformed.write(folder / "q.jsonl", [{**QUESTION, "question_id": i} for i in range(2)])
    questions = QuestionFile(folder / "q.jsonl")
    for chunk in range(2):
        shard = shard_settings(settings(folder), 2, chunk)
        answer = {"question_id": chunk, "text": "x", "metadata": {**METADATA, "index": chunk}}
        malformed.write(shard.answers_file, [answer])
        record = {
            "status": "complete",
            "settings": shard.to_dict(questions.sha256) | {"dtype": "float32"},
            "environment": {"torch": "9"},
            "earlier_environments": [{"torch": "8"}],
            "counts": {"answered": 1, "resumed": 0},
            "seconds": {"total": 1.0},
            "peak_memory_bytes": 5,
        }
        malformed.write(shard.answers_file.with_suffix(".run.json"), record)


def merge(folder: Path) -> int:
    whole = settings(folder)
    for ending in ("jsonl", "run.json"):
        whole.answers_file.with_suffix(f".{ending}").unlink(missing_ok=True)
    return merge_chunks(whole, QuestionFile(folder / "q.jsonl"), 2)


def proceed(folder: Path) -> None:
    """What a run does with answers and record that are there."""
    shard = shard_settings(settings(folder), 2, 0)
    questions = QuestionFile(folder / "q.jsonl", 2, 0)
    record = RunRecord(shard.answers_file, shard.to_dict(questions.sha256))
    assert isinstance(record.answered, int)
    record.begin(shard.to_dict(questions.sha256) | {"dtype": "float32"}, {"torch": "10"})
    record.summary()
    file = AnswerFile(shard.answers_file, questions)
    try:
        file.totals.to_dict()
    finally:
        file.close()


TABLE = {
    "benchmarks": {"alpha": {"title": "Alpha"}},
    "rows": [
        {
            "method": "none",
            "settings": {"x0": 3.0},
            "budget": 64,
            "benchmarks": {"alpha": {"percent": 50.0, "sd": None}},
            "tokens_entering": 9.0,
            "prefill_flops_ratio": 0.5,
            "prefill_ms": 3.0,
        }
    ],
    "made_with": {"model": ["m"]},
    "vision_apart": False,
}
CONFIG = {
    "model_type": "llava_llama",
    "mm_vision_tower": "clip",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "vocab_size": 8,
}
LOG = {"stage": "see", "step": 50, "minutes": 1.0, "answer": 0.5, "validation": 0.1}
ANSWER_FIELDS = {"question_id", "prompt", "text"}

PROGRAMS = {
    "vqav2": Program(
        damage="a.json",
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
        damage="a.json",
        needed={
            *("1", "1.question", "1.answer", "1.types", "1.types.structural", "1.types.semantic"),
            *("1.semantic", "1.semantic.0", "1.semantic.0.operation", "1.semantic.0.argument"),
        },
        **scorer(eval_gqa.main, [ANSWER], GQA),
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
    "record in a table": Program(
        run=run_on_alpha,
        damage="out/alpha/none.run.json",
        needed={
            *("settings", "settings.model_path", "settings.question_file", "settings.pruner"),
            *("settings.pruner.method", "settings.dtype", "counts", "counts.answered", "tokens"),
            *("tokens.entering", "flops", "flops.prefill", "kv_bytes", "kv_bytes.total"),
            *("seconds", "seconds.prefill", "environment", "environment.torch"),
        },
        prepare=write_alpha,
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
    "metadata of kinds": Program(
        run=measure(kinds.main, "{0}/out", "--runs", "n_64"),
        damage="data/gqa/metadata.jsonl",
        needed={
            *("0", "0.index", "0.question_id", "0.kind", "0.hops", "0.distractors"),
            *("0.target_patches", "0.answer"),
        },
        prepare=write_measured_run,
    ),
    "metadata of complexity": Program(
        run=measure(complexity.main, "--runs", "{0}/out", "--resamples", "2"),
        damage="data/gqa/metadata.jsonl",
        needed={"0", "0.index", "0.question_id", "0.kind", "0.hops"},
        prepare=write_measured_run,
    ),
    "answers of complexity": Program(
        run=measure(complexity.main, "--runs", "{0}/out", "--resamples", "2"),
        damage="out/gqa/n_64.jsonl",
        needed={
            *("0", "0.question_id", "0.prompt", "0.text", "0.metadata", "0.metadata.index"),
            *("0.metadata.n_text", "0.metadata.complexity", "0.metadata.complexity.mi"),
        },
        prepare=write_measured_run,
    ),
    "record of complexity": Program(
        run=measure(complexity.main, "--runs", "{0}/out", "--resamples", "2"),
        damage="out/gqa/n_64.run.json",
        needed={
            *("settings", "settings.pruner", "settings.pruner.method", "counts", "tokens"),
            *("settings.pruner.target_token_num", "settings.model_path"),
        },
        prepare=write_measured_run,
    ),
    "shard's record": Program(
        run=merge,
        damage="answers/2_0.run.json",
        needed={
            *("settings", "settings.model_path", "settings.pruner", "counts", "counts.answered"),
            *("seconds", "seconds.total", "environment"),
        },
        prepare=write_shards,
    ),
    "shard's answers": Program(
        run=merge,
        damage="answers/2_0.jsonl",
        needed={
            *("0", "0.question_id", "0.metadata", "0.metadata.index", "0.metadata.n_visual"),
            *("0.metadata.n_text", "0.metadata.new_tokens", "0.metadata.cost"),
            *("0.metadata.cost.prefill_flops", "0.metadata.seconds", "0.metadata.seconds.total"),
        },
        prepare=write_shards,
    ),
    "record of a run that goes on": Program(
        run=proceed,
        damage="answers/2_0.run.json",
        needed={"settings", "settings.model_path", "settings.pruner", "counts", "environment"},
        prepare=write_shards,
    ),
    "answers of a run that goes on": Program(
        run=proceed,
        damage="answers/2_0.jsonl",
        needed={
            *("0", "0.question_id", "0.metadata", "0.metadata.index", "0.metadata.n_visual"),
            *("0.metadata.cost", "0.metadata.cost.prefill_flops", "0.metadata.seconds"),
        },
        prepare=write_shards,
    ),
    "table of figures": Program(
        run=lambda folder: tradeoff.series(tradeoff.read_table(folder / "t.json")) and None,
        damage="t.json",
        needed={
            *("benchmarks", "benchmarks.alpha", "benchmarks.alpha.title", "rows", "rows.0"),
            *("made_with", "made_with.model", "made_with.model.0", "vision_apart"),
            *(f"rows.0.{name}" for name in TABLE["rows"][0]),
            *("rows.0.benchmarks.alpha", "rows.0.benchmarks.alpha.percent"),
        },
        files={"t.json": TABLE},
    ),
    "log of a training": Program(
        run=lambda folder: [stage.told() for stage in training.read(folder / "log.jsonl")] and None,
        damage="log.jsonl",
        needed={"0", "0.stage", "0.step", "0.minutes", "0.answer", "0.validation"},
        files={"log.jsonl": [LOG]},
    ),
    "answers on a page": Program(
        run=lambda folder: page.main(
            [
                *(str(folder / "out"), "--data", str(folder / "data"), "--no-model"),
                *("--out", str(folder / "page.html")),
            ],
            BENCHMARKS,
        ),
        damage="out/beta/auto-64.jsonl",
        needed={
            *("0", "0.text", "0.metadata", "0.metadata.index", "0.metadata.cost"),
            *(f"0.metadata.cost.{name}" for name in page_runs.COST),
            "0.metadata.complexity.mi",
        },
        prepare=page_runs.write,
    ),
    "curves of answers": Program(
        run=lambda folder: curves.read(folder / "r.jsonl", str(folder)) and None,
        damage="r.jsonl",
        needed={
            *("0", "0.metadata", "0.metadata.n_visual", "0.metadata.n_text", "0.metadata.cost"),
            *("0.metadata.cost.tokens_entering", "0.metadata.complexity"),
            *(f"0.metadata.complexity.{name}" for name in ("k", "x0", "mi")),
        },
        files={
            "config.json": CONFIG,
            "r.run.json": {
                "settings": {
                    "model_path": "m",
                    "pruner": {"method": "autoprune", "target_token_num": 8, "x0": 3.0},
                }
            },
            "r.jsonl": [
                {
                    "metadata": {
                        "n_visual": 16,
                        "n_text": 4,
                        "complexity": {"mi": 0.5, "k": 0.3, "x0": 3.3},
                        "cost": {"tokens_entering": 9.0, "tokens_leaving": 8.0},
                    }
                }
            ],
        },
    ),
}
assert mme.TASKS[9]  # "OCR": the tasks that the files above are made of are MME's


def outcome(program: Program, folder: Path) -> str | None:
    """The message of a program that refused its files, None of one that did not."""
    # Not capsys, whose streams take no lone surrogates; those of a program write them as escapes.
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as said:
        try:
            code = program.run(folder)
        except ValueError as error:
            return str(error)
    return said.getvalue() if code else None


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_wrong_value_is_refused_by_the_name_of_its_file(name, tmp_path) -> None:
    program = PROGRAMS[name]
    content = program.write(tmp_path)
    path = tmp_path / program.damage
    good = path.read_bytes()
    reached = set()
    for place in list(malformed.places(content)):
        dotted = ".".join(map(str, place))
        reached.add(dotted)
        for what, text in malformed.damaged(path, copy.deepcopy(content), place):
            if dotted not in program.needed and what not in malformed.NEVER:
                continue
            path.write_text(text)
            message = outcome(program, tmp_path)
            case = f"{what} as {dotted}: {message}"
            refused = what in malformed.UNREADABLE
            refused |= dotted in program.needed and what in malformed.NEVER
            if refused:
                assert message is not None and str(path) in message, case
            elif message is not None:  # of values of the right type, another file may be told
                told = (str(tmp_path), "have no answer", "not found")
                assert any(text in message for text in told), case
            assert len(message or "") < 2500, case
    assert program.needed <= reached
    path.write_bytes(malformed.BOM + good)
    message = outcome(program, tmp_path)
    assert message is None or str(path) in message


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_wrong_file_is_refused_by_its_name(name, tmp_path) -> None:
    program = PROGRAMS[name]
    program.write(tmp_path)
    for what, content in malformed.CONTENTS.items():
        (tmp_path / program.damage).write_bytes(content)
        message = outcome(program, tmp_path)
        if what in ("empty", "half") and program.damage == "answers/2_0.jsonl":
            continue  # nothing is answered yet, or the last answer was cut off
        assert message is not None and str(tmp_path / program.damage) in message, (what, message)
