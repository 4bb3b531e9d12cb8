"""What is measured of the time to first token, and what becomes of what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llava import pruning
from llava.analysis import first_token, prefills
from llava.analysis.first_token import Cell, budgets, fits, measure, plan, prompts, shares
from llava.analysis.launches import Launches
from llava.analysis.prefills import Setup, build

SETUP = Setup(
    hidden=32,
    intermediate=32,
    layers=4,
    heads=2,
    device=torch.device("cpu"),
    dtype=torch.float32,
    text_tokens=9,
)
PRUNER = pruning.build("fastv", depth=1)


def cells(*batch_sizes: int, compiled: bool = False, attention: str = "sdpa") -> list[Cell]:
    return [Cell("tiny", compiled, attention, 36, n, (24, 12)) for n in batch_sizes]


def measured(*arguments, turns: int = 1, **options) -> first_token.Report:
    return measure(*arguments, {"tiny": SETUP}, {"tiny": PRUNER}, turns, **options)


@pytest.fixture
def no_compiler(monkeypatch) -> None:
    def missing(device) -> None:
        raise ValueError("compiling for cpu needs a C++ compiler")

    monkeypatch.setattr(first_token, "check_compiler", missing)


@pytest.fixture
def compiler(monkeypatch) -> list[Any]:
    """A compiler that leaves models as they are; those that it was given."""
    models: list[Any] = []
    monkeypatch.setattr(first_token, "check_compiler", lambda device: None)
    monkeypatch.setattr(first_token, "compile_layers", models.append)
    return models


class Clock:
    """Goes on by a second each time it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def test_rows_are_the_targets_of_the_cells() -> None:
    saved = []
    report = measured(cells(1, 2), turns=3, save=lambda report: saved.append(len(report.rows)))
    assert [(r["batch"], r["target"]) for r in report.rows] == [(1, 24), (1, 12), (2, 24), (2, 12)]
    assert saved == [2, 4] and not report.notes
    for row in report.rows:
        assert row["turns"] == 3 and row["dense_ms"] > 0 and row["ms"] > 0
        assert row["operators"] > row["dense_operators"] > 0
        assert row["dense_waits"] == 1  # the token that is read
        cuda = ("kernels", "copies", "peak_gib")
        assert all(row[name] is row[f"dense_{name}"] is None for name in cuda)
    assert report.rows[1]["flops_speedup"] > report.rows[0]["flops_speedup"] > 1
    # All 36 enter layer 0, and 24 each of the other three.
    assert report.rows[0]["tokens_entering"] == (36 + 3 * 24) / 4


def test_rows_have_what_a_cuda_device_says(monkeypatch) -> None:
    profiled = []

    def profile(run, device):
        profiled.append(run.__self__.pruner)
        return Launches(100 * len(profiled), len(profiled))

    def timed(run, device):
        return prefills.Timing(0.5 if run.__self__.pruner is None else 0.25, 2**30)

    monkeypatch.setattr(first_token, "profile_launches", profile)
    monkeypatch.setattr(prefills, "timed", timed)
    (first, second) = measured(cells(1), turns=2).rows
    assert [pruner and pruner.target_token_num for pruner in profiled] == [None, 24, 12]
    assert (first["dense_kernels"], first["kernels"], second["kernels"]) == (100, 200, 300)
    assert (first["dense_copies"], first["copies"], second["copies"]) == (1, 2, 3)
    assert (first["dense_peak_gib"], second["peak_gib"]) == (1, 1)
    assert (first["dense_ms"], first["ms"], first["speedup"]) == (500, 250, 2)

    profiled.clear()
    measured(cells(1), turns=2, seconds=1.5, clock=Clock())  # the profiler goes before rows do
    assert not profiled


def test_the_plan_has_everything_once() -> None:
    made = plan("llava-1.5-7b", ("sdpa", "eager"), prompts("llava-1.5-7b"), (1, 8), budgets)
    assert len(set(made)) == len(made) == 2 * 2 * 2 * 2
    assert {cell.visual_tokens: cell.targets for cell in made} == {
        576: (192, 128, 64),
        2880: (640, 320, 160),
    }
    # A model is compiled once, after what it is measured as it is.
    assert [cell.compiled for cell in made] == [False] * 8 + [True] * 8
    assert budgets(36) == (12, 8, 4)


def test_a_model_is_compiled_once(compiler) -> None:
    report = measured([*cells(1), *cells(1, 2, compiled=True)])
    assert [r["compiled"] for r in report.rows] == [False] * 2 + [True] * 4
    assert len(compiler) == 1
    # What a compiler makes of operators, no one sees.
    assert [r["operators"] is None for r in report.rows] == [False] * 2 + [True] * 4


