"""The triton backend's differences between lattice neighbours, in tiles, against the reference in float64.

These run where triton serves: on a GPU, or on the CPU with TRITON_INTERPRET=1 (see test_triton.py).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import (
    bending_loss,
    diffusion_loss,
    jacobian_determinant,
    jacobian_loss,
    jacobian_penalty,
)
from neuralreg.kernels.backends import registry

from .common import On, assert_near, assert_relative, leaf, serving, strided

ON = serving("jacobian_loss", "triton")
REFERENCE = On("reference", "cpu")
pytestmark = pytest.mark.skipif(
    not ON, reason=f"triton serves nothing here: {registry.available('triton')[1]}"
)
SIZES = [[4, 3, 5], [5, 4], [1, 2, 3], [3, 1, 1], [2, 2, 2], [1, 1]]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few voxels a program, as large fields have them."""
    from neuralreg.kernels.backends import triton_lattice

    monkeypatch.setattr(triton_lattice, "TILE", 32)


def results(on: On, function: Any, u: Tensor, *args: Any, **options: Any) -> list[Tensor]:
    """The value, and the gradient of a weighted sum of it."""
    u = leaf(u)
    found = on(function, u, *args, **options)
    value = found[0] if isinstance(found, tuple) else found
    weights = torch.linspace(-1, 2, value.numel() + 1, dtype=value.dtype)[1:].view_as(value)
    (gradient,) = torch.autograd.grad((value * weights).sum(), u)
    return [*[v.detach() for v in (found if isinstance(found, tuple) else (found,))], gradient]


def compare(on: On, function: Any, u: Tensor, *args: Any, bound: float = 1e-11, **options: Any) -> None:
    actual = results(on, function, u, *args, **options)
    for one, other in zip(actual, results(REFERENCE, function, u.double(), *args, **options), strict=True):
        assert_near(one, other, bound)


def field(sizes: list[int], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, len(sizes), *sizes, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize(
    ("scheme", "sizes"),
    [
        *(("forward", [4, 3, 5]), ("forward", [5, 4]), ("forward", [1, 2, 3]), ("forward", [1, 1])),
        *(("backward", [5, 4]), ("backward", [2, 2, 2]), ("central", [5, 4]), ("central", [3, 1, 1])),
    ],
    ids=str,
)
@pytest.mark.usefixtures("small_tiles")
def test_jacobians(on: On, scheme: str, sizes: list[int]) -> None:
    u, spacing = field(sizes)[: 4 - len(sizes)], (1.0, 0.3, 2.0)[: len(sizes)]
    compare(on, jacobian_loss, u, spacing, scheme, threshold=0.7, return_folds=True)
    if len(sizes) == 2:
        compare(on, jacobian_determinant, u, spacing, scheme)
        compare(on, jacobian_loss, u, None, scheme, "unit")


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.usefixtures("small_tiles")
def test_smoothness(on: On, sizes: list[int]) -> None:
    u, spacing = torch.randn(2, 1, *sizes, dtype=torch.float64), (1.0, 0.3, 2.0)[: len(sizes)]
    compare(on, diffusion_loss, u, spacing)
    compare(on, bending_loss, u, spacing, bound=1e-10)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("count", [0, 1, 33])
@pytest.mark.usefixtures("small_tiles")
def test_jacobian_penalty(on: On, ndim: int, count: int) -> None:
    jacobians = torch.randn(count, ndim, ndim, dtype=torch.float64)
    compare(on, jacobian_penalty, jacobians, "relu", 0.4, return_folds=True)
    compare(on, jacobian_penalty, jacobians, "unit")
    compare(on, jacobian_penalty, jacobians.float(), "relu", 0.4, bound=1e-5)


@pytest.mark.parametrize("on", ON)
def test_gradcheck(on: On) -> None:
    u = leaf(0.2 * field([3, 4])[:1])
    for function in (jacobian_determinant, diffusion_loss, bending_loss):
        assert torch.autograd.gradcheck(lambda v, f=function: on(f, v), (u,), fast_mode=True)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rounding(on: On, dtype: torch.dtype) -> None:
    """Sums are float64, so only differences, and results, are rounded."""
    u = field([6, 5, 7], dtype)
    bound = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    for function in (jacobian_determinant, diffusion_loss, bending_loss):
        actual = results(on, function, u)
        expected = results(REFERENCE, function, u.double())
        assert_relative(actual[0], expected[0], bound if function is jacobian_determinant else 1e-5)
        assert_relative(actual[-1], expected[-1], bound)


@pytest.mark.parametrize("on", ON)
def test_strides_nothing_and_the_same_bits_again(on: On) -> None:
    u = field([4, 5])
    for function in (jacobian_loss, jacobian_determinant, diffusion_loss, bending_loss):
        expected = results(on, function, u)
        assert all(torch.equal(a, b) for a, b in zip(results(on, function, u), expected, strict=True))
        for v in strided(u):
            for one, other in zip(results(on, function, v), expected, strict=True):
                assert_near(one, other, 1e-12)
        nothing = results(on, function, u[:0])
        assert nothing[-1].shape == (0, 2, 4, 5)
        assert torch.count_nonzero(nothing[0]) == 0


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("function", [jacobian_loss, diffusion_loss, bending_loss])
def test_nan_reaches_its_neighbours_only(on: On, function: Any) -> None:
    u = field([7, 6, 8])[:1]
    clean = results(on, function, u)[-1]
    u[0, 1, 3, 3, 3] = float("nan")
    gradient = results(on, function, u)[-1]
    near = torch.zeros(gradient.shape, dtype=torch.bool)
    near[..., 1:6, 1:6, 1:6] = True
    assert bool(gradient[near].isnan().any())
    assert torch.equal(gradient[~near], clean[~near])
