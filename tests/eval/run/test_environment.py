"""The git state is that of this package, never that of a repository around it."""

from __future__ import annotations

import subprocess

import pytest
import torch

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
