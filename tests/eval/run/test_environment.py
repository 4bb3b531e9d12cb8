"""The git state is that of this package; memory is that of the devices a model is on."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook
from torch import nn

from llava.eval.run import environment


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package folder that is taken for ours, and git in it."""
    (tmp_path / "__init__.py").write_text("x = 1\n")
    monkeypatch.setattr(environment, "_PACKAGE", tmp_path)

    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        subprocess.run(command, check=True, capture_output=True)

    return tmp_path, git


def test_git_state(package):
    folder, git = package
    assert environment.git_state() == (None, None)
    git("init")
    assert environment.git_state() == (None, None)  # a repository that does not hold the package
    git("add", "__init__.py")
    git("commit", "-m", "first")
    commit, dirty = environment.git_state()
    assert len(commit) == 40 and dirty is False
    (folder / "notes.txt").write_text("untracked files change no answer")
    assert environment.git_state() == (commit, False)
    (folder / "__init__.py").write_text("x = 2\n")
    assert environment.git_state() == (commit, True)


@pytest.mark.parametrize("name", ["new.py", "sub/new.py", "built.so", "run.sh"])
def test_untracked_code_counts(package, name):
    folder, git = package
    git("init")
    git("add", "__init__.py")
    git("commit", "-m", "first")
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("y = 1\n")
    assert environment.git_state()[1] is True
    # Python runs what git ignores all the same.
    (folder / ".git" / "info" / "exclude").write_text("new.py\n*.so\n*.sh\n")
    assert environment.git_state()[1] is True
    path.unlink()
    assert environment.git_state()[1] is False


def test_untracked_code_beside_the_package_counts_unless_git_ignores_it(package, monkeypatch):
    folder, git = package
    git("init")
    (folder / "inner").mkdir()
    (folder / "__init__.py").rename(folder / "inner" / "__init__.py")
    monkeypatch.setattr(environment, "_PACKAGE", folder / "inner")
    git("add", "inner")
    git("commit", "-m", "first")
    assert environment.git_state()[1] is False
    (folder / "sitecustomize.py").write_text("y = 1\n")
    assert environment.git_state()[1] is True
    (folder / ".git" / "info" / "exclude").write_text("sitecustomize.py\n")
    assert environment.git_state()[1] is False


def test_the_processor_and_its_memory_have_values():
    cpu = torch.device("cpu")
    assert environment.device_name(cpu)
    assert environment.peak_memory_bytes(cpu) > 1_000_000


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux can reset peaks")
def test_the_peak_of_the_process_begins_anew():
    cpu = torch.device("cpu")
    environment.reset_peak_memory(cpu)
    before = environment.peak_memory_bytes(cpu)
    held = torch.ones(16_000_000)
    peak = environment.peak_memory_bytes(cpu)
    assert peak - before >= 60_000_000
    del held
    assert environment.peak_memory_bytes(cpu) > peak - 5_000_000  # Linux counts in steps
    environment.reset_peak_memory(cpu)
    assert environment.peak_memory_bytes(cpu) < peak - 50_000_000


class TestDevices:
    @pytest.fixture
    def cuda(self, monkeypatch):
        """Peaks of three CUDA devices, of which the second is the current one."""
        peaks = {0: 100, 1: 20, 2: 3}
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda d: peaks[d.index])
        monkeypatch.setattr(
            torch.cuda, "reset_peak_memory_stats", lambda d: peaks.update({d.index: 0})
        )
        return peaks

    def test_peaks_are_of_the_devices_that_are_measured(self, cuda):
        first, second, third = (torch.device("cuda", i) for i in range(3))
        assert environment.peak_memory_bytes(third) == 3
        assert environment.peak_memory_bytes(first, third) == 103
        assert environment.peak_memory_bytes(first, torch.device("cpu")) == 100
        environment.reset_peak_memory(first, third)
        assert cuda == {0: 0, 1: 20, 2: 0}
        assert environment.peak_memory_bytes(first, second) == 20

    def test_devices_of_a_model(self, cuda):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
        assert environment.devices_of(model) == (torch.device("cpu"),)
        model[0].to("meta")  # kept elsewhere; the others stay on the processor
        model[0]._hf_hook = AlignDevicesHook(execution_device="cuda:2")
        assert environment.devices_of(model) == (torch.device("cuda", 2),)
        hooks = AlignDevicesHook(io_same_device=True), AlignDevicesHook(execution_device="cuda")
        model[1]._hf_hook = SequentialHook(*hooks)
        expected = (torch.device("cuda", 1), torch.device("cuda", 2))
        assert environment.devices_of(model) == expected
        with_device = SimpleNamespace(device="cpu")
        assert environment.devices_of(with_device) == (torch.device("cpu"),)
