"""Studies: marks and intervals by hand, equal work, and a table from records alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava import pruning
from llava.analysis import question_metadata, study, study_rows
from llava.analysis.study_budget import measured, tokens_for
from llava.analysis.study_statistics import (
    Comparison,
    Mark,
    Unit,
    estimate,
    read_marks,
    read_unasked,
)
from llava.analysis.study_tables import markdown, matrix, notes, table
from llava.eval.benchmarks.base import Benchmark
from llava.eval.run.questions import Question
from llava.pruning import METHODS

from ..eval.benchmark_files import ALPHA, BENCHMARKS, BETA, write_benchmark
from ..eval.run_files import write_run
from ..pruning.common import layout, vicuna
from . import page_runs


def marks(right: str, kind: str = "read") -> dict[Unit, Mark]:
    return {Unit("a", i, kind): Mark(float(mark), 1) for i, mark in enumerate(right)}


def test_shares_of_rows_and_of_pairs() -> None:
    whole, row = marks("1" * 90 + "0" * 10), marks("1" * 81 + "0" * 19)
    compared = Comparison.of([whole, row, row])
    relative = compared.relative(0)
    assert relative[0].tolist() == [100, 90, 90]
    assert estimate(relative[:, 1] - relative[:, 2]) == (0, 0, 0)  # the same answers
    pair = estimate(relative[:, 0] - relative[:, 1])
    alone = estimate(relative[:, 1])
    # Nine of 90 that the two answer differently: 10 +- 1.96 sqrt(0.1 x 0.9 / 90).
    assert pair.value == 10 and abs(pair.high - pair.low - 2 * 6.2) < 1.5
    assert alone.low < 90 < alone.high
    reading, counting = compared.of_kind("reading"), compared.of_kind("counting")
    assert reading is not None and reading[0].tolist() == [90, 81, 81] and counting is None


def test_rows_of_other_questions_are_no_pair() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        Comparison.of([marks("11"), marks("111")])


def test_benchmarks_weigh_alike_and_questions_that_are_scored_together_are_drawn_together() -> None:
    units = {Unit("a", 0, ""): Mark(0.5, 4), Unit("a", 1, ""): Mark(1.0, 2)}
    units |= {Unit("b", 0, ""): Mark(1.0, 1)}
    compared = Comparison.of([units])
    assert compared.of_benchmark("a")[0, 0] == pytest.approx(100 * 4 / 6)
    assert {round(x, 6) for x in compared.of_benchmark("a")[1:, 0]} == {50.0, 66.666667, 100.0}
    assert np.allclose(compared.relative(0), 100)


def test_marks_by_reference_by_half_of_the_pictures_and_by_the_benchmark_itself(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setitem(question_metadata.BENCHMARKS, "beta", BETA)
    folder = page_runs.write(tmp_path)
    file = folder / "out/beta/auto-64.jsonl"
    asked = [{"prompt": f"What is {'it ' * i}?"} for i in range(8)]
    answers = [json.loads(line) for line in file.read_text().splitlines()]
    page_runs.lines(file, [answer | prompt for answer, prompt in zip(answers, asked)])
    # Two questions a picture, which beta scores together.
    all_marks = read_marks(file, BETA, folder / "data")
    assert [m for _, m in sorted(all_marks.items())] == [(0.5, 2), (0.5, 2), (1.0, 2), (0.5, 2)]
    halves = [read_marks(file, BETA, folder / "data", parity) for parity in (0, 1)]
    assert [unit.place for unit in halves[0]] == [0, 4] and halves[0] | halves[1] == all_marks
    fewer = read_marks(file, BETA, folder / "data", left_out={1, 2, 3})
    assert [mark.answers for _, mark in sorted(fewer.items())] == [1, 2, 2]
    (folder / "data/beta/metadata.jsonl").unlink()
    scored = read_marks(file, BETA, folder / "data")
    assert [m.answers for m in scored.values()] == [2, 2, 2, 2]
    right = page_runs.RIGHT
    expected = [
        sum(page_runs.AUTO[i + j] == right[i + j] for j in (0, 1)) / 2 for i in (0, 2, 4, 6)
    ]
    assert [mark.score for mark in scored.values()] == expected
    with pytest.raises(ValueError, match=r"no metadata\.jsonl"):
        read_marks(file, BETA, folder / "data", 0)


def test_a_budget_of_equal_work() -> None:
    asked: list[float] = []

    def cost(tokens: float) -> float | None:
        asked.append(tokens)
        return None if tokens < 20 else 0.05 + tokens / 500

    assert tokens_for(0.15, cost, 576) == 50
    assert tokens_for(0.1503, cost, 576, 0.1) == pytest.approx(50.1)
    assert tokens_for(0.06, cost, 576) is None  # the floor costs 0.09
    assert len(asked) < 40


def test_every_method_with_a_budget_has_its_rows() -> None:
    rows = list(study_rows.methods())
    runs = study.parse_runs([row.run for row in rows])
    assert {run.pruner.method for run in runs} == {
        n for n, m in METHODS.items() if m.takes_budget()
    }
    assert all(getattr(run.pruner, "budget_mode", "strict") == "strict" for run in runs)
    both = {
        (run.pruner.method, run.pruner.positions) for run in runs if run.pruner.method == "dart"
    }
    assert both == {("dart", "original"), ("dart", "compact")}
    base = pruning.build("autoprune", preset="balanced")
    changed = study.parse_runs([row.run for row in study_rows.ABLATIONS])
    assert [run.pruner == base for run in changed] == [True] + [False] * (len(changed) - 1)


def test_shuffled_schedules_are_those_of_other_samples() -> None:
    settings = {"target_token_num": 16, "k0": 0.4, "gamma": 0.2, "preselect_ratio": None}
    plain = pruning.build("autoprune", **settings).start(layout(64, 64), vicuna())
    pruner = study_rows.ShuffledAutoPrune(**settings, values=(0.25, 0.75))
    mixed = pruner.start(layout(64, 64), vicuna())
    for run in (plain, mixed):
        run._schedule([1.0, 1.5])
    assert [c["mi"] for c in plain.complexity()] == [1.0, 1.5]
    assert {c["mi"] for c in mixed.complexity()} <= {0.25, 0.75}
    assert "autoprune-shuffled" not in METHODS


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_benchmark(tmp_path / "data", "alpha", 4)
    for name, right, kept in (("none", 4, 1.0), ("first", 3, 0.1), ("second", 2, 0.1)):
        file = write_run(tmp_path, f"alpha/{name}", right, kept=kept)
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        page_runs.lines(file, [a | {"metadata": {"index": i}} for i, a in enumerate(lines)])
    return tmp_path


def test_a_table_from_records(runs: Path) -> None:
    rows = [
        (study_rows.Row("g", name, ""), 64.0, [runs / f"out/alpha/{name}.jsonl"])
        for name in ("first", "second")
    ]
    rows.append((study_rows.Row("g", "third", ""), 64.0, [runs / "out/alpha/third.jsonl"]))
    unpruned = [runs / "out/alpha/none.jsonl"]
    result = table(rows, unpruned, runs / "data", BENCHMARKS, None)
    first, second = result["rows"]
    assert (first["relative"]["value"], second["relative"]["value"]) == (75, 50)
    assert first["relative_difference"] is None
    assert second["relative_difference"]["value"] == -25
    assert first["flops"] == pytest.approx(0.13) and first["computed_flops"] == pytest.approx(0.12)
    assert result["incomplete"] == ["g: third, 64"]
    shown = markdown(result | {"counting": "published", "pictures": "all"}).splitlines()
    assert len(shown) == 4 and shown[3].startswith("| g | second | 50.0 [")
    said = "\n".join(notes(result | {"counting": "published", "pictures": "all"}))
    assert "alpha 4" in said and "Not complete, left out: g: third, 64." in said
    assert ALPHA.name in result["unpruned"]["benchmarks"]


def test_a_matrix_of_budgets(runs: Path) -> None:
    rows = [
        (study_rows.Row("g", label, ""), tokens, [runs / f"out/alpha/{file}.jsonl"])
        for label, tokens, file in (
            ("worse", 64.0, "second"), ("better", 64.0, "first"), ("worse", 128.0, "first")
        )
    ]  # fmt: skip
    unpruned = [runs / "out/alpha/none.jsonl"]
    heading, _, *shown = matrix(table(rows, unpruned, runs / "data", BENCHMARKS, None)).splitlines()
    assert heading.startswith("| row | relative %, T = 64 | relative %, T = 128 |")
    first, second = ([cell.strip() for cell in line.split("|")[1:4]] for line in shown)
    assert (first[0], first[1][:5], first[2]) == ("better", "75.0 ", "–")
    assert (second[0], second[1][:5], second[2][:5]) == ("worse", "50.0 ", "75.0 ")


def with_two_pictures(*indices: int) -> dict[str, Benchmark]:
    """The benchmarks, with a second picture at some questions of alpha."""

    def load(folder: Path) -> Any:
        questions = ALPHA.load_questions(folder)
        return _Questions(
            [
                replace(questions[i], more=("b.png",) if i in indices else ())
                for i in range(len(questions))
            ]
        )

    return {"alpha": replace(ALPHA, load_questions=load)}


class _Questions(list):
    path = Path("data/alpha/questions.jsonl")

    def position(self, index: int) -> int:
        return index


def unanswered(file: Path, *indices: int) -> Path:
    """Cost 100 each, of 1000 unpruned; those indices have no answer, and the record says so."""
    cost = dict.fromkeys(("tokens_entering", "tokens_leaving", "scoring_flops", "merging_flops"), 5)
    cost |= {"prefill_flops": 90, "dense_prefill_flops": 1000, "computed_flops": 80}
    cost |= dict.fromkeys(("decode_flops", "dense_decode_flops", "kv_bytes", "dense_kv_bytes"), 1)
    seconds = dict.fromkeys(("prefill", "decode", "waiting", "total"), 0.1)
    known = {"n_visual": 9, "n_text": 5, "new_tokens": 1, "cost": cost, "seconds": seconds}
    answers = [json.loads(line) for line in file.read_text().splitlines()]
    answers = [a | {"metadata": known | {"index": i}} for i, a in enumerate(answers)]
    page_runs.lines(file, [a for i, a in enumerate(answers) if i not in indices])
    record = file.with_suffix(".run.json")
    status = {"status": "incomplete" if indices else "complete"}
    record.write_text(json.dumps(json.loads(record.read_text()) | status))
    return file


def test_questions_with_several_pictures_that_a_row_cannot_be_asked(runs: Path) -> None:
    """`second` has no answer to the last question, whose two pictures its budget cannot hold."""
    whole = unanswered(runs / "out/alpha/none.jsonl")
    first = unanswered(runs / "out/alpha/first.jsonl")
    second = unanswered(runs / "out/alpha/second.jsonl", 3)
    rows = [(study_rows.Row("g", file.stem, ""), 64.0, [file]) for file in (first, second)]
    result = table(rows, [whole], runs / "data", with_two_pictures(1, 3), None)
    assert result["left_out"] == {"alpha": 1} and result["incomplete"] == []
    assert result["questions"] == {"alpha": 3}
    assert [round(row["relative"]["value"], 1) for row in result["rows"]] == [100.0, 66.7]
    assert [row["flops"] for row in result["rows"]] == [0.1, 0.1]
    said = "\n".join(notes(result | {"counting": "published", "pictures": "all"}))
    assert "Left out of all rows: 1 questions of alpha with several pictures" in said
    # One picture: its row is not whole. Nor is one that answers nothing.
    result = table(rows, [whole], runs / "data", with_two_pictures(1), None)
    assert result["left_out"] == {} and result["incomplete"] == ["g: second, 64"]
    benchmark = with_two_pictures(0, 1, 2, 3)["alpha"]
    assert read_unasked(second, whole, benchmark, runs / "data") == {3}
    page_runs.lines(second, [])
    assert read_unasked(second, whole, benchmark, runs / "data") is None


def test_work_is_measured_on_questions_with_few_pictures() -> None:
    counts = [0, 2, 1, 1, 2, 1, 1, 1]
    questions = _Questions(
        Question(i, i, "?", "a.png" if n else None, more=("b.png",) * (n - 1))
        for i, n in enumerate(counts)
    )
    assert measured(questions) == [2, 5]
    assert measured(_Questions(q for q in questions if len(q.images) != 1)) == [1, 2]
    assert measured(questions[:1]) == []


def test_wrong_input_is_refused(runs: Path, capsys) -> None:
    command = ["--model-path", str(runs), "--data", str(runs / "data"), "--out", str(runs / "out")]
    assert study.main([*command, "--only", "nonsense"], BENCHMARKS) == 2
    assert "--only nonsense: no such row" in capsys.readouterr().err
    (runs / "out" / study.PLAN).write_text("[")
    assert study.main(command, BENCHMARKS) == 2
    assert study.PLAN in capsys.readouterr().err
