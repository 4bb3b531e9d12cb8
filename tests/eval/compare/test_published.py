"""The published tables: what is printed fits itself, and what does not has a note."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest

from llava import pruning
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.compare.published import TABLES, Column, PublishedRow, PublishedTable
from llava.eval.compare.tables import planned
from llava.pruning.cost import DecoderShape, prefill_flops
from llava.pruning.methods.autoprune.budget import budget, solve_plan

# Of a printed ratio, 0.05, and as much of the printed scores that it is a mean of.
_ROUNDING = 0.1


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_a_printed_ratio_is_the_mean_of_its_row_or_has_a_note(table) -> None:
    """The note says what the mean is. Rows without scores or without a ratio are not checked."""
    keys = {column.key for column in table.columns}
    dense = [row for row in table.rows if row.method == "none"]
    for row in table.rows:
        if not keys <= row.values.keys() or "ratio" not in row.values:
            assert "ratio" not in row.marks
            continue
        mean = 100 * fmean(row.values[key] / dense[0].values[key] for key in keys)
        fits = abs(mean - row.values["ratio"]) <= _ROUNDING
        assert fits != ("ratio" in row.marks), (row.label, row.tokens, mean)
        for mark in row.marks.get("ratio", ""):
            assert f"{mean:.1f}" in table.notes[mark] and row.label in table.notes[mark]


def test_every_ratio_that_is_printed_with_its_scores_is_checked() -> None:
    checked = {
        name: sum("ratio" in row.values and len(row.values) > 1 for row in table.rows)
        for name, table in TABLES.items()
    }
    # Table 3 prints ratios alone, tables 4a and 4b and those of the page none.
    assert checked == {"1": 16, "2": 16, "3": 0, "4a": 0, "4b": 0, "extended": 0, "13b": 0}


def test_the_note_on_flops_is_true_of_each_of_its_rows() -> None:
    """How many text tokens, at slope 0.2, give the FLOPs that are printed."""
    shape, ours = DecoderShape(32, 4096, 32, 32, 128, 11008), pruning.build("autoprune")

    def percent(tokens: int, text: int) -> float:
        config = replace(ours, target_token_num=tokens)
        counted = budget(config, shape, 576, text)
        entering = solve_plan(config, shape, counted, 0.2, config.x0 + 0.2).entering
        flops = prefill_flops(entering, text, shape)
        return round(100 * flops / prefill_flops([576] * 32, text, shape), 1)

    note = TABLES["1"].notes["f"]
    fitting = {}
    for row in TABLES["1"].rows:
        if row.method == "autoprune":
            assert row.marks["flops"] == "f"
            printed = row.values["flops"]
            fitting[row.tokens] = [n for n in range(50, 120) if percent(row.tokens, n) == printed]
    assert (
        fitting == {192: [72], 128: [78], 64: [71]} and "72, 78 and 71 at 192, 128 and 64" in note
    )
    assert percent(128, 70) == 32.9 and "(at 70, 128 would be 32.9)" in note
    assert [percent(tokens, 115) for tokens in (192, 128, 64)] == [46.4, 37.2, 28.0]


def test_textvqa_of_llava_1_6_is_published_without_ocr_tokens() -> None:
    table = TABLES["2"]
    note = table.notes[table.rows[0].marks["textvqa"]]
    assert "64.9" in note and "without OCR tokens" in note and "61.3" in note


def test_the_ablations_best_rows_are_table_1() -> None:
    ours = {row.tokens: row.values for row in TABLES["1"].rows if row.method == "autoprune"}
    expected = [ours[tokens][key] for key in ("textvqa", "gqa") for tokens in (64, 128)]
    for name in ("4a", "4b"):
        (best,) = (row for row in TABLES[name].rows if not row.settings)
        assert list(best.values.values()) == expected == [57.1, 57.4, 57.7, 59.9]


def test_numbers_of_the_paper() -> None:
    rows = {(row.label, row.tokens): row for row in TABLES["1"].rows}
    assert len(rows) == 1 + 3 * 5
    misprinted = rows["SparseVLM", 192]
    assert misprinted.values["textvqa"] == 56.3
    assert "66.3" in TABLES["1"].notes[misprinted.marks["textvqa"]]
    assert list(rows["AutoPrune", 64].values.values()) == [
        1745, 63.6, 69.6, 57.7, 57.1, 96.7, 23.2,
    ]  # fmt: skip
    assert "row" in rows["FastV", 64].marks and "not FastV" in TABLES["1"].notes["b"]
    second = {(row.label, row.tokens): row.values for row in TABLES["2"].rows}
    assert second["AutoPrune", 160]["vqav2"] == 76.4 and second["FastV", 160]["pope"] == 51.7


def test_conventions_of_mme_differ_between_the_tables() -> None:
    metrics = {
        name: column.metric
        for name, table in TABLES.items()
        for column in table.columns
        if column.benchmark == "mme"
    }
    assert metrics == {
        "1": "total", "2": "perception", "extended": "perception", "13b": "perception",
    }  # fmt: skip
    assert TABLES["1"].rows[0].values["mme"] == 1862
    assert TABLES["2"].rows[0].values["mme"] == 1513.8


def test_scores_without_a_source_are_not_there() -> None:
    for name in ("extended", "13b"):
        for row in TABLES[name].rows:
            assert bool(row.values) == (row.source is not None)
    (floor,) = (row for row in TABLES["extended"].rows if row.method == "no-image")
    assert "mmb" not in floor.values and "ratio" not in floor.values
    assert floor.values["gqa"] == 37.38


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_columns_are_of_benchmarks_that_are_scored_here(table) -> None:
    assert all(BENCHMARKS[name].scored_here for name in table.benchmarks)
    assert table.source and table.model.startswith(("llava-v1.", "Senna"))


def test_table_3_is_of_six_views() -> None:
    """26, 32, 38, 45 and 51 tokens a view are 156, 192, 228, 270 and 306 of 768."""
    table = TABLES["3"]
    rows = {(row.label, row.tokens): row.values for row in table.rows}
    assert table.budgets == [156, 192, 228, 270, 306] and len(rows) == 1 + 4 * 5
    assert rows["AutoPrune", 192] == {"ratio": 111.23}
    assert rows["FasterVLM", 156] == {"ratio": 55.05}
    assert rows["PyramidDrop", 306] == {"ratio": 100.55}
    assert rows["SparseVLM", 270] == {"ratio": 97.76}
    assert rows["Senna", 768] == {"ratio": 100.0}
    assert planned(table, ["pdrop", "autoprune"]) == [
        "none",
        *(f"{method}:{tokens}" for tokens in table.budgets for method in ("pdrop", "autoprune")),
    ]


def test_runs_are_written_as_a_sweep_takes_them() -> None:
    first, static = TABLES["1"].rows[1], TABLES["4a"].rows[0]
    assert first.run(first.budget()) == "tome:192"
    column = TABLES["4a"].columns[1]
    assert static.run(static.budget(column)) == "autoprune:128@indicator=static"
    dense = TABLES["1"].rows[0]
    assert dense.run(dense.budget()) == "none"
    assert TABLES["2"].budgets == [640, 320, 160] and TABLES["4b"].budgets == [64, 128]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((PublishedRow("A", "none", 8, None, {"b": 1.0}),), r"table t, A: no columns \['b'\]"),
        ((PublishedRow("A", "none", 8, None, {}, {"b": "x"}),), r"no columns \['b'\]"),
        ((PublishedRow("A", "none", 8, None, {}, {"a": "y"}),), "marks {'y'} but notes {'x'}"),
        (
            (
                PublishedRow("A", "fastv", 8, "kept", {}, {"a": "x"}),
                PublishedRow("B", "fastv", 8, "kept"),
            ),
            "two rows are the run fastv:8",
        ),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(rows, message) -> None:
    notes = {"x": "wrong"} if any(row.marks for row in rows) else {}
    with pytest.raises(ValueError, match=message):
        PublishedTable(
            "t", "T", "m", "s", (Column("a", "A", "alpha", "percent"),), rows, notes=notes
        )
