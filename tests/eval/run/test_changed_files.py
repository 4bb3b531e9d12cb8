"""Answers, failures and questions that something else changes while a run goes on."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from llava.eval.model_vqa_loader import main
from llava.eval.model_vqa_mmbench import main as mmbench
from llava.eval.model_vqa_science import main as science
from llava.eval.run.answers import AnswerFile
from llava.eval.run.linefile import LineFile, LostError

from ..stub import (
    StubModel,
    command,
    essence,
    expected,
    read_answers,
    read_record,
    write_data,
    write_questions,
)


def _replace(file: Path, content: str) -> None:
    """As editors and rsync do: a new file takes the name."""
    other = file.with_name("other")
    other.write_text(content)
    other.replace(file)


def _append(file: Path, content: str) -> None:
    with file.open("a") as target:
        target.write(content)


def _rewrite(file: Path) -> None:
    """Other content of the same size, in place."""
    file.write_bytes(file.read_bytes().replace(b"q1", b"q9"))


def _while_running(folder: Path, use, change, *flags: str, call: int = 3) -> int:
    """Run with `change(answers file)` during the third of five questions."""
    file = folder / "out" / "answers.jsonl"
    use(StubModel(lambda number: change(file) if number == call else None))
    return main(command(folder, *flags))


@pytest.mark.parametrize("call", [3, 5], ids=["in between", "at the last question"])
@pytest.mark.parametrize(
    "change",
    [lambda file: file.unlink(), lambda file: shutil.rmtree(file.parent)],
    ids=["file", "folder"],
)
def test_answers_that_are_deleted_are_put_back(tmp_path, use, capsys, change, call):
    questions = write_data(tmp_path)
    assert _while_running(tmp_path, use, change, call=call) == 1
    assert essence(read_answers(tmp_path)) == expected(questions)[: call - 1]
    assert read_record(tmp_path)["status"] == "incomplete"
    out, err = capsys.readouterr()
    assert "answers.jsonl was deleted or moved away while this run wrote to it" in err
    assert f"Its {call - 1} lines have been put back; the same command continues" in err
    assert "Complete" not in err and json.loads(out.splitlines()[-1])["status"] == "incomplete"
    use(StubModel())
    assert main(command(tmp_path)) == 0
    assert essence(read_answers(tmp_path)) == expected(questions)


def test_another_file_in_their_place_is_left_alone(tmp_path, use, capsys):
    questions = write_data(tmp_path)
    file = tmp_path / "out" / "answers.jsonl"
    (tmp_path / "out").mkdir()
    file.with_name("answers.jsonl.saved").write_text("the user's own")
    assert _while_running(tmp_path, use, lambda file: _replace(file, "")) == 1
    assert file.read_text() == ""
    saved = file.with_name("answers.jsonl.saved2")
    err = capsys.readouterr().err
    assert "answers.jsonl was replaced by another file while this run wrote to it" in err
    assert f"the 2 lines of this run are in {saved}: move them to answers.jsonl" in err
    assert file.with_name("answers.jsonl.saved").read_text() == "the user's own"
    saved.replace(file)
    model = use(StubModel())
    assert main(command(tmp_path)) == 0
    assert len(model.calls) == 3 and essence(read_answers(tmp_path)) == expected(questions)


def test_a_folder_of_another_run_in_their_place_keeps_its_record(tmp_path, use, capsys):
    write_data(tmp_path)

    def change(file: Path) -> None:
        file.parent.rename(tmp_path / "moved")
        file.parent.mkdir()
        file.write_text("another's\n")
        file.with_suffix(".run.json").write_text("another's")

    assert _while_running(tmp_path, use, change) == 1
    assert (tmp_path / "out" / "answers.run.json").read_text() == "another's"
    assert len((tmp_path / "out" / "answers.jsonl.saved").read_bytes().splitlines()) == 2
    assert "answers.run.json: something else has changed it" in capsys.readouterr().err


def test_answers_that_are_cut_are_counted(tmp_path, use, capsys):
    questions = write_data(tmp_path)

    def change(file: Path) -> None:
        os.truncate(file, len(file.read_bytes().splitlines(keepends=True)[0]) + 9)

    assert _while_running(tmp_path, use, change) == 1
    assert "1 of 2 lines are left. The same command makes the others" in capsys.readouterr().err
    assert b"\0" not in (tmp_path / "out" / "answers.jsonl").read_bytes()
    use(StubModel())
    assert main(command(tmp_path)) == 0
    assert essence(read_answers(tmp_path)) == expected(questions)


def test_what_something_else_appends_is_told(tmp_path, use, capsys):
    questions = write_data(tmp_path)
    assert _while_running(tmp_path, use, lambda file: _append(file, "a note\n")) == 1
    err = capsys.readouterr().err
    file = tmp_path / "out" / "answers.jsonl"
    *lines, note = file.read_bytes().splitlines(keepends=True)
    assert f"The 2 lines of this run are there, but what follows byte {len(b''.join(lines))}" in err
    assert note == b"a note\n"
    os.truncate(file, len(b"".join(lines)))
    use(StubModel())
    assert main(command(tmp_path)) == 0
    assert essence(read_answers(tmp_path)) == expected(questions)


def test_answers_of_the_same_size_are_compared_at_the_end(tmp_path, use, capsys):
    write_data(tmp_path)
    assert _while_running(tmp_path, use, _rewrite) == 1
    err = capsys.readouterr().err
    assert "answers.jsonl was rewritten while this run wrote to it" in err and "Complete" not in err
    assert read_record(tmp_path)["status"] == "incomplete"


def test_a_finished_run_is_looked_at_too(tmp_path, use, monkeypatch, capsys):
    """Whatever happens between the last answer and the verdict."""
    write_data(tmp_path)
    monkeypatch.setattr(AnswerFile, "put_in_order", lambda self: self.path.unlink())
    use(StubModel())
    assert main(command(tmp_path)) == 1
    assert "Its 5 lines have been put back" in capsys.readouterr().err


def test_an_interrupted_run_calls_nothing_safe_that_is_gone(tmp_path, use, capsys):
    write_data(tmp_path)

    def change(file: Path) -> None:
        _replace(file, "")
        os.kill(os.getpid(), signal.SIGINT)

    assert _while_running(tmp_path, use, change) == 130
    err = capsys.readouterr().err
    assert "2 lines of this run are in" in err and "are safe" not in err


def test_a_file_that_cannot_be_put_back_is_said(tmp_path, use, capsys):
    write_data(tmp_path)

    def change(file: Path) -> None:
        shutil.rmtree(file.parent)
        file.parent.write_text("a file where the folder was")

    assert _while_running(tmp_path, use, change) == 1
    err = capsys.readouterr().err
    assert "Its 2 lines could not be saved" in err and "Traceback" not in err


def test_listed_failures_that_are_deleted_are_put_back(tmp_path, use, capsys):
    write_data(tmp_path)
    (tmp_path / "images" / "0.png").unlink()
    errors = tmp_path / "out" / "answers.errors.jsonl"
    assert _while_running(tmp_path, use, lambda _: errors.unlink()) == 1
    assert "answers.errors.jsonl was deleted" in capsys.readouterr().err
    assert json.loads(errors.read_text())["question_id"] == "q0"


def test_a_file_that_another_took_the_place_of_before_the_first_answer_stays(tmp_path, use):
    """A model that cannot be loaded takes back the empty file that it began, not the user's."""
    write_data(tmp_path)
    file = tmp_path / "out" / "answers.jsonl"
    model = StubModel()
    model.config.image_aspect_ratio = "stretch"
    load = model.load
    model.load = lambda *_, **__: (_replace(file, "mine"), load())[1]
    use(model)
    assert main(command(tmp_path)) == 2
    assert file.read_text() == "mine"


