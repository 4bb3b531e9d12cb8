"""A method from outside the package: by name, on the command line and in the model."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from pkgutil import iter_modules
from typing import ClassVar

import pytest
import torch

from llava import pruning
from llava.pruning import methods
from llava.pruning.arguments import add_pruning_arguments, pruner_from_args
from llava.pruning.methods.dense import Dense
from llava.pruning.selectors import keep_top
from tests import tiny


@dataclass(frozen=True, kw_only=True)
class EveryOther(pruning.Pruner):
    """Keeps every `step`-th column of what leaves layer `layer`."""

    method: ClassVar[str] = "every-other"
    depths: ClassVar[tuple[str, ...]] = ("layer",)
    presets: ClassVar[dict[str, dict[str, int]]] = {"sparse": {"layer": 0, "step": 8}}

    layer: int = 1
    step: int = 2

    def start(self, layout, shape) -> EveryOtherRun:
        return EveryOtherRun(self)


class EveryOtherRun(pruning.PrunerRun):
    def __init__(self, config: EveryOther) -> None:
        self.config = config

    def after_layer(self, observation) -> pruning.Selection | None:
        layout, step = observation.layout, self.config.step
        if observation.layer != self.config.layer:
            return None
        wanted = ((layout.patch % step == 0) & layout.is_visual).float()
        return keep_top(layout, wanted, wanted.sum(1).int().tolist())


@pytest.fixture
def registered():
    pruning.register(EveryOther)
    yield
    del pruning.METHODS["every-other"]


def parse(*flags: str) -> pruning.Pruner:
    parser = argparse.ArgumentParser()
    add_pruning_arguments(parser)
    return pruner_from_args(parser.parse_args(flags))


def test_it_is_built_by_name_and_by_flags(registered) -> None:
    assert pruning.build("every-other", step=4) == EveryOther(step=4)
    flags = ("--method", "every-other", "--set", "step=4", "--set", "layer=3")
    assert parse(*flags, "--target-token-num", "64") == EveryOther(step=4, layer=3)
    assert pruning.build(**EveryOther(step=3).to_dict()) == EveryOther(step=3)
    with pytest.raises(ValueError, match="did you mean 'every-other'"):
        pruning.build("every-othr")


def test_it_has_presets_of_its_own(registered) -> None:
    sparse = EveryOther(layer=2, step=8)
    assert pruning.build("every-other", preset="sparse", layer=2) == sparse
    flags = ("--method", "every-other", "--preset", "sparse", "--set", "layer=2")
    assert parse(*flags) == sparse
    with pytest.raises(ValueError, match="unknown preset 'paper'"):
        pruning.build("every-other", preset="paper")
    with pytest.raises(ValueError, match="unknown preset 'sparse'"):
        pruning.build("autoprune", preset="sparse")


def test_it_runs(registered) -> None:
    model = tiny.model(7)
    out = model.generate(
        tiny.prompt(1)[None],
        images=tiny.pixels(8),
        pruner=parse("--method", "every-other", "--set", "step=4"),
        do_sample=False,
        max_new_tokens=3,
        return_dict_in_generate=True,
    )
    trace = out.past_key_values.trace
    assert trace.samples[0].entering == [16, 16, 4, 4, 4, 4]
    assert trace.kept_patches(0)[-1] == [0, 4, 8, 12]
    assert out.sequences.shape == (1, 3)
    same = model.generate(
        tiny.prompt(1)[None],
        images=tiny.pixels(8),
        pruner=EveryOther(step=4),
        do_sample=False,
        max_new_tokens=3,
    )
    assert torch.equal(same, out.sequences)


def test_it_is_unknown_where_it_is_not_registered(capsys) -> None:
    assert "every-other" not in pruning.METHODS
    with pytest.raises(ValueError, match="unknown method 'every-other'"):
        pruning.build("every-other")
    with pytest.raises(SystemExit):
        parse("--method", "every-other")
    assert "unknown method 'every-other'" in capsys.readouterr().err


def test_a_class_may_be_registered_twice_and_a_name_once(registered) -> None:
    assert pruning.register(EveryOther) is EveryOther

    @dataclass(frozen=True, kw_only=True)
    class Other(Dense):
        method: ClassVar[str] = "every-other"

    with pytest.raises(ValueError, match="method 'every-other' is there already"):
        pruning.register(Other)
    assert pruning.METHODS["every-other"] is EveryOther


def test_what_is_no_method_is_refused() -> None:
    class Plain(Dense):
        method: ClassVar[str] = "plain"

    @dataclass(frozen=True, kw_only=True)
    class Nameless(Dense):
        method: ClassVar[str] = ""

    @dataclass(frozen=True)
    class Foreign:
        method: ClassVar[str] = "foreign"

    known = dict(pruning.METHODS)
    for cls, message in (
        (Plain, "Plain must be @dataclass"),
        (Nameless, "Nameless needs a name"),
        (Foreign, "a subclass of Pruner, got Foreign"),
    ):
        with pytest.raises(ValueError, match=message):
            pruning.register(cls)
    assert known == pruning.METHODS


def test_every_file_of_the_methods_folder_registers_a_method() -> None:
    files = {module.name for module in iter_modules(methods.__path__)}
    prefix = methods.__name__ + "."
    registered = {cls.__module__.removeprefix(prefix) for cls in pruning.METHODS.values()}
    assert registered == files


#: One file with one line, the decorator: what a method needs. The second keeps a token too many.
OUTSIDE = """
from dataclasses import dataclass
from typing import ClassVar

from llava import pruning
from llava.pruning.entry import EntryPruner


@pruning.register
@dataclass(frozen=True, kw_only=True)
class Middle(EntryPruner):
    method: ClassVar[str] = "middle"

    def choose(self, image, count, embeds):
        first = (len(image) - count) // 2
        return range(first, first + count)


@pruning.register
@dataclass(frozen=True, kw_only=True)
class Greedy(Middle):
    method: ClassVar[str] = "greedy"

    def resolved(self, sizes):
        return Middle(target_token_num=self.target_token_num + 1)
"""


def test_a_method_in_a_file_elsewhere_is_held_to_what_all_methods_promise(tmp_path: Path) -> None:
    """No test knows of it: the matrix finds it, and finds what it does not keep."""
    (tmp_path / "outside.py").write_text(OUTSIDE)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "outside",
            "-p",
            "no:cacheprovider",
            "-v",
            "-k",
            "middle or greedy",
            str(Path(__file__).with_name("test_methods.py")),
        ],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
    )
    results = dict(line.split()[:2] for line in done.stdout.splitlines() if "::test_" in line)
    outcomes = {name.partition("::")[2]: outcome for name, outcome in results.items()}
    middle = {
        name for name, outcome in outcomes.items() if "middle" in name and outcome == "PASSED"
    }
    assert {name for name in outcomes if "middle" in name} == middle
    for promise in (
        "a_batch_equals_its_samples",
        "it_equals_a_full_length_run_with_a_mask",
        "the_budget_is_met",
        "a_call_is_deterministic_and_leaves_nothing_behind",
    ):
        assert any(name.startswith(f"test_{promise}[") for name in middle), done.stdout
    failed = {name for name, outcome in outcomes.items() if outcome == "FAILED"}
    assert failed and all("greedy" in name and "budget" in name for name in failed), done.stdout
