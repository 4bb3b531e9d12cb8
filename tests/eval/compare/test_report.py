"""The table of runs: every number comes from the records or the scorers, worked out by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from llava import pruning
from llava.eval.compare.comparison import budget, settings_of, standard_error
from llava.eval.compare.report import main

from ..benchmark_files import BENCHMARKS, OF_LETTERS, write_benchmark
from ..run_files import DENSE, write_run


@pytest.fixture
def data(tmp_path) -> Path:
    """Four questions in alpha and eight in beta; every right answer is yes."""
    write_benchmark(tmp_path / "data", "alpha", 4)
    write_benchmark(tmp_path / "data", "beta", 8)
    return tmp_path


def report(folder: Path, *arguments: str | Path) -> int:
    named = [str(argument) for argument in arguments] or [str(folder / "out")]
    return main([*named, "--data", str(folder / "data")], BENCHMARKS)


def printed(capsys) -> tuple[list[str], str, dict[str, Any]]:
    """Cells of the table's rows, the notes, and the JSON."""
    lines = capsys.readouterr().out.strip().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    return rows, "\n".join(line for line in lines if line.startswith("-")), json.loads(lines[-1])


def test_scores_relative_accuracy_and_costs(data, capsys) -> None:
    pruned = pruning.build("autoprune", target_token_num=32)
    write_run(data, "alpha/none", 4)
    write_run(data, "beta/none", 4)
    write_run(data, "alpha/autoprune-32", 3, pruned, kept=0.5)
    write_run(data, "beta/autoprune-32", 3, pruned, kept=0.25)
    assert report(data) == 0
    rows, notes, table = printed(capsys)
    assert rows[0] == (
        "| method | budget | Alpha | Beta | relative | tokens entering | tokens leaving | "
        "FLOPs (published counting) | with scoring | FLOPs (computed) | KV bytes | prefill ms |"
    )
    # Beta: 100 of 200 points. Entering: (4 x 104 + 8 x 108) / 12. Prefill: 4 s for 12 questions.
    assert rows[2] == (
        "| none |  | 100.0 | 50.0 | 100.0 | 106.7 | 100.0 | 100.0% | 103.0% | 93.0% | 100.0% "
        "| 333.3 |"
    )
    # Relative: (75 / 100 + 37.5 / 50) / 2. Entering: (4 x 54 + 8 x 33) / 12; leaving:
    # (4 x 50 + 8 x 25) / 12; FLOPs and KV bytes: (4 x 0.5 + 8 x 0.25) / 12; computed:
    # 0.9 x 0.333 + 0.03.
    assert rows[3] == (
        "| autoprune | 32 | 75.0 | 37.5 | 75.0 | 40.0 | 33.3 | 33.3% | 36.3% | 33.0% | 33.3% "
        "| 333.3 |"
    )
    assert table["rows"][1]["computed_flops_ratio"] == pytest.approx(0.33)
    assert "Computed is what really ran" in notes and "older version" not in notes
    cell = table["rows"][1]["benchmarks"]["beta"]
    assert (cell["raw"], cell["percent"], cell["sd"]) == (75, 37.5, None)
    assert cell["standard_error"] == pytest.approx((37.5 * 62.5 / 8) ** 0.5)
    assert table["rows"][1]["questions"] == 12
    assert "- Beta: beta, accuracy, in percent of 200; 8 of 8 questions, n = 8." in notes
    assert "the vision tower included" in notes and "sqrt(p (100 - p) / n)" in notes
    assert "Made with model tiny; dtype float32;" in notes and "device_name a processor" in notes


@pytest.mark.parametrize("older", ["alpha", "beta"])
def test_a_record_without_what_really_ran_leaves_that_cell_empty(data, capsys, older) -> None:
    """Part of a row's questions would be set against the unpruned FLOPs of all of them."""
    for name in ("alpha", "beta"):
        file = write_run(data, f"{name}/none", 4).with_suffix(".run.json")
        if name == older:
            record = json.loads(file.read_text())
            del record["flops"]["computed"]
            file.write_text(json.dumps(record))
    assert report(data) == 0
    rows, notes, table = printed(capsys)
    assert rows[2].endswith("| 100.0% | 103.0% |  | 100.0% | 333.3 |")
    assert table["rows"][0]["computed_flops_ratio"] is None
    assert "empty where a run of an older version does not say it" in notes


