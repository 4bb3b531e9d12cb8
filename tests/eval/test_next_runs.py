"""A LLaVA-1.6 checkpoint through the programs: a script from end to end, and what records say."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llava import pruning
from llava.eval.compare import sweep, tables
from llava.eval.model_vqa_loader import main
from llava.eval.run.record import read_record
from llava.eval.run.settings import differences

from .. import checkpoints_next
from .programs import calls, perform, run_script, write_recorder
from .test_mini_runs import MINI, ROOT, cut_textvqa

#: Tiles of 112 pixels, 8 x 8 patches each. The mini benchmark's pictures of 336 x 336 are larger
#: than a tile and square: an overview and four tiles of 64 patches, 16 newlines.
TILE, PATCHES, NEWLINES = 112, 5 * 64, 16


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return checkpoints_next.write_original(
        tmp_path_factory.mktemp("models") / "llava-next-tiny", "safetensors", TILE
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "textvqa"
    cut_textvqa(MINI / "textvqa", folder)
    return folder


COMMON = ("--device", "cpu", "--dtype", "float32", "--num-workers", "0", "--max_new_tokens", "3")


def test_what_the_script_of_textvqa_runs(checkpoint, data, tmp_path, capsys):
    write_recorder(tmp_path / "python")
    done = run_script(
        ["bash", "scripts/v1_6/eval/textvqa.sh", "160", *COMMON, "--batch-size", "2"],
        ROOT,
        os.environ
        | {"MODEL_PATH": str(checkpoint), "DATA": str(data), "PYTHON": str(tmp_path / "python")}
        | {"CALLS": str(tmp_path / "calls")},
    )
    assert done.returncode == 0, done.stderr
    assert [perform(call) for call in calls(tmp_path)] == [0, 0]
    (answers,) = data.glob("answers/llava-next-tiny/autoprune/n_160.jsonl")
    for line in map(json.loads, answers.read_text().splitlines()):
        assert line["metadata"]["n_visual"] == PATCHES + NEWLINES
        assert line["metadata"]["cost"]["tokens_leaving"] == pytest.approx(160, abs=1)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["benchmark"], result["samples"], result["missing"]) == ("textvqa", 2, 0)
    settings = read_record(answers)["settings"]
    assert (settings["merge_type"], settings["processing"]) == ("spatial_unpad", "llava")
    assert settings["visual_token_num"] == 2880


def answer(checkpoint: Path, data: Path, answers: Path, *flags: str) -> int:
    questions = data / "llava_textvqa_val_v051_ocr.jsonl"
    files = ("--question-file", str(questions), "--image-folder", str(data / "train_images"))
    return main(
        ["--model-path", str(checkpoint), *files, "--answers-file", str(answers), *COMMON, *flags]
    )


def test_merge_types_are_named_and_never_mixed(checkpoint, data, tmp_path, capsys):
    """Spatial is another model: no newlines, as many tokens as the official AutoPrune counts."""
    answers = tmp_path / "spatial.jsonl"
    spatial = ("--method", "none", "--merge-type", "spatial")
    assert answer(checkpoint, data, answers, *spatial) == 0
    record = read_record(answers)
    assert record["settings"]["merge_type"] == "spatial"
    assert record["tokens"]["visual"] == record["tokens"]["entering"] == PATCHES
    # The same command goes on from there; the checkpoint's own merge type does not.
    assert answer(checkpoint, data, answers, *spatial) == 0
    capsys.readouterr()
    lines = answers.read_text().splitlines(keepends=True)
    answers.write_text(lines[0])
    assert answer(checkpoint, data, answers, "--method", "none") == 2
    assert "merge_type: 'spatial' in the record, 'spatial_unpad' now" in capsys.readouterr().err


def test_canvases_are_named_and_never_mixed(checkpoint, data, tmp_path, capsys):
    """The pictures are squares: 112 x 224 is three views for five."""
    answers = tmp_path / "fixed.jsonl"
    fixed = ("--method", "none", "--merge-type", "spatial", "--processing", "112x224")
    assert answer(checkpoint, data, answers, *fixed) == 0
    record = read_record(answers)
    assert record["settings"]["processing"] == "112x224"
    assert record["tokens"]["visual"] == 3 * 64
    assert answer(checkpoint, data, answers, *fixed) == 0
    capsys.readouterr()
    answers.write_text(answers.read_text().splitlines(keepends=True)[0])
    for other in ("fill", "llava"):
        assert answer(checkpoint, data, answers, *fixed[:-1], other) == 2
        said = f"processing: '112x224' in the record, {other!r} now"
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["2", "13b"])
def test_the_papers_tables_tile_as_the_official_code_does(name, checkpoint, data, tmp_path, capsys):
    argv = [
        *("--table", name, "--model-path", str(checkpoint), "--data", str(data.parent)),
        *("--out", str(tmp_path), "--benchmarks", "textvqa", "--methods", "none", *COMMON),
    ]
    assert tables.main(argv) == 0
    table = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (table["made_with"]["merge_type"], table["made_with"]["processing"]) == (
        ["spatial"], ["fill"]
    )  # fmt: skip
    record = json.loads((tmp_path / "textvqa" / "none.run.json").read_text())
    assert record["settings"]["processing"] == "fill"
    # The same command goes on; flags of one's own are another run.
    assert tables.main(argv) == 0
    assert tables.main([*argv, "--processing", "llava"]) == 2
    assert "processing: 'fill' in the record, 'llava' now" in capsys.readouterr().err


def test_a_sweep_encodes_tiles_once_and_names_the_merge_type(checkpoint, data, tmp_path, capsys):
    """As Table 2 is run: methods in the decoder and in the tower, on kept features."""
    argv = [
        *("--model-path", str(checkpoint), "--merge-type", "spatial", "--data", str(data.parent)),
        *("--out", str(tmp_path), "--benchmarks", "textvqa", *COMMON),
        *("--runs", "none", "fastv:80", "fastervlm:40"),
    ]
    assert sweep.main(argv) == 0
    table = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {row["method"]: row for row in table["rows"]}
    assert rows["none"]["tokens_entering"] == PATCHES and rows["fastervlm"]["tokens_entering"] == 40
    # FastV has all of them in its first layers.
    assert rows["fastv"]["tokens_leaving"] < PATCHES
    for run in ("none", "fastv-80", "fastervlm-40"):
        record = json.loads((tmp_path / "textvqa" / f"{run}.run.json").read_text())
        assert record["settings"]["merge_type"] == "spatial"
        assert record["settings"]["feature_cache_gb"] is not None
    assert list(table["made_with"]["merge_type"]) == ["spatial"]


def test_a_record_of_an_older_version_goes_on():
    """It names neither how views are merged nor for whom a budget is; HiRED lost nothing."""
    before = {"regions": "tiles", "shares": "whole", "border": "kept"}
    hired = pruning.build("hired", **before).to_dict()
    new = {"dtype": "float32", "merge_type": "flat", "processing": "llava", "pruner": hired}
    later = ("budget_per", "target_fraction", "alpha", *before)
    old = {"dtype": "float32", "pruner": {k: v for k, v in hired.items() if k not in later}}
    assert differences(old, new) == differences(old, {**new, "merge_type": None}) == []
    assert differences(new, {**new, "merge_type": None}) == []
    for changed, message in (
        ({"merge_type": "spatial"}, "merge_type: 'flat' in the record, 'spatial' now"),
        ({"processing": "llava-hf"}, "processing: 'llava' in the record, 'llava-hf' now"),
        ({"pruner": {**hired, "alpha": 0.4}}, "pruner.alpha: 0.5 in the record, 0.4 now"),
        (
            {"pruner": {**hired, "border": "cut"}},
            "pruner.border: 'kept' in the record, 'cut' now",
        ),
    ):
        assert differences(old, {**new, **changed}) == [message]
    # The unpruned model has no such settings at all.
    assert differences({"pruner": {"method": "none"}}, {"pruner": {"method": "none"}}) == []


def test_a_fraction_of_each_pictures_tokens(checkpoint, data, tmp_path):
    answers = tmp_path / "fraction.jsonl"
    flags = ("--target-fraction", "0.25", "--method", "random", "--visual-token-num", "2880")
    assert answer(checkpoint, data, answers, *flags) == 0
    record = read_record(answers)
    assert record["tokens"]["entering"] == (PATCHES + NEWLINES) / 4
    assert record["settings"]["pruner"]["target_fraction"] == 0.25
