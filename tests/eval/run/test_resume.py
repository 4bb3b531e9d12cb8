"""The same command again: it continues, leaves alone, or refuses to mix."""

from __future__ import annotations

import json

import pytest
import torch

from llava.eval.model_vqa_loader import main

from ..stub import (
    StubModel,
    command,
    essence,
    expected,
    read_answers,
    read_record,
    write_checkpoint,
    write_data,
    write_questions,
)


def test_a_finished_run_is_left_alone(tmp_path, use, no_model, capsys):
    write_data(tmp_path)
    use(StubModel())
    assert main(command(tmp_path)) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    no_model()
    assert main(command(tmp_path, "--batch-size", "4")) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    out, err = capsys.readouterr()
    assert "already" in err and json.loads(out.splitlines()[-1])["counts"]["answered"] == 5


def test_a_killed_run_continues_and_a_half_line_is_cut_off(tmp_path, use):
    questions = write_data(tmp_path)
    use(StubModel())
    assert main(command(tmp_path)) == 0
    whole = read_record(tmp_path)
    file = tmp_path / "out" / "answers.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2]) + lines[2][:40])
    model = use(StubModel())
    assert main(command(tmp_path, "--batch-size", "2")) == 0
    assert sum(call["batch"] for call in model.calls) == 3
    assert essence(read_answers(tmp_path)) == expected(questions)
    record = read_record(tmp_path)
    assert record["counts"] == {"questions": 5, "answered": 5, "failed": 0, "resumed": 2}
    for key in ("tokens", "flops", "kv_bytes"):
        assert record[key] == whole[key]


def test_older_answers_do_not_say_what_really_ran(tmp_path, use):
    write_data(tmp_path)
    use(StubModel())
    assert main(command(tmp_path)) == 0
    whole = read_record(tmp_path)
    assert whole["flops"]["computed"] > 0
    file = tmp_path / "out" / "answers.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()[:4]]
    del lines[1]["metadata"]["cost"]["computed_flops"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    use(StubModel())
    assert main(command(tmp_path)) == 0
    flops = read_record(tmp_path)["flops"]
    unknown = {"computed": None, "computed_ratio": None}
    assert flops == whole["flops"] | unknown


@pytest.mark.parametrize("end", ["", "\r\n", "\n\n"])
def test_a_whole_last_answer_is_not_asked_again(tmp_path, use, end):
    questions = write_data(tmp_path)
    use(StubModel())
    assert main(command(tmp_path)) == 0
    file = tmp_path / "out" / "answers.jsonl"
    lines = file.read_text().splitlines()
    file.write_bytes(("\r\n".join(lines[:3]) + end).encode())
    model = use(StubModel())
    assert main(command(tmp_path)) == 0
    assert len(model.calls) == 2
    written = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    assert written[:3] == lines[:3]
    assert essence([json.loads(line) for line in written]) == expected(questions)


@pytest.mark.parametrize(
    ("flag", "value", "named"),
    [
        ("--target-token-num", "128", "pruner.target_token_num: 64.0 in the record, 128.0 now"),
        ("--conv-mode", "llava_v1", "conv_mode: 'vicuna_v1' in the record, 'llava_v1' now"),
        ("--max_new_tokens", "16", "max_new_tokens: 128 in the record, 16 now"),
        ("--temperature", "0.5", "temperature: 0.0 in the record, 0.5 now"),
        ("--dtype", "bfloat16", "dtype: 'float32' in the record, 'bfloat16' now"),
        ("--method", "none", "pruner.method: 'autoprune' in the record, 'none' now"),
    ],
)
def test_answers_of_other_settings_are_not_mixed(
    tmp_path, use, no_model, capsys, flag, value, named
):
    write_data(tmp_path)
    use(StubModel())
    start = command(tmp_path, "--target-token-num", "64")
    assert main(start) == 0
    before = (tmp_path / "out" / "answers.jsonl").read_bytes()
    no_model()
    assert main([*start, flag, value]) == 2
    err = capsys.readouterr().err
    assert named in err and "--answers-file" in err
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == before


def test_depths_are_the_decoders_and_the_record_names_them(tmp_path, use, no_model, capsys):
    """A run of an earlier version, which took 14.9 in any decoder, goes on by saying so."""
    write_data(tmp_path)
    flags = [*command(tmp_path), "--model-path", write_checkpoint(tmp_path, layers=12)]
    use(StubModel())
    assert main(flags) == 0
    assert read_record(tmp_path)["settings"]["pruner"]["x0"] == 5.5875
    assert capsys.readouterr().err.count("this decoder has 12: 5.5875") == 1
    no_model()
    record = read_record(tmp_path)
    record["settings"]["pruner"]["x0"] = 14.9
    (tmp_path / "out" / "answers.run.json").write_text(json.dumps(record))
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert "pruner.x0: 14.9 in the record, 5.5875 now" in error
    assert "--depth-layers 12 takes it as it is" in error
    for same in (["--x0", "14.9"], ["--depth-layers", "12"]):
        assert main([*flags, *same]) == 0
    assert "already" in capsys.readouterr().err


def test_dtype_auto_is_compared_once_the_model_is_there(tmp_path, use, capsys):
    write_data(tmp_path)
    use(StubModel())
    assert main(command(tmp_path)) == 0
    file = tmp_path / "out" / "answers.jsonl"
    file.write_text(file.read_text().splitlines(keepends=True)[0])
    half = StubModel()
    half.dtype = torch.bfloat16
    use(half)
    assert main(command(tmp_path)) == 2
    assert "dtype: 'float32' in the record, 'bfloat16' now" in capsys.readouterr().err
    assert len(read_answers(tmp_path)) == 1


def test_settings_that_change_no_answer_may_change(tmp_path, use):
    questions = write_data(tmp_path)
    use(StubModel())
    assert main(command(tmp_path)) == 0
    file = tmp_path / "out" / "answers.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    (tmp_path / "images").rename(tmp_path / "pictures")
    flags = ("--batch-size", "2", "--num-workers", "1", "--seed", "9", "--dtype", "float32")
    moved = ("--image-folder", str(tmp_path / "pictures"))
    assert main(command(tmp_path, *flags, *moved)) == 0
    assert essence(read_answers(tmp_path)) == expected(questions)


def test_changed_questions_are_refused(tmp_path, use, no_model, capsys):
    questions = write_data(tmp_path)
    use(StubModel())
    assert main(command(tmp_path)) == 0
    no_model()
    write_questions(tmp_path, questions[:4])
    assert main(command(tmp_path)) == 2
    assert "question_sha256" in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"question_id": 1}\n', "notes of mine, half a line"])