def test_what_is_not_installed_is_a_line(no_compiler, monkeypatch) -> None:
    def refuse(self, name: str) -> None:
        if name != "sdpa":
            raise ImportError("flash-attn is not here\nsecond line")

    monkeypatch.setattr(first_token.Decoders, "set_attention", refuse)
    flash = cells(1, 2, attention="flash_attention_2")
    report = measured([*cells(1), *flash, *cells(1, compiled=True)])
    assert [r["attention"] for r in report.rows] == ["sdpa", "sdpa"]
    first, second = report.notes
    assert first == "flash_attention_2 is absent: flash-attn is not here"
    assert second.startswith("compiled layers are absent: ")


def test_a_compiler_that_fails_is_tried_once(compiler, monkeypatch) -> None:
    tries = []
    original = first_token.measure_cell

    def fail(decoders, setup, pruner, cell, *rest):
        if cell.compiled:
            tries.append(cell)
            raise RuntimeError("no working C++ compiler")
        return original(decoders, setup, pruner, cell, *rest)

    monkeypatch.setattr(first_token, "measure_cell", fail)
    report = measured([*cells(1), *cells(1, 2, compiled=True)])
    assert len(tries) == 1 and len(report.rows) == 2
    assert report.notes == ["compiled layers of tiny fail: no working C++ compiler"]


def test_an_error_of_a_run_as_it_is_is_no_line(monkeypatch) -> None:
    def fail(*arguments):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(first_token, "measure_cell", fail)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        measured(cells(1))


def test_what_does_not_fit_is_a_line_and_the_rest_is_measured(monkeypatch) -> None:
    original = first_token.PrefillRun.first_token

    def crowded(self):
        if self.pruner is None and len(self.embeds) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return original(self)

    monkeypatch.setattr(first_token.PrefillRun, "first_token", crowded)
    report = measured(cells(1, 2))
    assert [r["dense_ms"] is None for r in report.rows] == [False, False, True, True]
    assert [r["speedup"] is None for r in report.rows] == [False, False, True, True]
    assert all(r["ms"] > 0 and r["turns"] == 1 for r in report.rows)
    (note,) = report.notes
    assert note == ("does not fit in memory: tiny, 36 visual tokens, sdpa, eager, batch 2, dense")


def test_fitting_is_about_memory_only() -> None:
    def fail(error: Exception):
        raise error

    assert fits(lambda: None)
    assert not fits(lambda: fail(torch.OutOfMemoryError("too large")))
    with pytest.raises(RuntimeError, match="else"):
        fits(lambda: fail(RuntimeError("something else")))


def test_a_decoder_that_does_not_fit_is_a_line(monkeypatch) -> None:
    def build_small(setup):
        if setup.hidden > 64:
            raise torch.OutOfMemoryError("out of memory")
        return build(setup)

    monkeypatch.setattr(first_token, "build", build_small)
    large = Cell("llava-1.5-7b", False, "sdpa", 36, 1, (12,))
    setups = {"llava-1.5-7b": Setup(**{**vars(SETUP), "hidden": 4096}), "tiny": SETUP}
    pruners = dict.fromkeys(setups, PRUNER)
    report = measure([large, *cells(1)], setups, pruners, turns=1)
    assert [r["shape"] for r in report.rows] == ["tiny", "tiny"]
    assert report.notes == ["llava-1.5-7b does not fit in memory"]


def test_a_lack_of_time_drops_turns_before_rows() -> None:
    plenty = measured(cells(1, 2), turns=4, seconds=1000, clock=Clock())
    assert [r["turns"] for r in plenty.rows] == [4] * 4
    short = measured(cells(1, 2), turns=4, seconds=11, clock=Clock())
    assert all(1 <= r["turns"] < 4 for r in short.rows) and len(short.rows) == 4
    assert not short.notes


def test_what_no_time_is_left_for_is_a_line() -> None:
    report = measured(cells(1, 2), turns=4, seconds=3, clock=Clock())
    assert [r["batch"] for r in report.rows] == [1, 1]
    assert [r["turns"] for r in report.rows] == [1, 1]
    assert report.notes == ["no time was left for tiny, 36 visual tokens, sdpa, eager, batch 2"]


def test_the_last_cell_may_take_all_that_is_left_and_larger_ones_more() -> None:
    parts = shares(cells(1, 8, 32))
    # FLOPs 1 : 8 : 32 of 41, and a third of the other half each.
    first, second, third = (n / 41 + 1 / 3 for n in (1, 8, 32))
    assert list(parts.values()) == pytest.approx(
        [first / 2, second / (second + third), 1.0], rel=1e-12
    )


def test_a_method_of_the_tower_is_measured_with_what_it_leaves() -> None:
    tower = pruning.build("fastervlm")
    report = measure(cells(1), {"tiny": SETUP}, {"tiny": tower}, turns=1)
    assert [r["tokens_entering"] for r in report.rows] == [24, 12]
