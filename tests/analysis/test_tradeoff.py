"""Accuracy against tokens, FLOPs and time: the series, by hand, and the figure's lines."""

from __future__ import annotations

import builtins
import json
from itertools import pairwise
from pathlib import Path

import pytest

from llava import pruning
from llava.analysis.tradeoff import Point, Series, figure, foremost, main, series
from llava.eval.compare.comparison import compare
from llava.eval.compare.report import collect
from llava.eval.compare.report import main as report

from ..eval.benchmark_files import BENCHMARKS, write_benchmark
from ..eval.run_files import write_run


@pytest.fixture
def data(tmp_path) -> Path:
    """Unpruned, no image, AutoPrune at two budgets and random tokens with two seeds."""
    write_benchmark(tmp_path / "data", "alpha", 4)
    write_benchmark(tmp_path / "data", "beta", 8)
    runs = [
        ("none", (4, 4), 1.0, pruning.build("none")),
        ("no-image", (1, 2), 0.0, pruning.build("no-image")),
        ("64", (3, 4), 0.5, pruning.build("autoprune", target_token_num=64)),
        ("32", (2, 4), 0.25, pruning.build("autoprune", target_token_num=32)),
        ("random-0", (1, 2), 0.5, pruning.build("random", target_token_num=64, seed=0)),
        ("random-1", (3, 2), 0.5, pruning.build("random", target_token_num=64, seed=1)),
    ]
    for name, (alpha, beta), kept, pruner in runs:
        write_run(tmp_path, f"alpha/{name}", alpha, pruner, kept=kept)
        write_run(tmp_path, f"beta/{name}", beta, pruner, kept=kept)
    return tmp_path


def drawn(folder: Path) -> tuple[list[Series], list[str]]:
    return series(compare(collect([folder / "out"], folder / "data", BENCHMARKS)))


def near(point: Point) -> tuple[float, float, float, str]:
    # Two runs of two seconds over four and eight questions, with two seeds twice as many.
    assert point.prefill_ms == pytest.approx(1000 * 4 / 12)
    return round(point.tokens, 3), round(point.flops, 3), round(point.accuracy, 3), point.budget


def test_a_line_a_method_with_levels_and_floors(data) -> None:
    found, left_out = drawn(data)
    assert not left_out
    assert [(one.label, one.kind) for one in found] == [
        ("unpruned", "level"), ("no image", "level"), ("random", "floor"), ("autoprune", "method"),
    ]  # fmt: skip
    points = {one.label: [near(point) for point in one.points] for one in found}
    # Tokens entering: 100 kept + 4 or 8, weighted 4 : 8, so 100 kept + 6.667.
    assert points["unpruned"] == [(106.667, 100.0, 75.0, "")]  # 100 and 50 percent
    assert points["no image"] == [(6.667, 0.0, 25.0, "")]
    assert points["autoprune"] == [(31.667, 25.0, 50.0, "32"), (56.667, 50.0, 62.5, "64")]
    assert points["random"] == [(56.667, 50.0, 37.5, "64")]  # 50 (25 and 75) and 25


def test_settings_make_a_line_of_their_own_and_incomplete_rows_are_named(data) -> None:
    strict = pruning.build("autoprune", target_token_num=16, budget_mode="strict")
    write_run(data, "alpha/strict", 2, strict)
    grid = pruning.build("uniform-grid", target_token_num=16)
    write_run(data, "alpha/grid", 2, grid)
    write_run(data, "beta/grid", 2, grid)
    found, left_out = drawn(data)
    assert left_out == ["autoprune budget_mode=strict 16"]
    assert [one.label for one in found if one.kind == "floor"] == ["random", "uniform-grid"]
    write_run(data, "beta/strict", 2, strict)
    found, left_out = drawn(data)
    assert not left_out and "autoprune budget_mode=strict" in [one.label for one in found]


def test_the_figure_has_the_series(data) -> None:
    pytest.importorskip("matplotlib")
    found, _ = drawn(data)
    made = figure(found, "a title", vision_apart=False)
    left, middle, right = made.axes
    for axes, name in ((left, "tokens"), (middle, "flops"), (right, "prefill_ms")):
        lines = {line.get_label(): line for line in axes.lines}
        for one in found:
            x, y = lines[one.label].get_data()
            assert list(x) == [getattr(point, name) for point in one.points]
            assert list(y) == [point.accuracy for point in one.points]
        levels = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert [line.get_ydata()[0] for line in levels] == [75.0, 25.0]
        assert lines["random"].get_linestyle() == "--"
    assert left.get_xlabel().startswith("visual tokens entering")
    assert middle.get_xlabel().startswith("prefill FLOPs (published counting)")
    assert right.get_xlabel() == "prefill, ms a question, with the vision tower"
    for axes in made.axes:  # each line has its name beside it, in its colour, apart from the others
        names = {text.get_text(): text for text in axes.texts}
        assert names.keys() == {one.label for one in found}
        heights = sorted(text.xyann[1] for text in names.values())
        low, high = axes.get_ylim()
        assert min(b - a for a, b in pairwise(heights)) >= (high - low) / 21
        random = next(line for line in axes.lines if line.get_label() == "random")
        assert names["random"].get_color() == random.get_color()
    assert made.get_suptitle() == "a title"


