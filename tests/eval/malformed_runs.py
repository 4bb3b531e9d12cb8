"""Programs that read runs, tables and logs, each with good files and the fields that it needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llava.analysis import curves, information, kinds, page, tradeoff, training
from llava.eval.compare import report
from llava.eval.run.answers import AnswerFile
from llava.eval.run.questions import QuestionFile
from llava.eval.run.record import RunRecord
from llava.eval.run.settings import RunSettings
from llava.eval.run.sharding import merge_chunks, shard_settings

from .. import malformed
from ..analysis import page_runs
from ..malformed import Program
from .benchmark_files import BENCHMARKS, write_benchmark
from .run_files import write_run
from .sweep_files import Asked
from .sweep_files import write_benchmark as write_asked
from .sweep_files import write_run as write_measured

QUESTION = {"question_id": 1, "image": "a.jpg", "text": "What is red?"}


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

PROGRAMS = {
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
    "metadata of kinds": Program(
        run=measure(kinds.main, "{0}/out", "--runs", "n_64"),
        damage="data/gqa/metadata.jsonl",
        needed={
            *("0", "0.index", "0.question_id", "0.kind", "0.hops", "0.distractors"),
            *("0.target_patches", "0.answer"),
        },
        prepare=write_measured_run,
    ),
    "metadata of information": Program(
        run=measure(information.main, "--runs", "{0}/out", "--resamples", "2"),
        damage="data/gqa/metadata.jsonl",
        needed={"0", "0.index", "0.question_id", "0.kind", "0.hops"},
        prepare=write_measured_run,
    ),
    "answers of information": Program(
        run=measure(information.main, "--runs", "{0}/out", "--resamples", "2"),
        damage="out/gqa/n_64.jsonl",
        needed={
            *("0", "0.question_id", "0.prompt", "0.text", "0.metadata", "0.metadata.index"),
            *("0.metadata.n_text", "0.metadata.complexity", "0.metadata.complexity.mi"),
        },
        prepare=write_measured_run,
    ),
    "record of information": Program(
        run=measure(information.main, "--runs", "{0}/out", "--resamples", "2"),
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
