"""Compilation of the decoder's layers, which leaves a GPU fewer and larger kernels to launch.

One layer is compiled and all share it (regional compilation), with dynamic shapes, dense and pruned
alike. A run needs at most four graphs for samples of one kind, alone or in padded batches: a layer
of a prefill, one that runs on the tokens that stay, one that runs for the last token, and a step of
decoding. What would add to them is kept out of the layers: nothing they are given depends on their
number (`PrunedCache.layer`), on whether their queries are wanted, or on who cut a tensor.

`accelerate.utils.compile_regions` gives the layers the same graphs, and others to the embeddings,
norms, projector, tower and head, each of which it compiles as well; and it returns another model.
"""

from __future__ import annotations

import os
import shutil
import sys

import torch
from torch._dynamo import config as dynamo
from torch.fx.experimental import _config as shapes
from transformers import PreTrainedModel

#: Graphs that one layer may have: four of a sample alone, of padded and of unpadded batches.
MOST_GRAPHS = 16


def compile_layers(model: PreTrainedModel) -> None:
    """Have the decoder's layers of `model` compiled, each kind of call when it first happens.

    Two settings of torch change for the whole process: sizes that happen to be equal, such as 128
    tokens and 128 numbers a head, are not taken for one size, and a function may have
    `MOST_GRAPHS`.

    Raises ValueError where `check_compiler` does.
    """
    check_compiler(model.device)
    shapes.use_duck_shape = False
    dynamo.recompile_limit = max(dynamo.recompile_limit, MOST_GRAPHS)
    for layer in model.get_decoder().layers:
        layer.compile(dynamic=True)


def check_compiler(device: torch.device | str) -> None:
    """Raise ValueError where torch cannot compile for `device`; says what is missing.

    A small function is compiled, which takes seconds the first time on a machine.
    """
    kind = torch.device(device).type
    missing = _missing(kind)
    if missing is not None:
        raise ValueError(f"compiling for {kind} needs {missing}; install it, or do not compile")
    try:
        torch.compile(_trial)(torch.ones(8, device=device))
    except Exception as error:  # whatever compilers, linkers and torch's own passes raise
        reason = str(error).strip().split("\n", 1)[0]
        raise ValueError(
            f"torch cannot compile for {kind} here, {type(error).__name__}: {reason}"
        ) from error


def _trial(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1


def _missing(kind: str) -> str | None:
    """What torch needs to compile for a kind of device and does not find; None if it has all."""
    if kind == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "triton (pip install triton) and a GPU that it supports"
    if kind == "cpu":
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        return None if shutil.which(compiler) else f"a C++ compiler, and {compiler} is not found"
    return None
