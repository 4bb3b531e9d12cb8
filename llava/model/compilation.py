"""Compilation of the decoder's layers, which leaves a GPU fewer and larger kernels to launch.

One layer is compiled and all share it (regional compilation), with dynamic shapes, dense and pruned
alike. Samples alone, or batches with padding, need four graphs: a layer of a prefill, one that runs
for the tokens that stay, one that runs for the last token, and a step of decoding. What would add
to them is kept out of the layers: what they are given is the same whatever their number
(`PrunedCache.layer`), whether or not their queries are wanted, and whoever cut a tensor.

Not by `accelerate.utils.compile_regions`: it returns another model and compiles embeddings, tower,
projector, norm and head besides, each with graphs of its own (16 where this needs four).
"""

from __future__ import annotations

import os
import shutil
import sys

import torch
from torch._dynamo import config as dynamo
from torch.fx.experimental import _config as shapes
from torch.utils._triton import has_triton
from transformers import PreTrainedModel

#: Graphs that a layer may have before torch runs it uncompiled: four each for samples alone, for
#: batches with and without padding, and room for beams.
MOST_GRAPHS = 16


def compile_layers(model: PreTrainedModel, backend: str = "inductor") -> None:
    """Have the decoder's layers of `model` compiled, each kind of call when it first happens.

    Two settings of torch change for the whole process: sizes that happen to be equal, such as 128
    tokens and 128 numbers a head, are not taken for one size; and a function may have
    `MOST_GRAPHS`.

    backend: of `torch.compile`; all but "inductor" are for looking at what is compiled.

    Raises ValueError where `check_compiler` does.
    """
    if backend == "inductor":
        check_compiler(model.device)
    shapes.use_duck_shape = False
    dynamo.recompile_limit = max(dynamo.recompile_limit, MOST_GRAPHS)
    for layer in model.get_decoder().layers:
        layer.compile(dynamic=True, backend=backend)


def check_compiler(device: torch.device | str) -> None:
    """Raise ValueError where torch cannot compile for `device`; says what is missing.

    A small function is compiled, which takes seconds the first time on a machine.
    """
    kind = torch.device(device).type
    missing = missing_compiler(kind)
    if missing is not None:
        raise ValueError(f"compiling for {kind} needs {missing}. Install it, or run uncompiled")
    try:
        torch.compile(_trial)(torch.ones(8, device=device))
    except Exception as error:  # compilers, linkers and torch's own passes raise all kinds
        reason = str(error).strip().split("\n", 1)[0]
        raise ValueError(
            f"torch cannot compile for {kind} here ({type(error).__name__}: {reason}). Mend its "
            "compiler, or run uncompiled"
        ) from error


def missing_compiler(kind: str) -> str | None:
    """What torch needs to compile for a kind of device and does not find; None if it has all."""
    if kind == "cuda":
        return None if has_triton() else "triton (pip install triton), on a GPU that it supports"
    if kind == "cpu":
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        return None if shutil.which(compiler) else f"a C++ compiler, and there is no {compiler}"
    return None


def _trial(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1
