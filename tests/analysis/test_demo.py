"""The demonstration: its short table, its bars, what a second run does."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava import pruning
from llava.analysis import demo
from llava.eval.compare.comparison import compare
from llava.eval.compare.report import collect
from llava.mm_utils import load_image

from ..eval.benchmark_files import BENCHMARKS, write_benchmark
from ..eval.compare.test_sweep import loads
from ..eval.run_files import write_run
from .conftest import DEMO


@pytest.fixture
def table(tmp_path) -> dict:
    """Unpruned, AutoPrune and its preset, and no picture, on four and eight questions."""
    runs = [
        ("none", (3, 6), 1.0, pruning.build("none")),
        ("autoprune-64", (2, 4), 0.25, pruning.build("autoprune", target_token_num=64)),
        ("balanced", (3, 5), 0.125, pruning.build("autoprune", preset="balanced")),
        ("no-image", (1, 2), 0.0, pruning.build("no-image")),
    ]
    for name, count, column in (("alpha", 4, 0), ("beta", 8, 1)):
        write_benchmark(tmp_path / "data", name, count)
        for run, right, kept, pruner in runs:
            write_run(tmp_path, f"{name}/{run}", right[column], pruner, kept=kept)
    files = [
        tmp_path / "out" / name / f"{run}.jsonl" for name in ("alpha", "beta") for run, *_ in runs
    ]
    return compare(collect(files, tmp_path / "data", BENCHMARKS))


def test_the_short_table_is_markdown_in_columns_of_one_width(table) -> None:
    lines = demo.short_table(table).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 2 + 4
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["", "accuracy, %", "tokens a layer", "FLOPs", "first token"]
    assert [row[0] for row in cells[2:]] == [
        "unpruned", "autoprune 64", "autoprune 64, balanced", "no picture",
    ]  # fmt: skip
    # Twice 75 %; the errors are sqrt(75 * 25 / 4) and sqrt(75 * 25 / 8).
    assert cells[2][1] == f"75.0 ± {1.96 * (75 * 25 * 3 / 8) ** 0.5 / 2:.1f}"
    assert [row[3] for row in cells[2:]] == ["103%", "28%", "16%", "3%"]  # 3: scoring, merging


def test_bars_are_as_long_as_the_numbers(table) -> None:
    head, *lines = demo.bars(table)
    assert head.split() == ["accuracy", "FLOPs"] and len(lines) == 4
    accuracy, flops = lines[1].removeprefix("autoprune 64").split()[:1], lines[1].split("  ")[-1]
    assert accuracy == ["█" * 12] and flops == "█" * 6 + "▊ 28 %"  # 24 characters are the whole


def test_a_benchmark_without_a_score_is_named(table) -> None:
    table["rows"][1]["benchmarks"]["beta"] = None
    with pytest.raises(ValueError, match="autoprune 64: a benchmark has no score"):
        demo.short_table(table)


def test_one_live_line_then_the_table_and_a_second_run_asks_nothing(
    tmp_path, monkeypatch, capsys
) -> None:
    loaded = loads(monkeypatch)
    drawn: list[Path] = []
    monkeypatch.setattr(demo, "_draw", lambda args, *_: drawn.append(args.picture))
    write_benchmark(tmp_path / "data", "alpha", 6)
    command = ["--model-path", "stub-7b", "--data", str(tmp_path / "data"), "--num-workers", "0"]
    command += ["--out", str(tmp_path / "out"), "--runs", "none", "random:8", "--no-feature-cache"]
    command += ["--ask", "picture.jpg", "What is it?"]
    assert demo.main(command, BENCHMARKS) == 0
    out, err = capsys.readouterr()
    assert "12 of 12 answers" in err and "Complete" not in err and "visual tokens" not in err
    assert out.startswith("| ") and "autoprune view --model-path stub-7b" in out
    assert '{"' not in out
    assert demo.main(command, BENCHMARKS) == 0
    assert capsys.readouterr().out == out and loaded == ["stub-7b"]
    assert drawn == [Path("demo.png")] * 2


def test_a_picture_and_a_page_are_written(tmp_path, monkeypatch, request, capsys) -> None:
    loaded = (*request.getfixturevalue("demo"), 2048)
    monkeypatch.setattr("llava.model.builder.load_pretrained_model", lambda *_, **__: loaded)
    write_benchmark(tmp_path / "data", "alpha", 2)
    picture, page = tmp_path / "demo.png", tmp_path / "report.html"
    image = tmp_path / "data" / "alpha" / "images" / "0.png"
    command = ["--model-path", str(DEMO), "--data", str(tmp_path / "data"), "--num-workers", "0"]
    command += ["--out", str(tmp_path / "out"), "--runs", "none", "random:8", "--no-feature-cache"]
    command += ["--ask", str(image), "What is it?", "--max_new_tokens", "2", "--device", "cpu"]
    command += ["--picture", str(picture), "--page", str(page)]
    assert demo.main(command, BENCHMARKS) == 0
    assert f"Written: {picture}" in capsys.readouterr().out
    assert load_image(picture).width > 300 and "alpha" in page.read_text(encoding="utf-8").lower()
