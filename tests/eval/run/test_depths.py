"""Depths of methods in a decoder of another depth, and what is said about it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

import pytest

from llava import pruning
from llava.analysis import asking
from llava.eval import model_vqa_loader
from llava.eval.compare.runs import parse_runs, runs_in_decoder
from llava.eval.run.depths import in_decoder, pruner_in_decoder
from llava.eval.run.models import decoder_layers, decoder_shape
from llava.pruning.base import PrunerRun
from llava.serve import cli, viewer
from tests.checkpoints import write_hf, write_original

from ..stub import write_checkpoint


@dataclass(frozen=True, kw_only=True)
class Staged(pruning.Pruner):
    """A method with every kind of depth."""

    method: ClassVar[str] = "staged"
    depths: ClassVar[tuple[str, ...]] = ("layer", "stages", "middle")

    layer: int = 2
    stages: tuple[int, ...] = (0, 8, 15)
    middle: float = 16.0
    heads: int = 14

    def start(self, layout, shape) -> PrunerRun:
        return PrunerRun()


def test_x0_is_scaled() -> None:
    pruner, said = in_decoder(pruning.build("autoprune", target_token_num=8), (), 12)
    assert pruner == pruning.build("autoprune", target_token_num=8, x0=5.5875)
    assert said == [
        "autoprune: x0 14.9 is for 32 layers; this decoder has 12: 5.5875 "
        "(--depth-layers 12 takes it as it is)"
    ]


def test_whole_depths_stay_whole_and_are_never_scaled_away() -> None:
    pruner, said = in_decoder(Staged(), (), 12)
    # 2 * 12 / 32 = 0.75, 8 * 12 / 32 = 3, 15 * 12 / 32 = 5.6
    assert pruner == Staged(layer=1, stages=(0, 3, 6), middle=6.0)
    assert said[1].startswith(
        "staged: stages 0, 8, 15 is for 32 layers; this decoder has 12: 0, 3, 6 ("
    )
    assert Staged().scaled(32, 4).layer == 1  # 0.25: a layer that had some before it keeps one


@pytest.mark.parametrize("layers", [32, 40])  # the paper took the same numbers for 40
def test_nothing_is_said_where_nothing_changes(layers) -> None:
    for pruner in (pruning.build("random"), Staged()):
        assert in_decoder(pruner, (), layers) == (pruner, [])


def test_what_the_user_gave_is_for_this_decoder_and_the_rest_is_not() -> None:
    pruner, said = in_decoder(Staged(layer=2, middle=16.0), {"layer", "middle"}, 12)
    assert pruner == Staged(layer=2, stages=(0, 3, 6), middle=16.0) and len(said) == 1


def test_depth_layers_is_for_all_depths() -> None:
    given = {"layer"}
    pruner, said = in_decoder(Staged(layer=4), given, 12, depth_layers=24)
    assert pruner == Staged(layer=2, stages=(0, 4, 8), middle=8.0)
    assert said[0] == "staged: layer 4 is for 24 layers; this decoder has 12: 2"
    assert in_decoder(Staged(), given, 12, depth_layers=12) == (Staged(), [])
    assert in_decoder(Staged(), (), 40, depth_layers=32)[0].middle == 20


def test_no_layers_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="--depth-layers must be at least 1, got 0"):
        in_decoder(Staged(), (), 12, depth_layers=0)


def test_a_sentence_is_said_once(capsys) -> None:
    runs_in_decoder(parse_runs(["autoprune:64,32", "fastv:64,32", "random:8"]), 12, None)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("autoprune: x0 14.9 is") and second.startswith("fastv: depth 2 is")


FILES = ("--question-file", "q", "--answers-file", "a.jsonl")


def _program(module: ModuleType, checkpoint: str, flags: list[str]) -> pruning.Pruner:
    """The method with which a program would begin on this checkpoint."""
    if module is asking:
        parser = argparse.ArgumentParser()
        asking.add_method_arguments(parser)
        args = parser.parse_args(flags)
        return asking.scaled(asking.planned(args), args, decoder_layers(checkpoint))[0].pruner
    flags = ["--model-path", checkpoint, *flags]
    if module is model_vqa_loader:
        return module.settings_from(module.build_parser().parse_args([*FILES, *flags])).pruner
    picture = ["--image-file", "a.png"] if module is cli else []
    args = module.build_parser().parse_args([*picture, *flags])
    return pruner_in_decoder(args, decoder_layers(checkpoint))


PROGRAMS = [model_vqa_loader, asking, cli, viewer]


@pytest.mark.parametrize("module", PROGRAMS, ids=lambda module: module.__name__)
@pytest.mark.parametrize(
    ("flags", "x0"),
    [
        ("", 5.5875),
        ("--x0 14.9", 14.9),
        ("--x0 16 --depth-layers 32", 6),
        ("--depth-layers 12", 14.9),
    ],
)
def test_every_program_decides_alike(module, flags, x0, tmp_path) -> None:
    checkpoint = write_checkpoint(tmp_path, layers=12)
    chosen = _program(module, checkpoint, ["--target-token-num", "64", *flags.split()])
    assert chosen == pruning.build("autoprune", target_token_num=64, x0=x0)


@pytest.mark.parametrize("written", [write_original, write_hf], ids=["original", "llava-hf"])
def test_a_checkpoint_tells_its_layers_and_sizes(tmp_path, written) -> None:
    folder = written(tmp_path / "checkpoint")
    assert decoder_layers(str(folder)) == 3
    shape = decoder_shape(str(folder))
    sizes = shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.intermediate
    assert sizes == (3, 64, 4, 4, 96)


@pytest.mark.parametrize("wrong", [0, -1, "12", True, None])
def test_layers_that_are_no_number_are_named(wrong, tmp_path) -> None:
    checkpoint = write_checkpoint(tmp_path, layers=wrong)
    with pytest.raises(ValueError, match=r"config\.json: num_hidden_layers must be"):
        decoder_layers(checkpoint)
