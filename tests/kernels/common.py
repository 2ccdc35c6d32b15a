"""Running one test on every backend that serves an op here, and judging errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralreg.kernels.backends import registry


@dataclass(frozen=True)
class On:
    """A backend on a device. Calling it runs a public function there, on tensors of the CPU."""

    backend: str
    device: str

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        moved = self._move(args, self.device)
        options = {name: self._move(value, self.device) for name, value in kwargs.items()}
        return self._move(function(*moved, **options, backend=self.backend), "cpu")

    def _move(self, value: Any, device: str) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        if isinstance(value, (list, tuple)) and any(isinstance(v, (Tensor, tuple)) for v in value):
            moved = [self._move(v, device) for v in value]
            return value._make(moved) if hasattr(value, "_make") else type(value)(moved)
        return value


def serving(op: str, *only: str) -> list[Any]:
    """pytest params: every backend and device of this machine that serves the public function ``op``."""
    found = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for name in only or registry.BACKENDS:
            try:
                registry.choose(op, torch.device(device), name)
            except registry.BackendError:
                continue
            marks = [pytest.mark.gpu] if device == "cuda" else []
            found.append(pytest.param(On(name, device), id=f"{name}-{device}", marks=marks))
    return found


def assert_near(actual: Tensor, expected: Tensor, bound: float) -> None:
    """The largest error is at most ``bound`` times the largest expected magnitude (at least 1)."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if expected.numel() == 0:
        return
    error = (actual.double() - expected.double()).abs().max().item()
    allowed = bound * max(1.0, expected.abs().max().item())
    assert error <= allowed, f"error {error:.3g} is above {allowed:.3g}"


def assert_relative(actual: Tensor, expected: Tensor, bound: float) -> None:
    """The largest error is at most ``bound`` times the largest expected magnitude, which is not 0."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    scale = expected.abs().max().item()
    assert scale > 0, "nothing to compare with: the expected values are all 0"
    error = (actual.double() - expected.double()).abs().max().item()
    assert error <= bound * scale, f"relative error {error / scale:.3g} is above {bound:.3g}"


def leaf(tensor: Tensor) -> Tensor:
    """A copy, same strides, that collects a gradient."""
    return tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with ``count`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_same_for_any_threads(compute: Callable[[], list[Tensor]]) -> None:
    """``compute`` gives the same bits with one, two and three threads."""
    with threads(1):
        expected = compute()
    for count in (2, 3):
        with threads(count):
            actual = compute()
        for one, other in zip(expected, actual, strict=True):
            assert torch.equal(one, other), f"{count} threads give other bits than one"


def strided(tensor: Tensor) -> list[Tensor]:
    """The same values with other strides: every second voxel of a larger tensor, and transposed."""
    large = torch.full([2 * n for n in tensor.shape], float("nan"), dtype=tensor.dtype)
    sparse = large[tuple(slice(1, None, 2) for _ in tensor.shape)]
    sparse.copy_(tensor)
    order = list(range(tensor.ndim))[::-1]
    transposed = tensor.permute(order).contiguous().permute(order)
    return [sparse, transposed]