def test_seeds_share_a_row(data, capsys) -> None:
    write_run(data, "alpha/none", 4)
    write_run(data, "beta/none", 8)
    for seed, (alpha, beta) in enumerate([(1, 4), (2, 6), (3, 8)]):
        pruner = pruning.build("random", target_token_num=8, seed=seed)
        write_run(data, f"alpha/random-8@seed={seed}", alpha, pruner)
        write_run(data, f"beta/random-8@seed={seed}", beta, pruner)
    assert report(data) == 0
    rows, notes, table = printed(capsys)
    # 25, 50, 75 and 50, 75, 100; relative 37.5, 62.5, 87.5.
    assert rows[3].startswith("| random | 8 | 50.0 ± 25.0 | 75.0 ± 25.0 | 62.5 ± 25.0 |")
    assert table["rows"][1]["seeds"] == [0, 1, 2]
    assert len(table["rows"]) == 2 and "standard deviation over seeds" in notes


def test_a_seed_that_one_benchmark_lacks_gives_no_relative_accuracy(data, capsys) -> None:
    write_run(data, "alpha/none", 4)
    write_run(data, "beta/none", 8)
    for seed in (0, 1):
        write_run(data, f"alpha/random-{seed}", 2, pruning.build("random", seed=seed))
    write_run(data, "beta/random-0", 2, pruning.build("random", seed=0))
    assert report(data) == 0
    rows, _, _ = printed(capsys)
    assert rows[3].startswith("| random | 64 | 50.0 ± 0.0 | 25.0 |  |")


def test_cells_not_run_are_empty(data, capsys) -> None:
    write_run(data, "alpha/none", 2)
    write_run(data, "beta/autoprune", 2, pruning.build("autoprune"))
    assert report(data) == 0
    rows, notes, table = printed(capsys)
    assert rows[2].startswith("| none |  | 50.0 |  |  |")
    assert rows[3].startswith("| autoprune | 64 |  | 25.0 |  |")
    assert table["rows"][0]["benchmarks"]["beta"] is None
    assert "Rows with empty cells" in notes


def test_files_are_in_the_order_given_and_a_folder_in_its_own(data, capsys) -> None:
    files = [
        write_run(data, f"alpha/{n}", 1, pruning.build("autoprune", target_token_num=n))
        for n in (32, 192, 64)
    ]
    files.append(write_run(data, "alpha/zero", 1))
    assert report(data, *files) == 0
    rows, _, _ = printed(capsys)
    assert [row.split("|")[2].strip() for row in rows[2:]] == ["32", "192", "64", ""]
    assert report(data) == 0
    rows, _, _ = printed(capsys)
    assert [row.split("|")[2].strip() for row in rows[2:]] == ["", "192", "64", "32"]


def test_csv_and_json_files(data, capsys) -> None:
    write_run(data, "beta/none", 4)
    files = data / "new" / "t.csv", data / "new" / "t.json"
    assert report(data, data / "out", "--csv", files[0], "--json", files[1]) == 0
    _, _, table = printed(capsys)
    assert json.loads(files[1].read_text()) == table
    (line,) = csv.DictReader(files[0].open())
    assert (line["method"], line["beta"], line["beta_raw"], line["questions"]) == (
        "none", "50.0", "100.0", "8",
    )  # fmt: skip


