"""The command: what it plans, runs, leaves alone, refuses and prints."""

from __future__ import annotations

import json

import pytest

from llava.eval.benchmarks import BENCHMARKS as ALL
from llava.eval.compare.published import TABLES as PUBLISHED
from llava.eval.compare.tables import main, planned

from ..benchmark_files import BENCHMARKS, write_benchmark
from ..paper_tables import ABLATION, TABLE, TABLES
from ..stub import StubModel


@pytest.fixture
def data(tmp_path):
    write_benchmark(tmp_path / "data", "alpha", 6)
    write_benchmark(tmp_path / "data", "beta", 8)
    return tmp_path


def tables(folder, *flags: str, table: str = "1", run: bool = True) -> int:
    command = ["--table", table, "--data", str(folder / "data"), "--out", str(folder / "out")]
    if run:
        command += ["--model-path", "stub-7b", "--num-workers", "0", "--no-feature-cache"]
    else:
        command += ["--render-only"]
    return main([*command, *flags], BENCHMARKS, TABLES)


def rows(capsys) -> dict[str, dict]:
    return {
        row["label"]: row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    }


def names(folder) -> list[str]:
    return sorted(str(p.relative_to(folder / "out"))[:-6] for p in folder.rglob("out/*/*.jsonl"))


def test_planned_runs_are_the_rows_and_the_floor() -> None:
    assert planned(TABLE) == [
        *("none", "magic:32", "autoprune:32", "no-image"),
        *("random:32@seed=0", "random:32@seed=1", "random:32@seed=2", "uniform-grid:32"),
    ]
    assert planned(ABLATION) == [
        *("autoprune:8@mi_layer=2", "autoprune:16@mi_layer=2", "autoprune:8", "autoprune:16"),
    ]
    assert planned(TABLE, ["uniform-grid", "autoprune"]) == [
        "none", "autoprune:32", "uniform-grid:32",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"--methods wizard: expected one of .*magic"):
        planned(TABLE, ["wizard"])


def test_the_papers_tables_plan_what_they_say() -> None:
    first = planned(PUBLISHED["1"])
    assert first[:6] == [
        "none", "tome:192", "fastv:192", "sparsevlm:192", "pdrop:192", "autoprune:192",
    ]  # fmt: skip
    assert len(first) == 16 + 1 + 9 + 3
    assert planned(PUBLISHED["4a"]) == [
        *(f"autoprune:{n}@indicator=static" for n in (64, 128)),
        *(f"autoprune:{n}@indicator=cosine_similarity" for n in (64, 128)),
        *(f"autoprune:{n}@indicator=mean_attention" for n in (64, 128)),
        *("autoprune:64", "autoprune:128"),
    ]
    assert planned(PUBLISHED["4b"])[0] == "autoprune:64@curve=linear"
    assert planned(PUBLISHED["13b"], ["autoprune"]) == [
        "none", "autoprune:288", "autoprune:144", "autoprune:58",
    ]  # fmt: skip
    assert planned(PUBLISHED["extended"]).count("no-image") == 1


def test_runs_what_is_missing_and_renders(data, use, no_model, capsys) -> None:
    use(StubModel())
    assert tables(data, "--methods", "autoprune", "random", "--benchmarks", "alpha") == 0
    assert names(data) == [
        "alpha/autoprune-32", "alpha/none", *(f"alpha/random-32@seed={i}" for i in range(3)),
    ]  # fmt: skip
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == "**Table 1: tiny**" and lines[2].startswith("| method | tokens |")
    assert sum(line.startswith("| method |") for line in lines) == 1
    assert "[5/5] alpha: random-32@seed=2" in captured.err
    found = {row["label"]: row for row in json.loads(lines[-1])["rows"]}
    assert list(found) == ["Tiny", "Other", "Ours", "random"]
    assert found["random"]["measured"]["a"]["runs"] == 3
    assert found["Ours"]["measured"]["b"] is None and found["Other"]["measured"]["a"] is None
    untouched = (data / "out/alpha/none.jsonl").read_bytes()
    use(model := StubModel())
    assert tables(data, "--methods", "autoprune") == 0  # the other benchmark
    assert {call["pruner"].method for call in model.calls} == {"none", "autoprune"}
    assert len(model.calls) == 2 * 8 and len(names(data)) == 7
    assert (data / "out/alpha/none.jsonl").read_bytes() == untouched
    assert rows(capsys)["Ours"]["measured"]["b"]["value"] == 0
    no_model()
    assert tables(data, "--methods", "autoprune") == 0


