"""The runner on a real, tiny and random model: every layer of the program meets here once."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from llava.eval.model_vqa_loader import main
from llava.mm_utils import load_image_processor
from llava.model import compilation
from llava.pruning.methods.cdpruner import CDPruner

from ... import clip_files, tiny
from ..stub import StubTokenizer, command, read_answers, read_record, write_data

LAYERS, VISUAL = 6, 16


class TinyTokenizer(StubTokenizer):
    """One id a character, folded into the tiny model's vocabulary."""

    def encode(self, text: str) -> list[int]:
        return [3 + ord(letter) % 80 for letter in text]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(i + 48) for i in ids if i > 2)


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch):
    model = tiny.model(layers=LAYERS)
    processor = load_image_processor("no such folder")
    processor.size, processor.crop_size = {"shortest_edge": 56}, {"height": 56, "width": 56}

    def load(*_, **__):
        return TinyTokenizer(), model, processor, 512

    monkeypatch.setattr("llava.model.builder.load_pretrained_model", load)


def answer(folder, *flags: str, name: str = "answers") -> list[str]:
    flags = (
        "--max_new_tokens",
        "6",
        "--answers-file",
        str(folder / "out" / f"{name}.jsonl"),
        *flags,
    )
    assert main(command(folder, *flags)) == 0
    (folder / "out" / f"{name}.jsonl").replace(folder / "out" / "answers.jsonl")
    (folder / "out" / f"{name}.run.json").replace(folder / "out" / "answers.run.json")
    return [entry["text"] for entry in read_answers(folder)]


def test_batches_answer_as_single_questions_do(tmp_path):
    write_data(tmp_path, 4)
    budget = ("--target-token-num", "6", "--x0", "2")
    single = answer(tmp_path, *budget, name="single")
    costs = [entry["metadata"]["cost"] for entry in read_answers(tmp_path)]
    assert answer(tmp_path, *budget, "--batch-size", "4", name="batch") == single
    assert [entry["metadata"]["cost"] for entry in read_answers(tmp_path)] == costs
    assert len(set(single)) > 1


def test_a_method_that_reads_the_question_gets_that_of_each_sample(tmp_path, monkeypatch, capsys):
    write_data(tmp_path, 4)
    told, about = [], CDPruner.about

    def note(pruner, texts):
        told.append(texts)
        return about(pruner, texts)

    monkeypatch.setattr(CDPruner, "about", note)
    flags = ("--method", "cdpruner", "--target-token-num", "6", "--clip", clip_files.folder())
    single = answer(tmp_path, *flags, name="single")
    texts = [f"What is {'this ' * i}?" for i in range(4)]
    assert told == [[text] for text in texts]
    assert answer(tmp_path, *flags, "--batch-size", "4", name="batch") == single
    assert told[4:] == [texts]
    costs = [entry["metadata"]["cost"] for entry in read_answers(tmp_path)]
    assert all(cost["tokens_entering"] == 6 for cost in costs)
    # Without the folder the run does not start.
    for missing, message in ((), "needs CLIP's text tower"), (("--clip", "/nowhere"), "no such"):
        with pytest.raises(SystemExit):
            main(command(tmp_path, "--method", "cdpruner", *missing))
        assert message in capsys.readouterr().err


def test_compiled_layers_answer_the_same(tmp_path, monkeypatch):
    write_data(tmp_path, 2)
    budget = ("--target-token-num", "6", "--x0", "2")
    expected = answer(tmp_path, *budget, name="plain")
    # Graphs as in a real run, but no compiler behind them, which would take half a minute.
    traced = partial(compilation.compile_layers, backend="eager")
    monkeypatch.setattr(compilation, "compile_layers", traced)
    monkeypatch.setattr(compilation, "check_compiler", lambda device: None)
    counters.clear()
    assert answer(tmp_path, *budget, "--compile", name="compiled") == expected
    assert counters["stats"]["unique_graphs"] > 0
    torch._dynamo.reset()


def test_a_missing_compiler_ends_a_run_before_it_starts(tmp_path, monkeypatch, capsys):
    write_data(tmp_path, 1)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("llava.model.builder.load_pretrained_model", lambda *_, **__: pytest.fail())
    assert main(command(tmp_path, "--compile", "--device", "cpu")) == 2
    assert "error: compiling for cpu needs a C++ compiler" in capsys.readouterr().err
    assert not (tmp_path / "out" / "answers.jsonl").exists()


def test_the_record_tells_dense_from_pruned(tmp_path):
    write_data(tmp_path, 3)
    answer(tmp_path, "--method", "none", name="dense")
    dense = read_record(tmp_path)
    assert dense["tokens"] | {"text": 0} == {
        "visual": VISUAL, "entering": VISUAL, "leaving": VISUAL, "text": 0, "new": 6
    }  # fmt: skip
    assert dense["flops"]["prefill_ratio"] == dense["kv_bytes"]["ratio"] == 1
    assert dense["settings"]["pruner"]["method"] == "none"
    answer(tmp_path, "--target-token-num", "6", "--x0", "2", name="pruned")
    pruned = read_record(tmp_path)
    assert pruned["tokens"]["leaving"] < pruned["tokens"]["entering"] < VISUAL
    assert pruned["flops"]["prefill_ratio"] < 1 and pruned["flops"]["scoring"] > 0
    assert pruned["flops"]["dense_prefill"] == dense["flops"]["prefill"]


@pytest.mark.parametrize(
    "flags",
    [("--num_beams", "3"), ("--temperature", "0.9", "--top_p", "0.8")],
    ids=["beam", "draw"],
)
def test_beams_and_sampling_are_accounted_for_once_a_question(tmp_path, flags):
    write_data(tmp_path, 3)
    first = answer(tmp_path, "--target-token-num", "6", *flags, "--batch-size", "3", name="first")
    record = read_record(tmp_path)
    assert record["counts"]["answered"] == 3 and record["tokens"]["visual"] == VISUAL
    lengths = [entry["metadata"]["n_text"] for entry in read_answers(tmp_path)]
    assert lengths[1] - lengths[0] == lengths[2] - lengths[1] == len("this ")
    again = answer(tmp_path, "--target-token-num", "6", *flags, "--batch-size", "3", name="again")
    assert again == first


def test_the_vision_tower_hands_over_no_more_than_asked(tmp_path):
    write_data(tmp_path, 2)
    answer(tmp_path, "--method", "none", "--visual-token-num", "5")
    assert read_record(tmp_path)["tokens"]["visual"] == 5


def test_a_device_that_is_not_there_is_named(tmp_path, capsys):
    write_data(tmp_path, 1)
    assert main(command(tmp_path, "--device", "cuda:99")) == 2
    assert "--device cuda:99 cannot be used here" in capsys.readouterr().err
