"""--offline: every program that loads a model has it, and then nothing is asked for."""

from __future__ import annotations

import pytest

from llava.analysis import attention, keep, page
from llava.eval import model_vqa_loader, model_vqa_science
from llava.eval.compare import sweep
from llava.eval.run.models import decoder_shape
from llava.model import checkpoint, reading
from llava.serve import cli, viewer

from .eval.stub import command, write_data

NAME, REASON = "me/llava", "offline nothing is"


@pytest.fixture(autouse=True)
def unreachable(monkeypatch):
    """Neither the hub nor a cache of it."""

    def ask(name, **_):
        raise AssertionError(f"the hub is asked for {name}")

    monkeypatch.setattr(reading, "snapshot_download", ask)
    monkeypatch.setattr(reading, "try_to_load_from_cache", lambda name, file: None)


def test_answering_programs(tmp_path, capsys):
    write_data(tmp_path, 1)
    argv = [NAME if part == "stub-7b" else part for part in command(tmp_path, "--offline")]
    assert model_vqa_loader.main(argv) == 2
    assert REASON in capsys.readouterr().err
    with pytest.raises(SystemExit):
        model_vqa_loader.main([*argv, "--depth-layers", "32"])
    assert REASON in capsys.readouterr().err


def test_figures_and_chat(tmp_path, capsys):
    picture = str(tmp_path / "images" / "0.png")
    write_data(tmp_path, 1)
    flags = ("--model-path", NAME, "--offline")
    assert cli.main([*flags, "--image-file", picture]) == 2
    assert REASON in capsys.readouterr().err
    questions = ("--image", picture, "--simple", "Who?", "--complex", "Why?")
    assert attention.main([*flags, *questions, "--out", str(tmp_path / "out.png")]) == 2
    assert REASON in capsys.readouterr().err


def test_conversion(tmp_path, capsys):
    convert = ["convert", NAME, str(tmp_path / "out"), "--to", "llava-hf", "--offline"]
    assert checkpoint.main(convert) == 1
    assert REASON in capsys.readouterr().err


@pytest.mark.parametrize("program", [sweep, viewer, model_vqa_science, keep, page])
def test_other_programs_have_the_flag(program, capsys):
    with pytest.raises(SystemExit):
        program.main(["--help"])
    assert "--offline" in capsys.readouterr().out


def test_what_reads_records_downloads_nothing_without_being_told():
    with pytest.raises(FileNotFoundError, match=REASON):
        decoder_shape(NAME)
