"""Runs through the command line with a stub model: what is asked, written and recorded."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from llava.eval.model_vqa_loader import build_parser, main

from ..stub import (
    VISUAL,
    StubModel,
    command,
    essence,
    expected,
    read_answers,
    read_record,
    write_data,
    write_questions,
)


def test_answers_have_llavas_schema_and_the_order_of_the_questions(tmp_path, use, capsys):
    questions = write_data(tmp_path)
    model = use(StubModel())
    assert main(command(tmp_path)) == 0
    answers = read_answers(tmp_path)
    assert essence(answers) == expected(questions)
    for answer in answers:
        keys = ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
        assert list(answer) == keys
        assert len(answer["answer_id"]) == 22 and answer["model_id"] == "stub-7b"
        assert answer["metadata"]["n_visual"] == VISUAL
        assert answer["metadata"]["new_tokens"] == len(f" {answer['text']}\n") + 1
    assert model.calls[0]["image_sizes"] == [(40, 30)]
    greedy = model.calls[0]
    assert (greedy["do_sample"], greedy["num_beams"], greedy["max_new_tokens"]) == (False, 1, 128)
    assert not {"temperature", "top_p", "visual_token_num"} & greedy.keys()
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["status"] == "complete"
    assert "visual tokens a layer" in err


@pytest.mark.parametrize(
    "extra", [("--batch-size", "3"), ("--batch-size", "2", "--num-workers", "2")]
)
def test_batches_and_workers_change_no_answer(tmp_path, use, extra):
    questions = write_data(tmp_path)
    model = use(StubModel())
    assert main(command(tmp_path, *extra)) == 0
    assert essence(read_answers(tmp_path)) == expected(questions)
    assert sum(call["batch"] for call in model.calls) == 5 and len(model.calls) < 5


def test_the_defaults_are_the_published_protocol(tmp_path):
    args = build_parser().parse_args(command(tmp_path)[:-2])
    assert (args.conv_mode, args.temperature, args.max_new_tokens) == ("vicuna_v1", 0, 128)
    assert (args.batch_size, args.num_workers, args.num_beams, args.dtype) == (1, 2, 1, "auto")


def test_runs_outside_the_main_thread(tmp_path, use):
    questions = write_data(tmp_path)
    use(StubModel())
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(main, command(tmp_path)).result() == 0
    assert essence(read_answers(tmp_path)) == expected(questions)


def test_flags_reach_generate(tmp_path, use):
    write_data(tmp_path, 1)
    model = use(StubModel())
    flags = "--visual-token-num 288 --num_beams 2 --max_new_tokens 7 --target-token-num 32"
    assert main(command(tmp_path, *flags.split())) == 0
    call = model.calls[0]
    assert (call["visual_token_num"], call["num_beams"], call["max_new_tokens"]) == (288, 2, 7)
    assert call["pruner"].target_token_num == 32


def test_sampling_draws_per_question_whatever_ran_before(tmp_path, use):
    write_data(tmp_path, 3)
    drawn: dict[int, float] = {}
    sampled = command(tmp_path, "--temperature", "0.7", "--top_p", "0.9", "--seed", "5")
    model = use(StubModel(lambda n: drawn.__setitem__(n, torch.rand(1).item())))
    assert main(sampled) == 0
    assert (model.calls[0]["temperature"], model.calls[0]["top_p"]) == (0.7, 0.9)
    assert model.calls[0]["do_sample"] and len(set(drawn.values())) == 3

    lines = (tmp_path / "out" / "answers.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "out" / "answers.jsonl").write_text("".join(lines[:2]))
    again: list[float] = []
    use(StubModel(lambda n: again.append(torch.rand(1).item())))
    assert main(sampled) == 0
    assert again == [drawn[3]]


def test_the_record_says_how_the_answers_came_about(tmp_path, use):
    write_data(tmp_path)
    use(StubModel())
    assert main(command(tmp_path, "--target-token-num", "64", "--batch-size", "2")) == 0
    record = read_record(tmp_path)
    assert record["status"] == "complete"
    assert record["counts"] == {"questions": 5, "answered": 5, "failed": 0, "resumed": 0}
    settings = record["settings"]
    assert settings["dtype"] == "float32" and settings["conv_mode"] == "vicuna_v1"
    assert settings["pruner"]["method"] == "autoprune" and len(settings["question_sha256"]) == 64
    wanted = {"python", "torch", "transformers", "llava", "git_commit", "git_dirty", "device_name"}
    assert wanted <= record["environment"].keys()
    # 16 visual tokens enter layer 0 and 8 each of the other three.
    assert record["tokens"]["visual"] == 16 and record["tokens"]["entering"] == (16 + 3 * 8) / 4
    assert record["tokens"]["leaving"] == 8
    costs = [answer["metadata"]["cost"] for answer in read_answers(tmp_path)]
    assert record["flops"]["prefill"] == sum(cost["prefill_flops"] for cost in costs)
    dense = sum(cost["dense_prefill_flops"] for cost in costs)
    assert record["flops"]["prefill_ratio"] == pytest.approx(record["flops"]["prefill"] / dense)
    # Nothing was scored or merged, and every layer ran for all that entered it.
    assert record["flops"]["computed"] == sum(cost["computed_flops"] for cost in costs)
    assert record["flops"]["computed_ratio"] == record["flops"]["prefill_ratio"]
    assert 0 < record["kv_bytes"]["ratio"] < 1
    seconds = record["seconds"]
    assert seconds["total"] >= seconds["waiting"] >= 0
    assert 0 <= record["waiting_fraction"] <= 1 and record["questions_per_second"] > 0
    assert record["peak_memory_bytes"] > 1_000_000


def test_a_literal_image_token_does_not_become_an_image(tmp_path, use, caplog):
    questions = write_data(tmp_path, 2)
    questions[1]["text"] = "<image>\nIs <im<image>age> here?"
    write_questions(tmp_path, questions)
    model = use(StubModel())
    assert main(command(tmp_path)) == 0
    assert "question 'q1' (line 2)" in caplog.text and "<image>" in caplog.text
    assert model.prompts[1].endswith("USER: \nIs  here? ASSISTANT:")
    plain, odd = read_answers(tmp_path)
    assert odd["prompt"] == questions[1]["text"] and odd["metadata"]["image_token_removed"] is True
    assert "image_token_removed" not in plain["metadata"]


def test_text_only_questions_go_without_an_image(tmp_path, use):
    questions = write_data(tmp_path, 3)
    del questions[1]["image"]
    write_questions(tmp_path, questions)
    model = use(StubModel())
    assert main(command(tmp_path, "--batch-size", "3")) == 0
    assert [a["text"].split(".")[1] for a in read_answers(tmp_path)] == ["1", "0", "1"]
    assert len(model.calls[0]["image_sizes"]) == 2
    assert read_record(tmp_path)["tokens"]["visual"] == VISUAL  # of the questions with an image


def test_chunks_add_up_and_may_be_empty(tmp_path, use):
    questions = write_data(tmp_path, 3)
    use(StubModel())
    parts = []
    for k in range(5):
        file = tmp_path / "out" / f"5_{k}.jsonl"
        part = ("--num-chunks", "5", "--chunk-idx", str(k), "--answers-file", str(file))
        assert main(command(tmp_path, *part)) == 0
        parts += [json.loads(line) for line in file.read_text().splitlines()]
        record = json.loads(file.with_suffix(".run.json").read_text())
        assert record["status"] == "complete"
    assert essence(parts) == expected(questions)


def test_the_peak_of_memory_is_that_of_one_run(tmp_path, use, monkeypatch):
    """Whatever the process, or an earlier run in it, has needed before."""
    held = [900]
    monkeypatch.setattr("llava.eval.run.runner.reset_peak_memory", lambda *_: held.clear())
    monkeypatch.setattr("llava.eval.run.runner.peak_memory_bytes", lambda *_: max(held, default=1))
    write_data(tmp_path)
    model = use(StubModel(lambda _: held.append(needed)))
    for needed in (30, 10):
        answers = tmp_path / "out" / f"{needed}.jsonl"
        assert main(command(tmp_path, "--answers-file", str(answers))) == 0
        record = json.loads(answers.with_suffix(".run.json").read_text())
        assert record["peak_memory_bytes"] == needed
    assert len(model.calls) == 10