def test_a_merged_file_is_looked_at(tmp_path, use, monkeypatch, capsys):
    write_data(tmp_path)
    use(StubModel())
    for k in range(2):
        part = tmp_path / "out" / "answers" / f"2_{k}.jsonl"
        chunk = ("--num-chunks", "2", "--chunk-idx", str(k), "--answers-file", str(part))
        assert main(command(tmp_path, *chunk)) == 0
    sync = AnswerFile.sync
    with monkeypatch.context() as patch:
        patch.setattr(AnswerFile, "sync", lambda self: (sync(self), self.path.unlink()))
        assert main(command(tmp_path, "--merge-chunks", "2")) == 1
    err = capsys.readouterr().err
    assert "answers.jsonl.merging was deleted" in err and "Traceback" not in err
    assert not (tmp_path / "out" / "answers.jsonl").exists()
    assert main(command(tmp_path, "--merge-chunks", "2")) == 0


def test_an_interrupt_while_answers_are_put_in_order_waits(tmp_path, use, monkeypatch, capsys):
    """Half way, the ordered file would look like somebody else's."""
    questions = write_data(tmp_path)
    (tmp_path / "images" / "0.png").rename(tmp_path / "0.png")
    use(StubModel())
    assert main(command(tmp_path)) == 3
    (tmp_path / "0.png").rename(tmp_path / "images" / "0.png")
    replace = os.replace

    def interrupted(source, target):
        replace(source, target)
        if str(source).endswith(".sorting"):
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        assert main(command(tmp_path)) == 130
    assert "5 of 5 answers are safe" in capsys.readouterr().err
    assert essence(read_answers(tmp_path)) == expected(questions)
    assert not list((tmp_path / "out").glob("*.saved"))


def test_answers_are_put_in_order_from_the_open_file(tmp_path):
    file = LineFile(tmp_path / "a.jsonl")
    offsets = [file.append({"n": n}) for n in range(3)]
    _replace(file.path, "mine")
    with pytest.raises(LostError):
        file.reorder(reversed(offsets))
    assert file.path.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
    file.close()


