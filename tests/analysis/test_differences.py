"""Which answers pruning changed, and which of them are shown, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.analysis.differences import GAINED, LOST, OTHER, UNKNOWN, Changes, find, most_different
from llava.eval.compare.report import collect

from ..eval.benchmark_files import BENCHMARKS
from .page_runs import write


@pytest.fixture
def runs(tmp_path) -> Path:
    return write(tmp_path)


def found(folder: Path):
    return find(collect([folder / "out"], folder / "data", BENCHMARKS), folder / "data")


def test_changes_are_told_apart(runs) -> None:
    differences, _ = found(runs)
    auto = [one for one in differences if one.method.startswith("autoprune")]
    assert [(one.question.index, one.change, one.hardness) for one in auto] == [
        (0, LOST, "simple"), (3, LOST, "complex"), (5, GAINED, "complex"), (7, OTHER, "simple"),
    ]  # fmt: skip
    first = auto[0]
    assert (first.dense.text, first.pruned.text, first.reference) == ("red", "green", "red")
    assert (first.dense.right, first.pruned.right) == (True, False)
    assert (first.method, first.budget) == ("autoprune x0=5.6", "64")
    assert first.question.image == "0.png" and first.pruned.metadata["complexity"] == {"mi": 0.5}
    # "yes" for "no": no letter in common; "a cat" for "a dog": two of five letters each.
    assert auto[2].distance == 1.0 and auto[3].distance == pytest.approx(1 - 2 * 2 / 10)


def test_counts_by_run_and_hardness(runs) -> None:
    _, changes = found(runs)
    assert Changes("beta", "autoprune x0=5.6", "64", "complex", 3, 1, 1, 0) in changes
    assert Changes("beta", "autoprune x0=5.6", "64", "simple", 5, 1, 0, 1) in changes
    assert Changes("beta", "fastv depth=1", "32", "simple", 5, 0, 0, 1) in changes
    # The first seed of random answers as the unpruned model; without a picture is no choice.
    assert Changes("beta", "random", "32", "simple", 5, 0, 0, 0) in changes
    assert {one.method for one in changes} == {"autoprune x0=5.6", "fastv depth=1", "random"}


def test_the_most_different_are_of_all_groups(runs) -> None:
    differences, _ = found(runs)
    assert len(differences) == 5

    def chosen(most: int) -> list[tuple[str, int]]:
        return [(d.method.split()[0], d.question.index) for d in most_different(differences, most)]

    # One of each of three groups first: AutoPrune simple and complex, FastV simple.
    assert chosen(3) == [("autoprune", 0), ("autoprune", 5), ("fastv", 7)]
    assert chosen(5)[:3] == [("autoprune", 0), ("autoprune", 3), ("autoprune", 5)]
    assert chosen(0) == [] and len(chosen(100)) == 5


def test_without_metadata_nothing_is_known_of_a_question(runs) -> None:
    (runs / "data" / "beta" / "metadata.jsonl").unlink()
    differences, changes = found(runs)
    assert {one.change for one in differences} == {OTHER}
    assert {one.hardness for one in differences} == {UNKNOWN}
    assert Changes("beta", "autoprune x0=5.6", "64", UNKNOWN, 8, 0, 0, 4) in changes


def test_without_an_unpruned_run_there_is_nothing_to_compare(runs) -> None:
    for ending in (".jsonl", ".run.json"):
        (runs / "out" / "beta" / f"none{ending}").unlink()
    assert found(runs) == ([], [])


@pytest.mark.parametrize("lost", ["metadata", "index", "cost", "dense_prefill_flops"])
def test_answers_of_an_older_version_are_named(runs, lost: str) -> None:
    file = runs / "out" / "beta" / "auto-64.jsonl"
    answers = [json.loads(line) for line in file.read_text().splitlines()]
    metadata = answers[2]["metadata"]
    for there in (answers[2], metadata, metadata["cost"]):
        there.pop(lost, None)
    file.write_text("".join(json.dumps(line) + "\n" for line in answers))
    with pytest.raises(ValueError, match=r"line 3: no index or cost .* older version"):
        found(runs)
