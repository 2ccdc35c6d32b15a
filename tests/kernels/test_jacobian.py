"""Jacobian determinant and loss, diffusion loss on every backend, against one determinant a voxel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from neuralreg.kernels import diffusion_loss, jacobian_determinant, jacobian_loss
from neuralreg.kernels.backends.registry import BackendError

from .common import On, assert_near, assert_relative, assert_same_for_any_threads, leaf, serving, strided

DETERMINANT, LOSS, DIFFUSION = (
    serving(op) for op in ("jacobian_determinant", "jacobian_loss", "diffusion_loss")
)
SCHEMES = ["forward", "backward", "central"]
SIZES = [[5, 4, 7], [6, 5], [1, 4, 3], [3, 1, 1], [1, 1, 1], [2, 2, 2], [1, 6]]
SPACINGS = {2: (0.5, 3.0), 3: (0.5, 3.0, 1.25)}


def derivative(u: np.ndarray, place: tuple[int, ...], axis: int, scheme: str) -> np.ndarray:
    """d u / d x_axis at one voxel of u (C, *spatial), one-sided where a neighbour is missing."""
    n = u.shape[axis + 1]
    if n == 1:
        return np.zeros(u.shape[0])

    def at(i: int) -> np.ndarray:
        return u[(slice(None), *place[:axis], i, *place[axis + 1 :])]

    i = place[axis]
    if i == 0:
        return at(1) - at(0)
    if i == n - 1:
        return at(i) - at(i - 1)
    if scheme == "central":
        return (at(i + 1) - at(i - 1)) / 2
    return at(i + 1) - at(i) if scheme == "forward" else at(i) - at(i - 1)


def determinants(displacement: Tensor, spacing: Any = None, scheme: str = "forward") -> Tensor:
    """det(I + du/dx) voxel by voxel."""
    u = displacement.double().numpy()
    ndim = u.shape[1]
    steps = (1.0,) * ndim if spacing is None else spacing
    out = np.zeros([u.shape[0], *u.shape[2:]])
    for b, *place in np.ndindex(*out.shape):
        columns = [derivative(u[b], tuple(place), axis, scheme) / steps[axis] for axis in range(ndim)]
        out[(b, *place)] = np.linalg.det(np.eye(ndim) + np.stack(columns, 1))
    return torch.from_numpy(out)


def displacement(sizes: list[int], batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return 0.4 * torch.randn(batch, len(sizes), *sizes, dtype=dtype)


def with_gradient(on: On, function: Any, u: Tensor, *args: Any, **options: Any) -> list[Tensor]:
    """The value, and the gradient of a weighted sum of it."""
    inner = leaf(u)
    value = on(function, inner, *args, **options)
    weights = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view_as(value)
    (value * weights).sum().backward()
    return [value.detach(), inner.grad]


@pytest.mark.parametrize("on", DETERMINANT)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("spaced", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_determinant(on: On, scheme: str, spaced: bool, sizes: list[int]) -> None:
    u = displacement(sizes)
    spacing = SPACINGS[len(sizes)] if spaced else None
    expected = determinants(u, spacing, scheme)
    assert_near(on(jacobian_determinant, u, spacing, scheme), expected, 1e-12)


@pytest.mark.parametrize("on", DETERMINANT)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_determinant_of_a_linear_map(on: On, scheme: str) -> None:
    matrix = torch.tensor([[1.1, 0.2, -0.1], [0.0, 0.9, 0.3], [0.25, -0.2, 1.2]], dtype=torch.float64)
    axes = [torch.arange(n).double() * s for n, s in zip((5, 6, 4), (2.0, 0.5, 3.0), strict=True)]
    x = torch.stack(torch.meshgrid(axes, indexing="ij"))
    u = (torch.einsum("ij,j...->i...", matrix, x) - x)[None]
    expected = torch.linalg.det(matrix).expand(1, 5, 6, 4)
    assert_near(on(jacobian_determinant, u, (2.0, 0.5, 3.0), scheme), expected, 1e-12)
    assert_near(on(jacobian_determinant, u + 1e4, (2.0, 0.5, 3.0), scheme), expected, 1e-9)


@pytest.mark.parametrize("on", LOSS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("penalty", "threshold"), [("relu", 0.0), ("relu", 0.3), ("unit", 0.0)])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_loss(on: On, scheme: str, penalty: str, threshold: float, sizes: list[int]) -> None:
    u = 3 * displacement(sizes)
    det = determinants(u, SPACINGS[len(sizes)], scheme)
    if max(sizes) > 1 and penalty == "relu" and sizes[0] > 3:
        assert bool((det < threshold).any())  # else the test would compare zeros
    expected = (threshold - det).relu().mean() if penalty == "relu" else (det - 1).abs().mean()
    actual = on(jacobian_loss, u, SPACINGS[len(sizes)], scheme, penalty, threshold)
    assert actual.ndim == 0
    assert_near(actual, expected, 1e-12)


@pytest.mark.parametrize("on", DIFFUSION)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spaced", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_diffusion_loss(on: On, channels: int, spaced: bool, sizes: list[int]) -> None:
    u = torch.randn(2, channels, *sizes, dtype=torch.float64)
    spacing = SPACINGS[len(sizes)] if spaced else (1.0,) * len(sizes)
    terms = []
    for axis, n in enumerate(sizes):
        d = np.diff(u.numpy(), axis=axis + 2) / spacing[axis]
        terms.append((d**2).mean() if n > 1 else 0.0)
    expected = torch.tensor(np.mean(terms))
    actual = on(diffusion_loss, u, spacing if spaced else None)
    assert actual.ndim == 0
    assert_near(actual, expected, 1e-12)


@pytest.mark.parametrize("on", DETERMINANT)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("sizes", [[4, 3, 5], [5, 4], [1, 3, 4], [2, 2, 2], [1, 1, 1]], ids=str)
def test_determinant_gradcheck(on: On, scheme: str, sizes: list[int]) -> None:
    u, spacing = leaf(displacement(sizes)), SPACINGS[len(sizes)]
    assert torch.autograd.gradcheck(
        lambda v: on(jacobian_determinant, v, spacing, scheme), (u,), fast_mode=len(sizes) == 3
    )


@pytest.mark.parametrize("on", LOSS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("penalty", "threshold"), [("relu", 0.8), ("unit", 0.0)])
@pytest.mark.parametrize("sizes", [[4, 3, 5], [5, 4], [1, 3, 4], [1, 1]], ids=str)
def test_loss_gradcheck(on: On, scheme: str, penalty: str, threshold: float, sizes: list[int]) -> None:
    u, spacing = leaf(displacement(sizes)), SPACINGS[len(sizes)]
    options = (spacing, scheme, penalty, threshold)
    assert torch.autograd.gradcheck(lambda v: on(jacobian_loss, v, *options), (u,))


@pytest.mark.parametrize("on", DIFFUSION)
@pytest.mark.parametrize("sizes", [[4, 3, 5], [5, 4], [1, 3, 4], [1, 1]], ids=str)
def test_diffusion_gradcheck(on: On, sizes: list[int]) -> None:
    u = leaf(torch.randn(2, 2, *sizes, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda v: on(diffusion_loss, v, SPACINGS[len(sizes)]), (u,))


@pytest.mark.parametrize("on", serving("jacobian_determinant", "reference"))
def test_second_derivatives_of_the_reference(on: On) -> None:
    u = leaf(displacement([4, 3, 3], batch=1))
    assert torch.autograd.gradgradcheck(lambda v: on(jacobian_determinant, v), (u,), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda v: on(diffusion_loss, v), (u,), fast_mode=True)


FUNCTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "determinant": (jacobian_determinant, {"scheme": "central"}),
    "relu": (jacobian_loss, {"threshold": 0.5}),
    "unit": (jacobian_loss, {"penalty": "unit", "scheme": "backward"}),
    "diffusion": (diffusion_loss, {"spacing": (1.0, 2.0, 0.5)}),
}


@pytest.mark.parametrize("on", LOSS)
@pytest.mark.parametrize("case", FUNCTIONS)
def test_float32(on: On, case: str) -> None:
    function, options = FUNCTIONS[case]
    u = displacement([19, 23, 17], dtype=torch.float32)
    actual = with_gradient(on, function, u, **options)
    expected = with_gradient(On("reference", "cpu"), function, u.double(), **options)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == torch.float32
        # differences and products of order 1 with a dozen roundings of 6e-8; sums over N lose no more
        assert_relative(one, other, 2e-6)


@pytest.mark.parametrize("on", LOSS)
@pytest.mark.parametrize("case", FUNCTIONS)
def test_a_huge_constant_displacement_changes_only_roundings(on: On, case: str) -> None:
    function, options = FUNCTIONS[case]
    u = (torch.randint(-8, 9, (1, 3, 9, 8, 7)) / 16).float()  # exact in float32 beside 1e4 as well
    for one, other in zip(
        with_gradient(on, function, u + 1e4, **options),
        with_gradient(on, function, u, **options),
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("on", LOSS)
@pytest.mark.parametrize("case", FUNCTIONS)
def test_strides(on: On, case: str) -> None:
    function, options = FUNCTIONS[case]
    u = displacement([5, 6, 4])
    expected = with_gradient(on, function, u, **options)
    for v in strided(u):
        for one, other in zip(with_gradient(on, function, v, **options), expected, strict=True):
            assert_near(one, other, 1e-13)
    one = u[:1].expand(2, -1, -1, -1, -1)
    assert_near(on(function, one, **options), on(function, one.contiguous(), **options), 1e-13)


@pytest.mark.parametrize("on", DETERMINANT)
def test_upstream_gradient_of_any_stride(on: On) -> None:
    weights = torch.rand(2, 5, 6, 4, dtype=torch.float64)
    u = displacement([5, 6, 4])
    grads = []
    for upstream in (weights, *strided(weights)):
        v = leaf(u)
        on(jacobian_determinant, v).backward(upstream)
        grads.append(v.grad)
    assert_near(grads[1], grads[0], 1e-13)
    assert_near(grads[2], grads[0], 1e-13)


@pytest.mark.parametrize("on", LOSS)
@pytest.mark.parametrize("case", FUNCTIONS)
def test_constants_and_empty_batches(on: On, case: str) -> None:
    function, options = FUNCTIONS[case]
    constant = torch.full((1, 3, 4, 5, 3), 2.5)
    value, gradient = with_gradient(on, function, constant, **options)
    assert torch.equal(value, torch.ones_like(value) if case == "determinant" else torch.zeros_like(value))
    if case != "determinant":
        assert torch.count_nonzero(gradient) == 0
    value, gradient = with_gradient(on, function, constant[:0], **options)
    assert gradient.shape == (0, 3, 4, 5, 3)
    assert value.shape == (0, 4, 5, 3) if case == "determinant" else value.item() == 0


@pytest.mark.parametrize("on", LOSS)
@pytest.mark.parametrize("case", FUNCTIONS)
def test_nan_is_not_swallowed(on: On, case: str) -> None:
    function, options = FUNCTIONS[case]
    u = displacement([5, 6, 4], dtype=torch.float32)
    u[0, 1, 2, 2, 2] = float("nan")
    value, _ = with_gradient(on, function, u, **options)
    assert bool(value.isnan().any())
    u[0, 1, 2, 2, 2] = float("inf")
    with_gradient(on, function, u, **options)


@pytest.mark.parametrize("on", serving("jacobian_loss", "cpu"))
@pytest.mark.parametrize("case", FUNCTIONS)
def test_same_bits_for_any_number_of_threads(on: On, case: str) -> None:
    function, options = FUNCTIONS[case]
    u = displacement([37, 41, 35], dtype=torch.float32)
    assert_same_for_any_threads(lambda: with_gradient(on, function, u, **options))


def wrong_cases() -> dict[str, tuple[Any, tuple[Any, ...], str]]:
    u = torch.rand(1, 3, 4, 5, 6)
    return {
        "two channels in 3-D": (jacobian_determinant, (u[:, :2],), "displacement"),
        "no batch": (jacobian_determinant, (u[0],), "displacement"),
        "one axis": (jacobian_determinant, (torch.rand(1, 1, 5),), "displacement"),
        "spacing of two": (jacobian_determinant, (u, (1.0, 1.0)), "spacing"),
        "spacing 0": (jacobian_determinant, (u, (1.0, 0.0, 1.0)), "spacing"),
        "scheme": (jacobian_determinant, (u, None, "upwind"), "scheme.*upwind"),
        "integers": (jacobian_determinant, (u.int(),), "float"),
        "loss penalty": (jacobian_loss, (u, None, "forward", "square"), "penalty.*square"),
        "threshold of a penalty without one": (jacobian_loss, (u, None, "forward", "unit", 0.3), "threshold"),
        "loss scheme": (jacobian_loss, (u, None, "upwind"), "scheme.*upwind"),
        "diffusion spacing": (diffusion_loss, (u, (1.0,)), "spacing"),
        "diffusion of a vector": (diffusion_loss, (u[0, 0, 0],), "displacement"),
    }


@pytest.mark.parametrize("on", LOSS)
@pytest.mark.parametrize("case", wrong_cases())
def test_wrong_arguments(on: On, case: str) -> None:
    function, arguments, message = wrong_cases()[case]
    with pytest.raises(ValueError, match=f"(?s)^(?!.*\n).*({message})"):
        on(function, *arguments)


@pytest.mark.parametrize("function", [jacobian_determinant, jacobian_loss, diffusion_loss])
def test_unknown_backend(function: Any) -> None:
    with pytest.raises(BackendError, match="abacus"):
        function(torch.rand(1, 2, 5, 6), backend="abacus")
