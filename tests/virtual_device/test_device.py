"""The virtual devices refuse what CUDA refuses, note what waits, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from .device import (
    FIRST,
    SECOND,
    DeviceError,
    VirtualTensor,
    virtual_devices,
    why_not,
)
from .placement import move

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def vector(device: torch.device | str = FIRST) -> torch.Tensor:
    return torch.arange(4.0, device=device)


REFUSED: list[Callable[[], object]] = [
    lambda: vector() + vector("cpu"),
    lambda: vector() + vector(SECOND),
    lambda: vector()[vector(SECOND).long()],
    lambda: vector("cpu")[vector().long()],
    lambda: torch.cat([vector(), vector("cpu")]),
    lambda: vector().masked_fill_(vector(SECOND) > 1, 0),
    lambda: vector().index_put_((vector().long(),), vector("cpu")),
    lambda: torch.nn.functional.linear(vector()[None], vector("cpu")[None]),
    lambda: torch.randperm(4, device=FIRST, generator=torch.Generator()),
]


@pytest.mark.parametrize("operation", REFUSED)
def test_tensors_of_two_places_are_refused(operation: Callable[[], object]) -> None:
    with virtual_devices(), pytest.raises(DeviceError, match=r"cuda:\d|generator of cpu"):
        operation()


WAITING: list[tuple[Callable[[], object], str]] = [
    (lambda: torch.tensor([1, 2], device=FIRST), "to device"),
    (lambda: torch.as_tensor([1, 2], device=FIRST), "to device"),
    (lambda: torch.zeros(2).to(FIRST, non_blocking=True), "to device"),  # not pinned
    (lambda: vector()[[0, 2]], "to device"),
    (lambda: vector().cpu(), "to host"),
    (lambda: vector().tolist(), "to host"),
    (lambda: vector()[0].item(), "item"),
    (lambda: bool(vector()[0] > 1), "item"),
    (lambda: vector().nonzero(), "count"),
    (lambda: vector().repeat_interleave(vector().long()), "count"),
    (lambda: vector()[vector() > 1], "bool index"),
]


@pytest.mark.parametrize(("operation", "kind"), WAITING)
def test_what_waits_is_noted(operation: Callable[[], object], kind: str) -> None:
    with virtual_devices() as waits:
        operation()
    assert [wait.kind for wait in waits] == [kind]


FLOWING: list[Callable[[], object]] = [
    lambda: torch.zeros(2).pin_memory().to(FIRST, non_blocking=True),
    lambda: torch.tensor([1, 2], pin_memory=True)[1:].to(FIRST, non_blocking=True),
    lambda: vector().to(SECOND),
    lambda: vector() + torch.tensor(2.0),
    lambda: vector()[vector().long()],
    lambda: vector().topk(2),
    lambda: vector().quantile(vector() / 4),
    lambda: torch.tensor([], device=FIRST),
]


@pytest.mark.parametrize("operation", FLOWING)
def test_what_does_not_wait_is_not(operation: Callable[[], object]) -> None:
    with virtual_devices() as waits:
        operation()
    assert not waits


def test_a_module_computes_on_its_device() -> None:
    linear = torch.nn.Linear(3, 2)
    inputs = torch.randn(5, 3)
    expected = linear(inputs)
    with virtual_devices():
        result = move(linear, SECOND)(inputs.to(SECOND))
        assert isinstance(result, VirtualTensor) and result.device == SECOND
        assert torch.equal(result.cpu(), expected)


def test_nothing_is_left_behind() -> None:
    def patched() -> list[object]:
        of_tensors = [torch.Tensor.pin_memory, torch.Tensor.is_pinned]
        return [torch.tensor, torch.as_tensor, torch.cuda._lazy_init, *of_tensors]

    before = patched()
    with virtual_devices():
        assert all(now is not old for now, old in zip(patched(), before))
    assert patched() == before
    assert not torch.cuda.is_available()
    with pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(2, device="cuda")
    weight = torch.ones(2, requires_grad=True)
    weight.sum().backward()  # autograd counts devices
    assert weight.grad is not None
