"""bending_loss on every backend, against differences in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from neuralreg.kernels import bending_loss

from .common import On, assert_near, assert_relative, assert_same_for_any_threads, leaf, serving, strided

BENDING = serving("bending_loss")
SPACINGS = {2: (0.5, 3.0), 3: (0.5, 3.0, 1.25)}


def oracle(u: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """Place by place: second differences along an axis, mixed ones twice."""
    x, ndim, total = u.double().numpy(), u.ndim - 2, 0.0
    for k in range(ndim):
        for m in range(k, ndim):
            d = np.diff(np.diff(x, axis=k + 2), axis=m + 2) / (spacing[k] * spacing[m])
            if d.size:
                total += (1 if k == m else 2) * float((d**2).mean())
    return torch.tensor(total, dtype=torch.float64)


@pytest.mark.parametrize("on", BENDING)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "sizes",
    [[5, 4, 7], [6, 5], [1, 4, 3], [3, 1, 1], [1, 1, 1], [2, 2, 2], [1, 6], [3, 5], [2, 9, 1]],
    ids=str,
)
def test_value_and_gradient(on: On, channels: int, sizes: list[int]) -> None:
    u = torch.randn(2, channels, *sizes, dtype=torch.float64)
    spacing = SPACINGS[len(sizes)]
    actual = on(bending_loss, u, spacing)
    assert actual.ndim == 0
    assert_near(actual, oracle(u, spacing), 1e-12)
    assert torch.autograd.gradcheck(lambda v: on(bending_loss, v, spacing), (leaf(u),))


@pytest.mark.parametrize("on", BENDING)
def test_hand_computed_values(on: On) -> None:
    y, x = torch.meshgrid(torch.arange(6.0).double(), torch.arange(5.0).double(), indexing="ij")
    square = (x * x)[None, None]  # second difference 2 along x, nothing else
    assert_near(on(bending_loss, square), torch.tensor(4.0).double(), 1e-12)
    twist = (3 * x * y)[None, None]  # mixed difference 3, counted twice
    assert_near(on(bending_loss, twist), torch.tensor(18.0).double(), 1e-12)
    assert_near(on(bending_loss, twist, (2.0, 0.5)), torch.tensor(18.0).double(), 1e-12)
    assert_near(on(bending_loss, square, (2.0, 0.5)), torch.tensor(64.0).double(), 1e-12)
    assert float(on(bending_loss, (2 * x - 7 * y + 3)[None, None])) == 0  # affine


@pytest.mark.parametrize("on", serving("bending_loss", "reference"))
def test_second_derivatives_of_the_reference(on: On) -> None:
    u = leaf(torch.randn(1, 2, 4, 3, 5, dtype=torch.float64))
    assert torch.autograd.gradgradcheck(lambda v: on(bending_loss, v), (u,), fast_mode=True)


def with_gradient(on: On, u: Tensor) -> list[Tensor]:
    v = leaf(u)
    value = on(bending_loss, v, (1.0, 2.0, 0.5))
    return [value.detach(), *torch.autograd.grad(-1.5 * value, v)]


@pytest.mark.parametrize("on", BENDING)
def test_float32(on: On) -> None:
    u = torch.randn(1, 3, 11, 13, 17)
    exact = with_gradient(On("reference", "cpu"), u.double())
    for one, other in zip(with_gradient(on, u), exact, strict=True):
        assert one.dtype == torch.float32
        assert_relative(one, other, 2e-6)  # two dozen roundings of 6e-8
    whole = torch.randint(-8, 9, u.shape) / 16  # exact in float32 beside 1e4 as well
    for one, other in zip(with_gradient(on, whole + 1e4), with_gradient(on, whole), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("on", BENDING)
def test_strides_empty_and_nan(on: On) -> None:
    u = torch.randn(2, 3, 5, 6, 4, dtype=torch.float64)
    for view in strided(u):
        for one, other in zip(with_gradient(on, view), with_gradient(on, u), strict=True):
            assert_near(one, other, 1e-13)
    value, gradient = with_gradient(on, u[:0])
    assert (value.item(), gradient.shape) == (0, (0, 3, 5, 6, 4))
    u[1, 2, 2, 2, 2] = float("nan")
    value, gradient = with_gradient(on, u)
    assert bool(value.isnan())
    assert bool(gradient[1, 2, 2, 2, 2].isnan())
    assert bool(gradient[0].isfinite().all())


@pytest.mark.parametrize("on", serving("bending_loss", "cpu"))
def test_same_bits_for_any_number_of_threads(on: On) -> None:
    u = torch.randn(1, 3, 37, 41, 35)
    assert_same_for_any_threads(lambda: with_gradient(on, u))


@pytest.mark.parametrize("on", BENDING)
@pytest.mark.parametrize(
    ("u", "spacing", "message"),
    [
        (torch.rand(1, 2, 4, 5), (1.0,), "spacing"),
        (torch.rand(4, 5), None, "displacement"),
        (torch.ones(1, 2, 4, 5).int(), None, "float"),
    ],
)
def test_wrong_arguments(on: On, u: Tensor, spacing: tuple[float, ...] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on(bending_loss, u, spacing)