def test_a_cut_run_continues(data, use, capsys) -> None:
    def interrupt(call: int) -> None:
        if call == 4:
            raise KeyboardInterrupt

    use(StubModel(interrupt))
    assert tables(data, "--methods", "none") == 130
    assert capsys.readouterr().out == ""
    use(model := StubModel())
    assert tables(data, "--methods", "none") == 0
    assert len(model.calls) == 14 - 3
    assert rows(capsys)["Tiny"]["measured"]["a"] is not None


def test_a_row_that_cannot_be_run_is_named_and_the_others_are(data, use, capsys) -> None:
    use(StubModel())
    assert tables(data, "--benchmarks", "alpha") == 3
    captured = capsys.readouterr()
    assert "Cannot be run, stays empty: run 'magic:32': unknown method 'magic'" in captured.err
    assert "alpha/uniform-grid-32" in names(data)
    assert tables(data, "--methods", "magic", "--benchmarks", "alpha") == 3


def test_settings_that_are_not_there_fail_loudly(data, monkeypatch, capsys) -> None:
    from llava.eval.compare import tables as module

    monkeypatch.setattr(module, "planned", lambda *_: ["autoprune:8@no_such_field=1"])
    assert tables(data, table="4") == 2
    err = capsys.readouterr().err
    assert "no_such_field" in err and "error: no run of the table is possible" in err


def test_render_only_needs_no_model(data, use, no_model, capsys) -> None:
    use(StubModel())
    assert tables(data, "--methods", "autoprune") == 0
    capsys.readouterr()
    no_model()
    files = data / "new/t.csv", data / "new/t.json"
    assert tables(data, "--csv", str(files[0]), "--json", str(files[1]), run=False) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads(files[1].read_text()) == printed
    assert files[0].read_text().count("\n") == 1 + len(printed["rows"])
    assert tables(data, table="4", run=False) == 0


def test_a_folder_that_is_not_there_stays_empty(data, use, capsys) -> None:
    use(StubModel())
    (data / "data/beta").rename(data / "data/elsewhere")
    assert tables(data, "--methods", "none") == 0
    assert "Not there, stays empty: beta, no folder" in capsys.readouterr().err
    assert names(data) == ["alpha/none"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--benchmarks", "gamma"), "--benchmarks gamma: table 1 has alpha, beta"),
        (("--methods", "wizard"), "--methods wizard: expected"),
        (("--limit", "0", "--methods", "none"), "--limit must be at least 1"),
    ],
)
def test_wrong_input(data, no_model, capsys, flags, message) -> None:
    no_model()
    assert tables(data, *flags) == 2
    assert message in capsys.readouterr().err


def test_nothing_to_render_or_to_run(data, capsys) -> None:
    assert tables(data, run=False) == 2
    assert (
        "holds no runs of table 1: expected <benchmark>/<run>.run.json" in capsys.readouterr().err
    )
    for name in ("alpha", "beta"):
        (data / "data" / name).rename(data / "data" / f"no-{name}")
    assert tables(data, "--methods", "none") == 2
    assert "has no folder of table 1's benchmarks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "run", "message"),
    [
        (("--runs", "none"), True, "--runs are the table's"),
        (("--limit", "4"), False, "--render-only takes no flags of the sweep: --limit 4"),
        (("--bach-size", "4"), True, "unrecognized arguments: --bach-size"),
    ],
)
def test_flags_that_make_no_sense(data, capsys, flags, run, message) -> None:
    with pytest.raises(SystemExit) as stop:
        tables(data, *flags, run=run)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_every_benchmark_of_the_papers_tables_exists() -> None:
    assert {name for table in PUBLISHED.values() for name in table.benchmarks} <= ALL.keys()
