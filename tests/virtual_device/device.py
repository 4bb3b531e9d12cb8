"""Tensors that carry `cuda:0` or `cuda:1` and compute on the CPU.

Inside `with virtual_devices() as waits:` an operator raises `DeviceError` where CUDA would refuse
tensors of two devices, and what would block the host (a copy from or to unpinned memory, a value
read back, a count that only the device knows) is added to `waits`. Says nothing of kernels, dtypes,
CUDA's numbers or times.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.cpp_extension import include_paths, library_paths

import llava

aten = torch.ops.aten
FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")

#: Operators whose result has a size that the host has to be told.
COUNTING = (
    aten.nonzero,
    aten.masked_select,
    aten.bincount,
    aten.unique_dim,
    aten._unique2,
    aten.unique_consecutive,
)
INDEXING = (aten.index, aten._unsafe_index)
INDEX_WRITING = (aten.index_put, aten.index_put_, aten._index_put_impl_)


class DeviceError(RuntimeError):
    """What CUDA would not do."""


class Wait(NamedTuple):
    """Something that blocks the host: "to device", "to host", "item", "count" or "bool index"."""

    kind: str
    operator: str
    line: str


#: Where waits are noted, None outside `virtual_devices`; and host tensors that are pinned there.
_waits: list[Wait] | None = None
_pinned: list[Tensor] = []


def why_not() -> str | None:
    """Why there can be no virtual device here, None if there can."""
    if torch.cuda.is_available():
        return "a real CUDA device is here"
    if shutil.which("g++") is None:
        return "no g++ to compile tests/virtual_device/guard.cpp"
    return None


def _load_guard() -> None:
    """Compile guard.cpp, once a machine and version of torch, and load it, once a process.

    Processes that compile at the same time do so side by side; whole files are put in place.
    """
    source = Path(__file__).with_name("guard.cpp")
    version = f"{torch.__version__} {torch.compiled_with_cxx11_abi()} {source.read_text()}"
    name = f"virtual-device-{os.getuid()}-{hashlib.sha256(version.encode()).hexdigest()[:16]}.so"
    library = Path(tempfile.gettempdir()) / name
    if not library.exists():
        part = library.with_suffix(f".{os.getpid()}")
        options = ["-O1", "-std=c++20", "-shared", "-fPIC", "-lc10"]
        options.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
        options += [f"-I{path}" for path in include_paths()]
        options += [f"-L{path}" for path in library_paths()]
        subprocess.run(["g++", source, "-o", part, *options], check=True)
        part.replace(library)
    ctypes.CDLL(str(library))


class VirtualTensor(torch.Tensor):
    """`value`, a CPU tensor, said to be on `device`."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor, device: torch.device) -> VirtualTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            value.size(),
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=device,
        )
        tensor.value = value
        return tensor

    def __init__(self, value: Tensor, device: torch.device) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"VirtualTensor({tuple(self.shape)}, {self.dtype}, {self.device})"

    # These would make tensors from lists on a device that is not there.

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_without_lists(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_without_lists(index), value)

    def tolist(self) -> Any:
        return self.to("cpu").tolist()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": self.device, **options})


def _without_lists(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_without_lists, index))
    return torch.tensor(index) if isinstance(index, list) else index


class _Mode(TorchDispatchMode):
    """Sees the operators that make tensors out of none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def virtual_devices() -> Iterator[list[Wait]]:
    """Inside, `cuda:0` and `cuda:1` can be used; gives the list to which waits are added."""
    global _waits
    _load_guard()
    make = torch.tensor

    def tensor(data: Any, *, device: Any = None, pin_memory: bool = False, **options: Any):
        made = make(data, **options)
        made = made.pin_memory() if pin_memory else made
        return made if device is None else made.to(device)

    def as_tensor(data: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
        if isinstance(data, Tensor):
            return data.to(device=data.device if device is None else device, dtype=dtype)
        return tensor(data, dtype=dtype, device=device)

    def pinned(self: Tensor, device: Any = None) -> Tensor:
        _pinned.append(self if is_pinned(self) else self.clone())
        return _pinned[-1]

    patches = [
        mock.patch.object(torch, "tensor", tensor),
        mock.patch.object(torch, "as_tensor", as_tensor),
        mock.patch.object(torch.cuda, "_lazy_init", lambda: None),
        mock.patch.object(torch.Tensor, "pin_memory", pinned),
        mock.patch.object(torch.Tensor, "is_pinned", is_pinned),
    ]
    outer, _waits = _waits, []
    try:
        for patch in patches:
            patch.start()
        with _Mode():
            yield _waits
    finally:
        for patch in reversed(patches):
            patch.stop()
        _waits = outer
        if outer is None:
            _pinned.clear()


def is_pinned(tensor: Tensor, device: Any = None) -> bool:
    """Whether a host tensor lies in memory that `pin_memory` gave it."""
    storage = tensor.untyped_storage()._cdata
    return any(storage == pinned.untyped_storage()._cdata for pinned in _pinned)


_LLAVA = f"{Path(llava.__file__).parent}{os.sep}"


def running_line() -> str:
    """The running line of llava, and of transformers if that is called from there."""
    frame, called = sys._getframe(1), ""
    while frame is not None:
        path = frame.f_code.co_filename
        place = f"{path.partition('/site-packages/')[2]}:{frame.f_lineno}"
        if path.startswith(_LLAVA):
            place = f"{path[len(_LLAVA) :]}:{frame.f_lineno}"
            return f"{place} > {called}" if called else place
        called = called or (place if place.startswith("transformers/") else "")
        frame = frame.f_back
    return called or "?"


def _note(kind: str, func: Any) -> None:
    if _waits is not None:
        _waits.append(Wait(kind, str(func), running_line()))


def _place(device: Any) -> torch.device:
    device = torch.device(device)
    return FIRST if device.type == "cuda" and device.index is None else device


def host_value(argument: Any) -> Any:
    """An operator's argument with the values of virtual tensors in their place."""
    if isinstance(argument, VirtualTensor):
        return argument.value
    if isinstance(argument, (list, tuple)):
        return type(argument)(map(host_value, argument))
    return argument


