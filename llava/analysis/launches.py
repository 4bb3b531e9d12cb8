"""What a run asks of a device: operators, waits for the host, and a GPU's kernels and copies.

At batch 1 a fast GPU spends a prefill on the number of operators, 5 to 10 microseconds each
whatever their size, and on waiting. Operators and waits can be counted without a GPU: they are the
same calls on the CPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: Operators that only look at memory in another way: no work for a device.
# fmt: off
VIEWS = frozenset({
    "_unsafe_view", "alias", "as_strided", "detach", "detach_", "expand", "flatten",
    "lift_fresh", "narrow", "permute", "reshape", "select", "slice", "split", "squeeze",
    "t", "transpose", "unflatten", "unsqueeze", "view",
})
# fmt: on
_READS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


@dataclass(frozen=True)
class Counts:
    """operators: those that do work, views left out; a `to` counts even if it changes nothing.

    waits: where a GPU would stop for the host, since host data becomes a tensor (`torch.tensor`,
        `as_tensor`) or a value is read (`item`, `tolist`, `cpu`, `numpy`, a condition, a boolean
        index, and other operators whose output has a size that depends on values). Tensors that
        were to stay on the host count, too: on a CPU all do.
    """

    operators: int
    waits: int


@dataclass(frozen=True)
class Launches:
    """What the profiler saw: kernels launched, and copies between host and device."""

    kernels: int
    copies: int


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operators = self.waits = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.operators += _name(function) not in VIEWS
        self.waits += _reads(function, args, kwargs)
        return function(*args, **kwargs)


def _name(function: Any) -> str:
    return function._schema.name.partition("::")[2]


def _reads(function: Any, args: Any, kwargs: Any) -> bool:
    """Whether the host must know values of its input to run an operator."""
    name = _name(function)
    if name in ("index", "index_put", "index_put_"):
        return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    if name == "repeat_interleave":
        counted = any(isinstance(a, Tensor) for a in args[1:]) or len(args) == 1
        return counted and kwargs.get("output_size") is None
    if name == "where" and len(args) == 1:
        return True
    return name == "is_nonzero" or any(tag in function.tags for tag in _READS)


@contextmanager
def _watched_calls() -> Iterator[list[str]]:
    """Names of the calls inside that dispatch no operator of their own and make a GPU wait."""
    calls: list[str] = []
    watched: list[tuple[Any, str]] = [(torch, "tensor"), (torch, "as_tensor")]
    watched += [(Tensor, name) for name in ("tolist", "cpu", "numpy")]
    originals = [(owner, name, getattr(owner, name)) for owner, name in watched]

    def watch(owner: Any, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            # An empty tensor has nothing to copy, and `as_tensor` of a tensor is that tensor.
            data = args[0] if args else kwargs.get("data")
            if owner is Tensor or (result.numel() and not isinstance(data, Tensor)):
                calls.append(name)
            return result

        return call

    for owner, name, original in originals:
        setattr(owner, name, watch(owner, name, original))
    try:
        yield calls
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def count(run: Callable[[], object]) -> Counts:
    """Operators and waits of one call of `run`. Nothing else may run torch meanwhile."""
    with _watched_calls() as calls, _Operators() as seen:
        run()
    return Counts(seen.operators, seen.waits + len(calls))


def profile_launches(run: Callable[[], object], device: torch.device) -> Launches | None:
    """What one call of `run` launches on a CUDA device; None on other devices."""
    if device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    # Calls of the CUDA runtime are among CUDA's activities; the CPU's would only take time.
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize(device)
    return launches_in(event.name for event in profiler.events())


def launches_in(names: Iterable[str]) -> Launches:
    """The launches among names of profiled events, as the CUDA runtime and driver call them."""
    kernels = copies = 0
    for name in names:
        kernels += re.match(r"(cu|hip)\w*Launch\w*Kernel", name) is not None
        copies += re.match(r"Memcpy (HtoD|DtoH)", name) is not None
    return Launches(kernels, copies)
