"""Every pruning flag reaches the settings of a run through every answering program.

In the official code some programs parse flags that they then do not pass on.
"""

from __future__ import annotations

import argparse
import json
from types import ModuleType

import pytest

from llava.eval import model_vqa, model_vqa_loader, model_vqa_mmbench, model_vqa_science
from llava.eval.run.arguments import add_depth_argument
from llava.pruning import Pruner, build
from llava.pruning.arguments import add_pruning_arguments
from llava.pruning.methods.autoprune import AutoPrune
from llava.pruning.methods.cdpruner import CDPruner
from llava.pruning.methods.fastv import FastV

from ... import clip_files
from ...checkpoints import published_config

PROGRAMS = [model_vqa, model_vqa_loader, model_vqa_science, model_vqa_mmbench]
# Depths meant for 32 layers, in the checkpoint's 12: 16 * 12 / 32 = 6, 8 * 12 / 32 = 3, and the
# default of 14.9 is 5.5875.
LINES = {
    "--preset paper --target-token-num 48 --budget-mode strict --x0 16 --k0 0.5 --gamma 0.3 "
    "--beta -0.1 --set mi_layer=2 --set log_base=10 --depth-layers 32": build(
        "autoprune",
        preset="paper",
        target_token_num=48.0,
        budget_mode="strict",
        x0=6.0,
        k0=0.5,
        gamma=0.3,
        beta=-0.1,
        mi_layer=2,
        log_base=10.0,
    ),
    "--method autoprune --target-flops 0.25": AutoPrune(target_flops=0.25, x0=5.5875),
    "--target-kv 0.5": AutoPrune(target_kv=0.5, x0=5.5875),
    "--target-fraction 0.1 --budget-per image --x0 14.9": AutoPrune(
        target_fraction=0.1, budget_per="image"
    ),
    "--method fastv --target-token-num 64 --set depth=8 --depth-layers 32": FastV(
        target_token_num=64.0, depth=3
    ),
    f"--method cdpruner --clip {clip_files.folder()}": CDPruner(clip=clip_files.folder()),
}


def test_no_flag_is_left_out_here() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    add_pruning_arguments(parser)
    add_depth_argument(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert flags == {word for line in LINES for word in line.split() if word.startswith("--")}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__.split(".")[-1])
@pytest.mark.parametrize(("line", "pruner"), LINES.items(), ids=range(len(LINES)))
def test_flags_arrive(
    line: str, pruner: Pruner, program: ModuleType, tmp_path, monkeypatch
) -> None:
    """Up to where the run begins, which here does not."""
    config = {**published_config("llava-v1.5-7b"), "num_hidden_layers": 12}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ran = []
    monkeypatch.setattr(model_vqa_loader, "run", lambda settings, _: ran.append(settings) or 0)
    files = ["--model-path", str(tmp_path), "--question-file", "q", "--answers-file", "a.jsonl"]
    assert program.main([*files, *line.split()]) == 0
    (settings,) = ran
    assert settings.pruner == pruner and type(settings.pruner) is type(pruner)
