"""compose and invert on every backend, against affine maps and scipy's interpolation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from neuralreg.kernels import compose, invert
from neuralreg.kernels.backends.registry import BackendError

from .common import On, assert_near, leaf, serving, strided
from .sampling_oracle import identity

COMPOSE = INVERT = serving("warp")  # both are made of warps: they run where it does


def smooth(sizes: list[int], amplitude: float, batch: int = 1) -> Tensor:
    """A displacement of ``amplitude`` voxels that varies over about six voxels."""
    noise = np.random.default_rng(3).standard_normal((batch, len(sizes), *sizes))
    u = ndimage.gaussian_filter(noise, (0, 0, *[3.0] * len(sizes)), mode="nearest")
    return torch.from_numpy(amplitude * u / np.abs(u).max())


def linear(matrix: Tensor, shift: Tensor, sizes: list[int]) -> Tensor:
    """The displacement of x -> matrix x + shift."""
    x = identity(sizes)
    return (torch.einsum("ij,j...->i...", matrix, x) + shift.view(-1, *[1] * len(sizes)) - x)[None]


@pytest.mark.parametrize("on", COMPOSE)
@pytest.mark.parametrize("sizes", [[7, 6, 8], [9, 5], [1, 6, 5]], ids=str)
def test_compose(on: On, sizes: list[int]) -> None:
    u, v = torch.randn(2, len(sizes), *sizes).double(), 2 * torch.randn(2, len(sizes), *sizes).double()
    expected = v.clone()
    for b in range(2):
        where = (identity(sizes) + v[b]).numpy()
        for c in range(len(sizes)):
            read = ndimage.map_coordinates(u[b, c].numpy(), where, order=1, mode="nearest")
            expected[b, c] += torch.from_numpy(read)
    assert_near(on(compose, u, v), expected, 1e-11)


@pytest.mark.parametrize("on", COMPOSE)
def test_compose_of_linear_maps_is_the_product(on: On) -> None:
    sizes = [12, 11, 13]
    first = torch.tensor([[0.7, 0.1, 0.0], [0.05, 0.6, 0.1], [0.0, -0.1, 0.65]]).double()
    second = torch.tensor([[1.2, 0.0, 0.1], [0.3, 0.9, 0.0], [0.0, 0.2, 1.1]]).double()
    shifts = torch.tensor([[2.0, 1.5, 2.5], [0.3, -0.2, 0.1]]).double()
    u, v = linear(second, shifts[1], sizes), linear(first, shifts[0], sizes)
    expected = linear(second @ first, second @ shifts[0] + shifts[1], sizes)
    assert_near(on(compose, u, v), expected, 1e-11)  # first stays on the grid, so nothing is clipped


@pytest.mark.parametrize("on", COMPOSE)
def test_compose_with_nothing(on: On) -> None:
    u = smooth([7, 8, 6], 2.0)
    zero = torch.zeros_like(u)
    assert_near(on(compose, u, zero), u, 1e-12)
    assert_near(on(compose, zero, u), u, 1e-12)


@pytest.mark.parametrize("on", COMPOSE)
@pytest.mark.parametrize("sizes", [[4, 3, 5], [5, 4]], ids=str)
def test_compose_gradcheck(on: On, sizes: list[int]) -> None:
    u, v = torch.randn(2, len(sizes), *sizes).double(), torch.randn(2, len(sizes), *sizes).double()
    inputs = leaf(u), leaf(v)
    assert torch.autograd.gradcheck(lambda a, b: on(compose, a, b), inputs, fast_mode=True)


@pytest.mark.parametrize("on", INVERT)
@pytest.mark.parametrize("sizes", [[14, 13, 15], [21, 18]], ids=str)
def test_inverse_undoes_the_displacement(on: On, sizes: list[int]) -> None:
    u = smooth(sizes, 1.5, batch=2)
    v, residual = on(invert, u, 150, 1e-7)
    assert residual.shape == (2,)
    assert float(residual.max()) <= 1e-7
    gap = on(compose, u, v)
    assert_near(gap, torch.zeros_like(gap), 1e-7)
    # the other order interpolates v: right to the curvature of the field, on voxels that stay inside
    inside = (slice(None), slice(None), *[slice(3, -3)] * len(sizes))
    back = on(compose, v, u)[inside]
    assert float(back.abs().max()) < 0.1 * float(u.abs().max())


@pytest.mark.parametrize("on", INVERT)
def test_inverse_of_a_linear_map(on: On) -> None:
    sizes = [15, 14]
    matrix = torch.tensor([[1.2, 0.1], [-0.1, 1.25]]).double()
    centre = torch.tensor([7.0, 6.5]).double()
    u = linear(matrix, centre - matrix @ centre, sizes)
    back = torch.linalg.inv(matrix)
    expected = linear(back, centre - back @ centre, sizes)  # contracts about the centre: stays on the grid
    v, residual = on(invert, u, 100, 1e-10)
    assert_near(v, expected, 1e-9)
    assert float(residual) <= 1e-10


@pytest.mark.parametrize("on", INVERT)
def test_residual_is_the_largest_distance_in_voxels(on: On) -> None:
    u = torch.cat([smooth([12, 11, 10], 2.0), smooth([12, 11, 10], 0.5)])
    v, residual = on(invert, u, 1, 0.0)
    gap = on(compose, u, v).square().sum(1).sqrt().flatten(1).amax(1)
    assert_near(residual, gap, 1e-12)
    assert float(residual[0]) > float(residual[1]) > 0


@pytest.mark.parametrize("on", INVERT)
def test_iterations_stop_at_the_tolerance(on: On) -> None:
    u = smooth([12, 11, 10], 1.0)
    loose, loose_residual = on(invert, u, 50, 0.05)
    tight, tight_residual = on(invert, u, 50, 1e-8)
    assert float(tight_residual) <= 1e-8 < float(loose_residual) <= 0.05
    assert not torch.equal(loose, tight)
    none, _ = on(invert, u, 0, 1e-8)
    assert torch.equal(none, -u)


@pytest.mark.parametrize("on", INVERT)
def test_a_fold_shows_in_the_residual(on: On) -> None:
    u = 6 * torch.randn(1, 2, 12, 12, dtype=torch.float64)
    _, residual = on(invert, u, 20, 1e-3)
    assert float(residual) > 1e-3


@pytest.mark.parametrize("on", INVERT)
def test_report_of_the_inversion(on: On) -> None:
    u = torch.cat([smooth([12, 11, 10], 0.1), smooth([12, 11, 10], 1.0), 0 * smooth([12, 11, 10], 1.0)])
    v, report = on(invert, u, 50, 1e-4, report=True)
    plain, residual = on(invert, u, 50, 1e-4)
    assert torch.equal(v, plain)
    assert torch.equal(report.residual, residual)
    assert report.converged.tolist() == [True, True, True]
    few, many, none = report.iterations.tolist()
    assert 0 == none < few < many < 50
    _, report = on(invert, u, many - 1, 1e-4, report=True)
    assert report.converged.tolist() == [True, False, True]
    assert report.iterations.tolist() == [few, many - 1, 0]


@pytest.mark.parametrize("on", INVERT)
def test_gradient_through_the_inverse(on: On) -> None:
    u = smooth([5, 6], 0.8) + 0.013  # away from lattice points
    assert torch.autograd.gradcheck(lambda a: on(invert, a, 3, 0.0)[0], (leaf(u),), fast_mode=True)


@pytest.mark.parametrize("on", INVERT)
def test_float32_strides_and_empty_batches(on: On) -> None:
    u = smooth([9, 8, 7], 1.0, batch=2)
    exact = on(invert, u, 30, 1e-9)[0]
    single, _ = on(invert, u.float(), 30, 1e-6)
    assert single.dtype == torch.float32
    assert_near(single, exact, 1e-5)  # coordinates near 10 in float32, contracted
    for other in strided(u):
        assert_near(on(invert, other, 30, 1e-9)[0], exact, 1e-8)
        assert_near(on(compose, other, other), on(compose, u, u), 1e-12)
    v, residual = on(invert, u[:0])
    assert v.shape == (0, 3, 9, 8, 7)
    assert residual.shape == (0,)
    assert on(compose, u[:0], u[:0]).shape == (0, 3, 9, 8, 7)


def wrong_cases() -> dict[str, tuple[Any, tuple[Any, ...], str]]:
    u = torch.rand(1, 3, 5, 6, 7)
    return {
        "shapes differ": (compose, (u, u[..., 1:]), "shape|must"),
        "channels": (compose, (u[:, :2], u[:, :2]), "displacement|channel|must"),
        "dtypes differ": (compose, (u, u.double()), "dtype"),
        "inverse of an image": (invert, (u[:, :1],), "displacement|must"),
        "iterations": (invert, (u, -1), "iterations"),
        "tolerance": (invert, (u, 5, -1.0), "tolerance"),
    }


@pytest.mark.parametrize("on", COMPOSE)
@pytest.mark.parametrize("case", wrong_cases())
def test_wrong_arguments(on: On, case: str) -> None:
    function, arguments, message = wrong_cases()[case]
    with pytest.raises(ValueError, match=f"(?s)^(?!.*\n).*({message})"):
        on(function, *arguments)


@pytest.mark.parametrize("function", [compose, invert])
def test_unknown_backend(function: Any) -> None:
    arguments = [torch.rand(1, 2, 5, 6)] * (2 if function is compose else 1)
    with pytest.raises(BackendError, match="abacus"):
        function(*arguments, backend="abacus")
