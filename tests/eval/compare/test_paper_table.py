"""A published table filled from hand-made records: every measured number is worked out by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from llava import pruning
from llava.eval.compare.paper_table import fill
from llava.eval.compare.paper_table_text import markdown, notes, write_csv
from llava.eval.compare.report import collect

from ..benchmark_files import BENCHMARKS, OF_LETTERS, write_benchmark
from ..paper_tables import ABLATION, TABLE
from ..run_files import write_run

OURS = pruning.build("autoprune", target_token_num=32)


@pytest.fixture
def data(tmp_path) -> Path:
    write_benchmark(tmp_path / "data", "alpha", 4)
    write_benchmark(tmp_path / "data", "beta", 8)
    return tmp_path


def filled(folder: Path, table=TABLE) -> dict[str, Any]:
    return fill(table, collect([folder / "out"], folder / "data", BENCHMARKS))


def cells(table: dict[str, Any]) -> list[list[str]]:
    lines = markdown(table).splitlines()
    assert set(lines[1]) == {"|", " ", "-"}
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def write_both(folder: Path) -> None:
    write_run(folder, "alpha/none", 4)
    write_run(folder, "beta/none", 4)
    write_run(folder, "alpha/ours", 3, OURS, kept=0.5)
    write_run(folder, "beta/ours", 3, OURS, kept=0.25)


def test_published_and_measured_stand_side_by_side(data) -> None:
    write_both(data)
    rows = cells(filled(data))
    assert rows[0] == [
        "method", "tokens", "counted", "Alpha published", "Alpha measured", "Beta published",
        "Beta measured", "ratio % published", "ratio % measured", "FLOPs % published",
        "FLOPs % measured", "tokens entering measured", "tokens leaving measured",
    ]  # fmt: skip
    # Beta: 4 and 3 of 8 right, 200 points for all. Costs as in test_report.
    assert rows[2] == [
        "Tiny", "576", "", "80.0", "100.0", "150", "100.0", "100", "100.0", "100", "100.0",
        "106.7", "100.0",
    ]  # fmt: skip
    # Not run, so empty, whatever is published.
    assert rows[3] == ["Other [x]", "32", "kept", "40.0 [y]"] + [""] * 9
    # Ratio: (75 / 100 + 75 / 100) / 2; FLOPs (4 x 0.5 + 8 x 0.25) / 12.
    assert rows[4] == [
        "Ours", "32", "leaving", "60.5", "75.0", "120", "75.0", "", "75.0", "", "33.3",
        "40.0", "33.3",
    ]  # fmt: skip
    assert len(rows) == 5


def test_answers_without_a_letter_stand_beside_the_measured_score(data) -> None:
    write_both(data)
    table = fill(TABLE, collect([data / "out"], data / "data", OF_LETTERS))
    assert cells(table)[2][4] == "100.0" and cells(table)[4][4] == "75.0 (25.0 % unparsed)"
    assert any(line.startswith("- % unparsed:") for line in notes(table))
    assert not any("unparsed" in line for line in notes(filled(data)))


def test_a_row_with_one_benchmark_has_no_ratio(data) -> None:
    write_both(data)
    (data / "out/beta/ours.jsonl").unlink()
    (data / "out/beta/ours.run.json").unlink()
    table = filled(data)
    assert cells(table)[4] == [
        "Ours", "32", "leaving", "60.5", "75.0", "120", "", "", "", "", "50.0", "54.0", "50.0",
    ]  # fmt: skip
    assert "of fewer questions" in "\n".join(notes(table))


def test_without_an_unpruned_run_there_is_no_ratio(data) -> None:
    write_run(data, "alpha/ours", 3, OURS)
    write_run(data, "beta/ours", 3, OURS)
    row = filled(data)["rows"][2]
    assert row["measured"]["ratio"] is None and row["measured"]["b"]["value"] == 75


def test_other_settings_are_another_row(data) -> None:
    write_both(data)
    strict = pruning.build("autoprune", target_token_num=32, budget_mode="strict")
    write_run(data, "alpha/strict", 1, strict)
    for seed, right in enumerate((1, 3)):
        pruner = pruning.build("random", target_token_num=8, seed=seed)
        write_run(data, f"alpha/random-{seed}", right, pruner)
    table = filled(data)
    rows = cells(table)
    # 25 and 75 percent: mean 50, deviation sqrt(2) x 25.
    assert rows[5][:5] == ["autoprune budget_mode=strict", "32", "", "", "25.0"]
    assert rows[6][:5] == ["random", "8", "", "", "50.0 ± 35.4"]
    assert rows[4][4] == "75.0" and len(rows) == 7
    assert [row["published_row"] for row in table["rows"]] == [True] * 3 + [False] * 2


def test_a_curve_scaled_alike_in_all_runs_is_the_row_and_a_mixed_one_is_not(data) -> None:
    scaled = pruning.build("autoprune", target_token_num=32, x0=5.5875)
    write_run(data, "alpha/ours", 3, scaled)
    table = filled(data)
    assert table["rows"][2]["measured"]["a"]["value"] == 75
    assert "- All autoprune rows: x0 = 5.5875." in list(notes(table))
    write_run(data, "alpha/more", 1, OURS)
    rows = filled(data)["rows"]
    assert rows[2]["measured"]["a"]["value"] == 25
    assert (rows[3]["label"], rows[3]["measured"]["a"]["value"]) == ("autoprune x0=5.5875", 75)


def test_budgets_in_columns(data) -> None:
    late = {"mi_layer": 2}
    write_run(data, "alpha/1", 1, pruning.build("autoprune", target_token_num=8))
    write_run(data, "alpha/2", 2, pruning.build("autoprune", target_token_num=16, **late))
    write_run(data, "alpha/3", 3, pruning.build("random", target_token_num=16))
    table = filled(data, ABLATION)
    rows = cells(table)
    assert rows[0] == [
        "method", "Alpha 8 published", "Alpha 8 measured", "Alpha 16 published",
        "Alpha 16 measured",
    ]  # fmt: skip
    assert rows[2:] == [["Late", "1.5", "", "", "50.0"], ["Ours", "2.5", "25.0", "3.5", ""]]
    told = list(notes(table))
    assert "- The budgets in the columns are counted on tokens leaving a layer." in told
    assert sum(line.startswith("- Alpha: percent.") for line in told) == 1


def test_settings_that_a_method_does_not_have_yet_are_told_apart(data) -> None:
    """A record of a later version, with a field that this one lacks."""
    for name, value in (("static", "static"), ("adaptive", "other")):
        file = write_run(data, f"alpha/{name}", 2, pruning.build("autoprune", target_token_num=8))
        record = file.with_suffix(".run.json")
        text = record.read_text().replace('"x0": 14.9', f'"x0": 14.9, "new": "{value}"')
        record.write_text(text)
    rows = filled(data)["rows"]
    assert [row["settings"] for row in rows[3:]] == [{"new": "other"}, {"new": "static"}]


def test_notes_name_sources_marks_and_conventions(data) -> None:
    write_both(data)
    told = list(notes(filled(data)))
    assert told[:4] == [
        "- Published: a paper; model llava-v1.5-tiny.",
        "- Published numbers of Other: another.",
        "- [x] Copied.",
        "- [y] Misprinted.",
    ]
    assert "- Beta: points of 200. Measured: Beta, accuracy of 200, 8 of 8 questions." in told
    assert any("multiply-accumulates" in line for line in told)
    assert any(line.startswith("- Measured with tiny, published for llava-v1.5-") for line in told)
    assert not any("±" in line for line in told)


def test_formats_of_a_checkpoint_are_the_same_model(data) -> None:
    for number, (path, same) in enumerate(
        [("models/llava-1.5-tiny-hf", True), ("LLaVA-v1.5-Tiny", True), ("llava-v1.6-tiny", False)]
    ):
        write_run(data, "alpha/none", 4, model_path=path)
        assert filled(data)["same_model"] is same, number


def test_csv_has_every_number_apart(data) -> None:
    write_both(data)
    file = data / "new" / "t.csv"
    write_csv(file, filled(data))
    rows = list(csv.DictReader(file.open()))
    assert [row["method"] for row in rows] == ["Tiny", "Other", "Ours"]
    assert (rows[1]["a_published"], rows[1]["a_marks"], rows[1]["marks"]) == ("40.0", "y", "x")
    assert (rows[1]["a_measured"], rows[1]["tokens_entering"]) == ("", "")
    assert (rows[2]["b_published"], rows[2]["b_measured"], rows[2]["ratio_measured"]) == (
        "120", "75.0", "75.0",
    )  # fmt: skip


def test_two_runs_of_one_row_are_refused(data) -> None:
    write_run(data, "alpha/ours", 3, OURS)
    file = write_run(data, "alpha/again", 3, OURS)
    record = file.with_suffix(".run.json")
    exact = record.read_text()
    # As an older version wrote it, without a field that has its default now.
    record.write_text(exact.replace('"amplitude": 0.75, ', ""))
    with pytest.raises(ValueError, match=r"again.jsonl and .* are runs of the same settings"):
        filled(data)
    # As the command line writes it.
    record.write_text(exact.replace('"target_token_num": 32,', '"target_token_num": 32.0,'))
    with pytest.raises(ValueError, match=r"again.jsonl.* measure the same row of table 1 \(autopr"):
        filled(data)


def test_no_run_of_the_tables_benchmarks_gives_only_the_published_half(data) -> None:
    write_run(data, "beta/none", 4)
    table = filled(data, ABLATION)
    assert [row["published"]["a_8"] for row in table["rows"]] == [1.5, 2.5]
    assert all(cell is None for row in table["rows"] for cell in row["measured"].values())
    assert "Not measured." in "\n".join(notes(table))


def test_code_that_is_not_all_in_its_commit_is_marked_beside_it(data) -> None:
    write_both(data)
    record = data / "out" / "alpha" / "ours.run.json"
    code = {"environment": {"git_commit": "0123abc", "git_dirty": True}}
    record.write_text(json.dumps(json.loads(record.read_text()) | code))
    table = filled(data)
    assert "git_commit 0123abc (with uncommitted changes)." in "\n".join(notes(table))
    write_csv(data / "t.csv", table)
    with (data / "t.csv").open() as file:
        commits = [line["git_commit"] for line in csv.DictReader(file)]
    assert sorted(set(commits)) == ["", "0123abc (with uncommitted changes)"]