def _edited(folder: Path, keep_time: bool = False) -> None:
    """The fourth question becomes another of the same length, in place."""
    file = folder / "questions.jsonl"
    times = file.stat()
    content = file.read_bytes().replace(b"What is this this this ?", b"What is that that that ?")
    file.write_bytes(content)
    if keep_time:
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("flags", [(), ("--num-workers", "1")], ids=["alone", "a worker"])
@pytest.mark.parametrize("keep_time", [False, True])
def test_a_question_file_that_is_edited_stops_the_run(tmp_path, use, capsys, keep_time, flags):
    questions = write_data(tmp_path)
    before = (tmp_path / "questions.jsonl").read_bytes()
    change = lambda _: _edited(tmp_path, keep_time)  # noqa: E731
    assert _while_running(tmp_path, use, change, *flags, call=2) == 1
    err = capsys.readouterr().err
    assert "questions.jsonl was changed while the run read it. 2 of 5 answers are safe" in err
    assert "Put that back, and the same command continues" in err and "Traceback" not in err
    assert read_record(tmp_path)["status"] == "incomplete"
    assert essence(read_answers(tmp_path)) == expected(questions)[:2]
    (tmp_path / "questions.jsonl").write_bytes(before)
    use(StubModel())
    assert main(command(tmp_path)) == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.write_bytes(file.read_bytes()[:60]),
        lambda file: file.unlink(),
        lambda file: _replace(file, "not JSON"),
        lambda file: _append(file, '{"question_id": "new", "text": "Why?"}\n'),
    ],
    ids=["cut", "deleted", "replaced", "longer"],
)
@pytest.mark.parametrize("call", [2, 5], ids=["in between", "at the last question"])
def test_a_question_file_that_is_another_stops_the_run(tmp_path, use, capsys, change, call):
    write_data(tmp_path)
    file = tmp_path / "questions.jsonl"
    assert _while_running(tmp_path, use, lambda _: change(file), call=call) == 1
    err = capsys.readouterr().err
    assert f"questions.jsonl was changed while the run read it. {call} of 5 answers" in err


def test_a_question_file_with_a_new_date_is_the_same(tmp_path, use):
    questions = write_data(tmp_path)
    file = tmp_path / "questions.jsonl"
    assert _while_running(tmp_path, use, lambda _: os.utime(file, (1, 1))) == 0
    assert essence(read_answers(tmp_path)) == expected(questions)


def test_a_part_of_the_questions_is_watched_too(tmp_path, use, monkeypatch):
    from llava.eval.run.questions import QuestionFile
    from llava.eval.run.subset import take
    from llava.eval.run.watched import ChangedError

    write_data(tmp_path)
    part = take(QuestionFile(tmp_path / "questions.jsonl"), 2)
    part.require_same()
    write_questions(tmp_path, [])
    with pytest.raises(ChangedError):
        part.require_same()


def test_a_table_that_is_edited_stops_the_run(tmp_path, use, capsys):
    """Its pictures are read when their turn comes, from where their row was."""
    write_data(tmp_path, 3)
    cells = [
        base64.b64encode((tmp_path / "images" / f"{i}.png").read_bytes()).decode() for i in range(3)
    ]
    file = tmp_path / "questions.tsv"
    rows = [f"{i}\tWhat?\tone\ttwo\t{cell}\n" for i, cell in enumerate(cells)]
    file.write_text("index\tquestion\tA\tB\timage\n" + "".join(rows))
    times = file.stat()

    def change(_: Path) -> None:
        file.write_text(file.read_text().replace(rows[2], rows[2].replace(cells[2], cells[1])))
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    answers = tmp_path / "out" / "answers.jsonl"
    use(StubModel(lambda call: change(answers) if call == 2 else None))
    arguments = command(tmp_path, "--question-file", str(file))
    assert mmbench(arguments) == 1
    err = capsys.readouterr().err
    assert "questions.tsv was changed while the run read it. 2 of 3" in err
    assert not answers.with_name("answers.errors.jsonl").exists()


def test_an_array_of_questions_that_is_edited_stops_the_run(tmp_path, use, capsys):
    write_data(tmp_path, 2)
    file = tmp_path / "questions.json"
    entries = [
        {
            "id": str(i),
            "image": f"{i}.png",
            "conversations": [{"from": who, "value": "<image>\nWhat?"} for who in ("human", "gpt")],
        }
        for i in range(2)
    ]
    file.write_text(json.dumps(entries))
    use(StubModel(lambda call: file.write_text("[]") if call == 1 else None))
    assert science(command(tmp_path, "--question-file", str(file))) == 1
    err = capsys.readouterr().err
    assert "questions.json was changed while the run read it. 1 of 2" in err