def test_the_share_of_answers_without_a_letter_stands_beside_the_score(data, capsys) -> None:
    """Beside each score that has any; a benchmark without letters has no share."""
    write_run(data, "alpha/none", 4)
    write_run(data, "beta/none", 4)
    seeds = [pruning.build("random", target_token_num=8, seed=seed) for seed in (0, 1)]
    for right, pruner in zip((3, 2), seeds):
        write_run(data, f"alpha/{right}", right, pruner)
    csv_file = data / "t.csv"
    argv = [str(data / "out"), "--data", str(data / "data"), "--csv", str(csv_file)]
    assert main(argv, OF_LETTERS) == 0
    rows, notes, table = printed(capsys)
    assert rows[2].startswith("| none |  | 100.0 | 50.0 |")
    assert rows[3].startswith("| random | 8 | 62.5 ± 17.7 (37.5 % unparsed) |  |")
    assert "- % unparsed: the share of answers that give no letter" in notes
    shares = [[c and c["unparsed"] for c in row["benchmarks"].values()] for row in table["rows"]]
    assert shares == [[0, None], [37.5, None]]
    assert [line["alpha_unparsed"] for line in csv.DictReader(csv_file.open())] == ["0.0", "37.5"]
    assert report(data) == 0 and "unparsed:" not in capsys.readouterr().out


def test_a_part_of_the_questions_is_told(data, capsys) -> None:
    file = write_run(data, "beta/none", 2, limit=4)
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:4]))
    assert report(data) == 0
    rows, notes, _ = printed(capsys)
    assert "| 50.0 |" in rows[2] and "4 of 8 questions (--limit 4), n = 4." in notes


def test_answers_that_lie_elsewhere_are_known_by_their_question_file(data, capsys) -> None:
    file = write_run(data, "beta/none", 4)
    (data / "out" / "beta").rename(data / "out" / "llava")
    assert report(data, data / "out" / "llava" / file.name) == 0
    assert list(printed(capsys)[2]["benchmarks"]) == ["beta"]
    write_run(data, "alpha/none", 4, question_file="data/gamma/questions.jsonl")
    (data / "out" / "alpha").rename(data / "out" / "other")
    assert report(data) == 2
    assert "no benchmark's question file" in capsys.readouterr().err


def test_what_prefill_measures_is_told_and_not_mixed(data, capsys) -> None:
    write_run(data, "alpha/none", 4, vision=1.5)
    assert report(data) == 0
    rows, notes, _ = printed(capsys)
    assert rows[2].endswith("| 500.0 |") and "without the vision tower" in notes
    write_run(data, "beta/none", 4)
    assert report(data) == 0
    rows, notes, _ = printed(capsys)
    assert rows[2].endswith("|  |") and "some include the vision tower" in notes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, 'their dtype differs: "float32" in'),
        ({"model_path": "models/other"}, "their model_path differs"),
        ({"question_sha256": "changed"}, "their question_sha256 differs"),
        ({"limit": 4}, "their limit differs: null in"),
        ({}, "are runs of the same settings on alpha"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(data, capsys, changes, message) -> None:
    write_run(data, "alpha/none", 4)
    write_run(data, "alpha/twice", 4, **changes)
    assert report(data) == 2
    assert message in capsys.readouterr().err


def test_unfinished_and_unrecorded_runs(data, capsys) -> None:
    write_run(data, "alpha/none", 4)
    half = write_run(data, "beta/none", 4, status="interrupted")
    assert report(data) == 0
    captured = capsys.readouterr()
    assert f"Left out: {half} is 'interrupted'" in captured.err
    assert list(json.loads(captured.out.splitlines()[-1])["benchmarks"]) == ["alpha"]
    assert report(data, half) == 2
    assert "the command that made it again" in capsys.readouterr().err
    half.with_suffix(".run.json").write_text("{}")
    assert report(data, half) == 2
    assert "settings is missing (found nothing)" in capsys.readouterr().err
    half.with_suffix(".run.json").unlink()
    assert report(data, half) == 2
    assert "no run record none.run.json" in capsys.readouterr().err
    assert report(data, data / "data") == 2
    assert "holds no runs" in capsys.readouterr().err


def test_answers_that_do_not_fit_are_named_with_their_file(data, capsys) -> None:
    file = write_run(data, "alpha/none", 4)
    file.write_text(file.read_text().splitlines(keepends=True)[0])
    assert report(data) == 2
    assert f"{file}: 3 of 4 questions have no answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pruner", "settings", "tokens"),
    [
        (DENSE, {}, None),
        (pruning.build("autoprune"), {}, 64),
        (pruning.build("autoprune", budget_mode="strict"), {"budget_mode": "strict"}, 64),
        (pruning.build("autoprune", preset="paper", x0=7), {"preset": "paper", "x0": 7}, 64),
        (
            pruning.build("autoprune", preset="paper", recycle_ratio=0.1),
            {"normalise_rows": True},  # among others: no preset describes it
            64,
        ),
        (pruning.build("autoprune", target_flops=0.25), {}, "target_flops 0.25"),
        (pruning.build("random", seed=3), {}, 64),
        (pruning.build("pdrop"), {}, 64),
        (pruning.build("pdrop", stages=(1, 3, 6)), {"stages": (1, 3, 6)}, 64),
    ],
)
def test_a_run_is_called_by_what_is_not_default(pruner, settings, tokens) -> None:
    recorded = json.loads(json.dumps(pruner.to_dict()))
    found = settings_of(recorded)
    assert settings.items() <= found.items()
    assert found == settings or "normalise_rows" in settings
    assert budget(recorded) == tokens