def _tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from _tensors(argument)


def _run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Do on the CPU what CUDA would do, note what waits, and raise what it would raise."""
    given = kwargs.get("device")
    tensors = list(_tensors((*args, *kwargs.values())))
    virtual = [x for x in tensors if isinstance(x, VirtualTensor)]
    if not virtual and (given is None or torch.device(given).type == "cpu"):
        return func(*args, **kwargs)
    packet = func.overloadpacket
    if packet is aten._to_copy:
        return _copied(func, args[0], kwargs)
    if packet is aten.copy_:
        waits = not (len(args) > 2 and args[2])
        _note_copy(func, args[1], args[0].device, waits)
        host_value(args[0]).copy_(host_value(args[1]))
        return args[0]
    if packet in INDEXING + INDEX_WRITING:
        _check_index(func, *args)
    else:
        _check_devices(func, tensors)
    if packet in (aten._local_scalar_dense, aten.equal):
        _note("item", func)
    sized = kwargs.get("output_size") is not None
    if packet in COUNTING or (packet is aten.repeat_interleave and not sized):
        _note("count", func)

    device = _place(given) if given is not None else virtual[0].device
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != device.type:
        raise DeviceError(f"{func}: a generator of {generator.device} at {running_line()}")
    options = {k: host_value(v) for k, v in kwargs.items() if k != "pin_memory"}
    if given is not None:
        options["device"] = torch.device("cpu")
    wrappers = {id(x.value): x for x in virtual}  # of what is changed in place

    def wrapped(result: Any) -> Any:
        if isinstance(result, (list, tuple)):
            return type(result)(map(wrapped, result))
        if not isinstance(result, Tensor) or isinstance(result, VirtualTensor):
            return result
        if (same := wrappers.get(id(result))) is not None:
            return same
        return result if device.type == "cpu" else VirtualTensor(result, device)

    result = wrapped(func(*host_value(args), **options))
    if torch.Tag.inplace_view in func.tags:  # the wrapper gets its new shape, too
        with no_dispatch():
            func(*args, **kwargs)
    return result


def _copied(func: Any, source: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    options = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory", "non_blocking")}
    device = _place(kwargs.get("device") or source.device)
    _note_copy(func, source, device, not kwargs.get("non_blocking"))
    copy = func(host_value(source), **options)
    return copy if device.type == "cpu" else VirtualTensor(copy, device)


def _note_copy(func: Any, source: Tensor, device: torch.device, waits: bool) -> None:
    here, there = source.device.type, device.type
    if not source.numel():
        return
    if (here, there) == ("cpu", "cuda") and (waits or not is_pinned(source)):
        _note("to device", func)
    elif (here, there) == ("cuda", "cpu") and waits:
        _note("to host", func)


def _check_index(func: Any, tensor: Tensor, indices: Any, values: Any = None, *_: Any) -> None:
    """Indices may be on the host, where the tensor is not; values may be a number there."""
    filling = isinstance(values, Tensor) and values.numel() == 1  # which becomes masked_fill
    for index in indices:
        if not isinstance(index, Tensor):
            continue
        if index.device.type == "cuda" and index.device != tensor.device:
            raise DeviceError(
                f"{func}: indices on {index.device} of a tensor on {tensor.device} at "
                f"{running_line()}"
            )
        if index.device.type == "cpu" and tensor.device.type == "cuda":
            _note("to device", func)
        if index.dtype in (torch.bool, torch.uint8) and not filling:
            _note("bool index", func)
    if isinstance(values, Tensor) and values.dim() and values.device != tensor.device:
        raise DeviceError(
            f"{func}: values on {values.device} for a tensor on {tensor.device} at {running_line()}"
        )


def _check_devices(func: Any, tensors: list[Tensor]) -> None:
    """All on one device, but for single values on the host."""
    devices = {str(x.device) for x in tensors if x.device.type == "cuda" or x.dim()}
    if len(devices) > 1:
        raise DeviceError(
            f"{func}: expected all tensors on one device, got {', '.join(sorted(devices))} at "
            f"{running_line()}"
        )
