"""The git state is that of this package, never that of a repository around it."""

from __future__ import annotations

import subprocess

import pytest
import torch

from llava.eval import environment


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


def test_the_processor_and_its_memory_have_values():
    cpu = torch.device("cpu")
    assert environment.device_name(cpu)
    assert environment.peak_memory_bytes(cpu) > 1_000_000