def test_several_numbers_are_written_as_the_command_line_takes_them(data, capsys) -> None:
    write_run(data, "alpha/0", 1, pruning.build("pdrop", stages=(1, 3, 6)))
    assert report(data) == 0
    rows, *_ = printed(capsys)
    assert rows[2].split("|")[1].strip() == "pdrop stages=1+3+6"


def test_a_row_says_whose_constants_a_method_has_and_not_where_a_folder_lies(data, capsys) -> None:
    write_run(data, "alpha/0", 1, pruning.build("topv", layer=1))
    clip = pruning.build("cdpruner", clip="/there/and/not/here")
    write_run(data, "alpha/1", 1, clip)
    assert report(data) == 0
    rows, *_ = printed(capsys)
    named = [row.split("|")[1].strip() for row in rows[2:]]
    assert sorted(named) == ["cdpruner", "topv (own constants) layer=1"]


def test_a_setting_of_all_rows_stands_below_and_others_in_the_row(data, capsys) -> None:
    for i, changes in enumerate([{}, {"budget_mode": "strict"}, {"gamma": 0.1}]):
        pruner = pruning.build("autoprune", x0=5.5875, **changes)
        write_run(data, f"alpha/{i}", 1, pruner)
    assert report(data) == 0
    rows, notes, _ = printed(capsys)
    named = [row.split("|")[1].strip() for row in rows[2:]]
    assert named == ["autoprune", "autoprune budget_mode=strict", "autoprune gamma=0.1"]
    assert "- All autoprune rows: x0 = 5.5875." in notes


def test_standard_errors() -> None:
    assert standard_error(50, 25) == 10 and standard_error(100, 25) == 0
    assert standard_error(None, 25) is None and standard_error(50, 0) is None


MARKED = "0123abc (with uncommitted changes)"


def test_code_that_is_not_all_in_its_commit_is_marked_beside_it(data, capsys) -> None:
    """Also that of an earlier session of the run."""
    dirty, clean = (
        {"git_commit": commit, "git_dirty": dirty}
        for commit, dirty in (("0123abc", True), ("4567def", False))
    )
    file = write_run(data, "beta/none", 4)
    record = file.with_suffix(".run.json")
    entry = json.loads(record.read_text()) | {"environment": clean, "earlier_environments": [dirty]}
    record.write_text(json.dumps(entry))
    table = data / "t.csv"
    assert report(data, data / "out", "--csv", table) == 0
    _, notes, found = printed(capsys)
    assert f"git_commit {MARKED} and 4567def." in notes
    assert found["made_with"]["git_commit"] == [MARKED, "4567def"]
    (line,) = csv.DictReader(table.open())
    assert line["git_commit"] == f"{MARKED} and 4567def"
