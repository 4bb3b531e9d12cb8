"""Depths of methods in a decoder of another depth, and what is said about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from llava import pruning
from llava.eval.depths import meant_for, scale_depths
from llava.eval.models import decoder_layers, decoder_shape
from llava.pruning.base import PrunerRun
from tests.checkpoints import write_hf, write_original


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
    pruner, said = scale_depths(pruning.build("autoprune", target_token_num=8), 32, 12)
    assert pruner == pruning.build("autoprune", target_token_num=8, x0=5.5875)
    assert said == ["autoprune: x0 14.9 is for 32 layers; this decoder has 12: 5.5875"]


def test_whole_depths_stay_whole_and_are_never_scaled_away() -> None:
    pruner, said = scale_depths(Staged(), 32, 12)
    # 2 * 12 / 32 = 0.75, 8 * 12 / 32 = 3, 15 * 12 / 32 = 5.6
    assert pruner == Staged(layer=1, stages=(0, 3, 6), middle=6.0)
    assert said[1] == "staged: stages 0, 8, 15 is for 32 layers; this decoder has 12: 0, 3, 6"
    assert Staged().scaled(32, 4).layer == 1  # 0.25: a layer that had some before it keeps one


def test_nothing_is_said_where_nothing_changes() -> None:
    for pruner in (pruning.build("random"), Staged()):
        assert scale_depths(pruner, 32, 32) == (pruner, [])


def test_no_layers_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="--depth-layers must be at least 1, got 0"):
        scale_depths(Staged(), 0, 12)


@pytest.mark.parametrize("written", [write_original, write_hf], ids=["original", "llava-hf"])
def test_a_checkpoint_tells_its_layers_and_sizes(tmp_path, written) -> None:
    folder = written(tmp_path / "checkpoint")
    assert decoder_layers(str(folder)) == 3
    shape = decoder_shape(str(folder))
    sizes = shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.intermediate
    assert sizes == (3, 64, 4, 4, 96)


@pytest.mark.parametrize(
    ("depth_layers", "x0", "layers", "expected"),
    [
        (None, None, 12, 32),
        (None, None, 32, 32),
        (None, None, 40, 40),  # the paper took the same numbers for 40 layers
        (None, 5.6, 12, 12),  # a depth of the user's own is meant for this decoder
        (24, 5.6, 12, 24),
    ],
)
def test_for_which_decoder_depths_are_meant(depth_layers, x0, layers, expected) -> None:
    assert meant_for(depth_layers, x0, layers) == expected
