"""Operators and waits are those that a run has, and a profile's launches are told from the rest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from llava.analysis.launches import Counts, Launches, count, launches_in, profile_launches

X = torch.arange(4.0)
MASK = X > 1
INDEX = torch.tensor([0, 2])
ONES = torch.ones(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda: (X + 1) * 2, Counts(2, 0)),
        (lambda: X.view(2, 2).transpose(0, 1)[0], Counts(0, 0)),
        (lambda: X[INDEX], Counts(1, 0)),
        (lambda: X[MASK], Counts(1, 1)),
        (lambda: torch.tensor([1, 2]), Counts(0, 1)),
        (lambda: torch.tensor([]), Counts(0, 0)),
        (lambda: torch.as_tensor(X), Counts(1, 0)),
        (lambda: torch.as_tensor([1.0]), Counts(0, 1)),
        (lambda: torch.arange(4), Counts(1, 0)),
        (lambda: X.sum().item(), Counts(2, 1)),
        (lambda: int(X[0]), Counts(1, 1)),
        (lambda: bool(MASK.any()), Counts(2, 1)),
        (lambda: MASK.nonzero(), Counts(1, 1)),
        (lambda: torch.where(MASK), Counts(1, 1)),
        (lambda: torch.where(MASK, X, X), Counts(1, 0)),
        (lambda: X.repeat_interleave(ONES), Counts(1, 1)),
        (lambda: X.repeat_interleave(ONES, output_size=4), Counts(1, 0)),
        (lambda: X.repeat_interleave(2), Counts(1, 0)),
    ],
)
def test_operators_and_waits(run: Callable[[], object], expected: Counts) -> None:
    with torch.inference_mode():
        assert count(run) == expected


@pytest.mark.parametrize("name", ["tolist", "cpu", "numpy"])
def test_reading_all_values_is_one_wait(name: str) -> None:
    with torch.inference_mode():
        assert count(getattr(X, name)).waits == 0  # bound before anybody watched
        assert count(lambda: getattr(X, name)()).waits == 1


def test_nothing_is_watched_afterwards() -> None:
    before = torch.tensor, torch.as_tensor, torch.Tensor.tolist

    def fail() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        count(fail)
    assert (torch.tensor, torch.as_tensor, torch.Tensor.tolist) == before


def test_a_profile_is_of_cuda_devices() -> None:
    called = []
    assert profile_launches(lambda: called.append(1), torch.device("cpu")) is None
    assert not called


def test_launches_among_events() -> None:
    names = [
        "aten::add",
        "cudaLaunchKernel",
        "cudaLaunchKernelExC",
        "cuLaunchKernel",
        "void at::native::vectorized_elementwise_kernel<4>",
        "cudaMemcpyAsync",
        "Memcpy HtoD (Pageable -> Device)",
        "Memcpy DtoH (Device -> Pageable)",
        "Memcpy DtoD (Device -> Device)",
        "cudaDeviceSynchronize",
    ]
    assert launches_in(names) == Launches(kernels=3, copies=2)


@pytest.mark.gpu
def test_launches_of_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = torch.ones(4, device="cuda")
    launches = profile_launches(lambda: (x + 1).cpu(), x.device)
    assert launches == Launches(kernels=1, copies=1)