def test_the_lines_that_keep_most_are_drawn_and_the_others_named(data) -> None:
    lines = [Series("unpruned", "level", [Point(600, 100, 90, "", None)])]
    lines += [Series(f"m{n}", "method", [Point(60, 10, n, "64", None)]) for n in range(10)]
    lines += [Series("random", "floor", [Point(60, 10, 1, "64", None)])]
    few, others = foremost(lines, most=3)
    assert [line.label for line in few] == ["unpruned", "m8", "m9", "random"]
    assert others == [f"m{n}" for n in range(8)]


def test_a_point_has_the_interval_of_its_benchmarks(data) -> None:
    found, _ = drawn(data)
    point = next(one for one in found if one.label == "unpruned").points[0]
    # 100 % of 4 questions have no error; 50 % of 8 have sqrt(50 * 50 / 8), half in the mean of two.
    assert point.interval == pytest.approx(1.96 * (2500 / 8) ** 0.5 / 2)


def test_a_row_whose_runs_measured_different_times_is_not_in_the_panel_of_times(data) -> None:
    pytest.importorskip("matplotlib")
    pruner = pruning.build("autoprune", target_token_num=64)
    write_run(data, "beta/64", 4, pruner, kept=0.5, vision=0.5)
    found, left_out = drawn(data)
    assert not left_out
    auto = next(one for one in found if one.label == "autoprune")
    assert [point.prefill_ms is None for point in auto.points] == [False, True]
    left, _, right = figure(found, "a title", vision_apart=None).axes
    counts = [
        len(next(line for line in axes.lines if line.get_label() == "autoprune").get_xdata())
        for axes in (left, right)
    ]
    assert counts == [2, 1] and right.get_xlabel() == "prefill, ms a question"


def test_the_command_writes_a_file_and_says_what_is_in_it(data, capsys) -> None:
    pytest.importorskip("matplotlib")
    out = data / "new" / "figure.png"
    command = [str(data / "out"), "--data", str(data / "data"), "--out", str(out)]
    assert main(command, BENCHMARKS) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["label"] for one in told["series"]][-1] == "autoprune"


def test_a_table_of_report_is_drawn_like_its_runs(data, capsys) -> None:
    pytest.importorskip("matplotlib")
    table, out = data / "table.json", data / "figure.svg"
    runs = [str(data / "out"), "--data", str(data / "data")]
    assert report([*runs, "--json", str(table)], BENCHMARKS) == 0
    assert main([str(table), "--out", str(out)], BENCHMARKS) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert main([*runs, "--out", str(out)], BENCHMARKS) == 0
    assert told == json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda table: table["rows"][0].pop("prefill_ms"), "an older version, it lacks prefill_ms"),
        (lambda table: table.pop("vision_apart"), "an older version, it lacks vision_apart"),
        (lambda table: table.pop("rows"), "is no table of llava.eval.compare.report --json"),
    ],
)
def test_a_table_of_another_version_is_refused(data, capsys, spoil, message: str) -> None:
    table = data / "table.json"
    runs = [str(data / "out"), "--data", str(data / "data")]
    assert report([*runs, "--json", str(table)], BENCHMARKS) == 0
    content = json.loads(table.read_text())
    spoil(content)
    table.write_text(json.dumps(content))
    assert main([str(table), "--out", "x.png"], BENCHMARKS) == 2
    assert message in capsys.readouterr().err


def test_runs_of_an_older_version_are_refused(data, capsys) -> None:
    file = data / "out" / "beta" / "64.run.json"
    record = json.loads(file.read_text())
    del record["seconds"]["prefill"]
    file.write_text(json.dumps(record))
    assert (
        main([str(data / "out"), "--data", str(data / "data"), "--out", "x.png"], BENCHMARKS) == 2
    )
    err = capsys.readouterr().err
    assert "64.jsonl lacks seconds.prefill" in err and "an older version wrote it" in err


def test_runs_need_the_data_and_a_table_stands_alone(data, capsys) -> None:
    assert main([str(data / "out"), "--out", "x.png"], BENCHMARKS) == 2
    assert "runs are scored against --data" in capsys.readouterr().err
    assert main([str(data / "out"), "t.json", "--out", "x.png"], BENCHMARKS) == 2
    assert "give one table, or folders" in capsys.readouterr().err
    (data / "t.json").write_text("no JSON")
    assert main([str(data / "t.json"), "--out", "x.png"], BENCHMARKS) == 2
    assert "t.json is not JSON" in capsys.readouterr().err


def test_without_matplotlib_the_message_says_how_to_get_it(data, monkeypatch, capsys) -> None:
    real = builtins.__import__

    def without(name: str, *rest, **more):
        if name.split(".")[0] == "matplotlib":
            raise ImportError("No module named 'matplotlib'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    out = data / "figure.png"
    command = [str(data / "out"), "--data", str(data / "data"), "--out", str(out)]
    assert main(command, BENCHMARKS) == 2
    err = capsys.readouterr().err
    assert "figures need matplotlib" in err and "pip install -e '.[plot]'" in err
    assert not out.exists()


def test_nothing_to_draw_is_an_error(tmp_path, capsys) -> None:
    for name, count in (("alpha", 4), ("beta", 8)):
        write_benchmark(tmp_path / "data", name, count)
    write_run(tmp_path, "alpha/none", 4)
    write_run(tmp_path, "beta/random", 4, pruning.build("random"))
    command = [str(tmp_path / "out"), "--data", str(tmp_path / "data"), "--out", "x.png"]
    assert main(command, BENCHMARKS) == 2
    err = capsys.readouterr().err
    assert "Left out: unpruned" in err and "nothing to draw" in err
