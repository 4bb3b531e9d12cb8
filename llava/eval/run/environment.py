"""Where a run takes place: versions, git commit, device, peak memory."""

from __future__ import annotations

import platform
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import llava

_PACKAGE = Path(__file__).resolve().parents[1]
_PROCESS = Path("/proc/self")
_CODE = ("*.py", "*.so", "*.pyd", "*.sh")


def environment(device: torch.device) -> dict[str, Any]:
    """Versions of what computes the answers, the code's git state and the device's name."""
    commit, dirty = _state_of_loaded_code()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "llava": llava.__version__,
        "git_commit": commit,
        "git_dirty": dirty,
        "device": str(device),
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
    }


def git_state() -> tuple[str | None, bool | None]:
    """Commit of the checkout this package runs from and whether it differs; None, None outside.

    It differs with any uncommitted change, and with code that no commit has: Python runs an
    untracked file as well as another, in this package even where git ignores it.
    """
    # An installed copy can lie inside somebody else's repository, which then says nothing about it.
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    states = (
        _git("status", "--porcelain", "-uno"),
        _git("ls-files", "--others", "--exclude-standard", "--", *(f":/{c}" for c in _CODE)),
        _git("ls-files", "--others", "--", *_CODE),
    )
    commit = _git("rev-parse", "HEAD")
    return (None, None) if commit is None or None in states else (commit, any(states))


@cache
def _state_of_loaded_code() -> tuple[str | None, bool | None]:
    # Once a process: what is changed while it runs is not what runs.
    return git_state()


def device_name(device: torch.device) -> str:
    """The accelerator's or the processor's name as its maker gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def devices_of(model: Any) -> tuple[torch.device, ...]:
    """The accelerators that a model computes on, one or several; the processor where there is none.

    Of weights that accelerate keeps elsewhere, its hooks say where they are brought to.
    """
    if not isinstance(model, nn.Module):
        return (torch.device(model.device),)
    devices = {parameter.device for parameter in model.parameters()}
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for part in getattr(hook, "hooks", (hook,)):
            if (device := getattr(part, "execution_device", None)) is not None:
                devices.add(torch.device(device))
    accelerators = {_numbered(device) for device in devices if device.type not in ("cpu", "meta")}
    return tuple(sorted(accelerators, key=str)) or (torch.device("cpu"),)


def _numbered(device: torch.device) -> torch.device:
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def peak_memory_bytes(*devices: torch.device) -> int | None:
    """Most memory held since the last reset: by tensors on these CUDA devices together, else by
    this process.

    None where the platform does not say.
    """
    if cuda := [device for device in devices if device.type == "cuda"]:
        return sum(torch.cuda.max_memory_allocated(device) for device in cuda)
    try:  # what getrusage says may be of the program that started this one
        for line in _PROCESS.joinpath("status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory(*devices: torch.device) -> None:
    """Let `peak_memory_bytes` of these devices begin anew, where the platform can."""
    if cuda := [device for device in devices if device.type == "cuda"]:
        for device in cuda:
            torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        _PROCESS.joinpath("clear_refs").write_text("5")  # proc(5): the peak becomes what is held


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock measures work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(_PACKAGE), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def shortage_in(error: BaseException) -> str | None:
    """What ran out, None if the error is something else."""
    text = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return "out of memory"
    if "out of memory" in text or "can't allocate memory" in text:  # MPS and CPU allocators
        return "out of memory"
    if "DataLoader worker" in text:
        return f"an image worker died, as they do when memory runs out ({text.splitlines()[0]})"
    return None