def test_answers_without_a_record_are_refused_untouched(tmp_path, no_model, capsys, content):
    write_data(tmp_path)
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / "answers.jsonl"
    file.write_text(content)
    no_model()
    assert main(command(tmp_path)) == 2
    assert "answers.run.json" in capsys.readouterr().err and file.read_text() == content


def test_a_damaged_record_or_answer_is_named(tmp_path, use, no_model, capsys):
    write_data(tmp_path)
    use(StubModel())
    assert main(command(tmp_path)) == 0
    no_model()
    file, record = (tmp_path / "out" / f"answers.{ending}" for ending in ("jsonl", "run.json"))
    good = file.read_text()

    file.write_text(good + good.splitlines(keepends=True)[1])
    assert main(command(tmp_path)) == 2
    assert "line 6: a second answer to question 'q1' (line 2)" in capsys.readouterr().err
    file.write_text(good.replace('"q3"', '"q9"'))
    assert main(command(tmp_path)) == 2
    assert "line 4: answers question q9 with" in capsys.readouterr().err
    file.write_text(good.replace('{"question_id": "q2"', "oops", 1))
    assert main(command(tmp_path)) == 2
    assert "line 3: expected a JSON object" in capsys.readouterr().err
    file.write_text(good.replace('"n_text"', '"n_words"', 1))
    assert main(command(tmp_path)) == 2
    assert "line 1, metadata: n_text is missing" in capsys.readouterr().err
    file.write_text(good)
    record.write_text("{")
    assert main(command(tmp_path)) == 2
    assert "not a readable run record" in capsys.readouterr().err


def test_two_processes_on_one_file_are_refused(tmp_path, use, capsys):
    write_data(tmp_path)
    codes = []
    use(StubModel(lambda call: codes.append(main(command(tmp_path))) if call == 1 else None))
    assert main(command(tmp_path)) == 0
    assert codes == [2] and "Another process is writing" in capsys.readouterr().err
    assert len(read_answers(tmp_path)) == 5
