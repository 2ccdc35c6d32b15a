"""jacobian_penalty, log_jacobian and the count of folds, against numpy's determinants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from neuralreg.kernels import jacobian_determinant, jacobian_loss, jacobian_penalty, log_jacobian

from .common import On, assert_near, assert_relative, assert_same_for_any_threads, leaf, serving, strided
from .test_jacobian import SCHEMES, determinants, displacement

PENALTY, LOSS = serving("jacobian_penalty"), serving("jacobian_loss")
RULES = [("relu", 0.0), ("relu", 0.6), ("unit", 0.0)]


def jacobians(n: int, ndim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return 0.7 * torch.randn(n, ndim, ndim, dtype=torch.float64).to(dtype)


def penalties(det: Tensor, penalty: str, threshold: float) -> Tensor:
    return (threshold - det).relu() if penalty == "relu" else (det - 1).abs()


@pytest.mark.parametrize("on", PENALTY)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("n", [1, 31, 32, 9001])
@pytest.mark.parametrize(("penalty", "threshold"), RULES)
def test_penalty(on: On, ndim: int, n: int, penalty: str, threshold: float) -> None:
    j = jacobians(n, ndim)
    det = torch.from_numpy(np.linalg.det(np.eye(ndim) + j.numpy()))
    if n > 100:
        assert 0 < int((det <= 0).sum()) < n
    value, folds = on(jacobian_penalty, j, penalty, threshold, return_folds=True)
    assert value.ndim == 0
    assert_near(value, penalties(det, penalty, threshold).mean(), 1e-12)
    assert (folds.dtype, folds.item()) == (torch.int64, int((det <= 0).sum()))
    assert torch.equal(on(jacobian_penalty, j, penalty, threshold), value)


@pytest.mark.parametrize("on", PENALTY)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("penalty", "threshold"), RULES)
def test_penalty_gradcheck(on: On, ndim: int, penalty: str, threshold: float) -> None:
    j = leaf(jacobians(37, ndim))
    assert torch.autograd.gradcheck(lambda x: on(jacobian_penalty, x, penalty, threshold), (j,))


@pytest.mark.parametrize("on", PENALTY)
def test_penalty_of_lattice_differences_is_the_loss(on: On) -> None:
    u = displacement([5, 6, 7])
    columns = []
    for axis in (2, 3, 4):
        inner = u.diff(dim=axis)
        columns.append(torch.cat([inner, inner.narrow(axis, -1, 1)], axis).movedim(1, -1))
    j = torch.stack(columns, -1).reshape(-1, 3, 3)
    for penalty, threshold in RULES:
        assert_near(
            on(jacobian_penalty, j, penalty, threshold),
            on(jacobian_loss, u, None, "forward", penalty, threshold),
            1e-13,
        )


@pytest.mark.parametrize("on", PENALTY)
def test_penalty_in_float32_strides_empty_and_nan(on: On) -> None:
    j = jacobians(5000, 3, torch.float32)

    def run(where: On, x: Tensor) -> list[Tensor]:
        x = leaf(x)
        value = where(jacobian_penalty, x, "relu", 0.5)
        return [value.detach(), *torch.autograd.grad(3 * value, x)]

    exact = run(On("reference", "cpu"), j.double())
    for one, other in zip(run(on, j), exact, strict=True):
        assert one.dtype == torch.float32
        assert_relative(one, other, 2e-6)  # a dozen roundings of products of order 1
    for view in strided(j):
        for one, other in zip(run(on, view), run(on, j), strict=True):
            assert_near(one, other, 1e-6)
    value, gradient = run(on, j[:0])
    assert (value.item(), gradient.shape) == (0, (0, 3, 3))
    j[4321, 1, 1] = float("nan")
    value, folds = on(jacobian_penalty, j, "relu", 0.5, return_folds=True)
    assert bool(value.isnan())
    assert folds.item() == on(jacobian_penalty, torch.cat([j[:4321], j[4322:]]), return_folds=True)[1].item()


@pytest.mark.parametrize("on", serving("jacobian_penalty", "cpu"))
def test_same_bits_for_any_number_of_threads(on: On) -> None:
    j = jacobians(20000, 3, torch.float32)

    def run() -> list[Tensor]:
        x = leaf(j)
        value, folds = on(jacobian_penalty, x, "unit", return_folds=True)
        return [value.detach(), folds, *torch.autograd.grad(value, x)]

    assert_same_for_any_threads(run)


@pytest.mark.parametrize("on", LOSS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("sizes", [[5, 4, 7], [6, 5], [1, 4, 3]], ids=str)
def test_folds_of_the_loss(on: On, scheme: str, sizes: list[int]) -> None:
    u = 2 * displacement(sizes)
    det = determinants(u, None, scheme)
    value, folds = on(jacobian_loss, u, None, scheme, threshold=0.2, return_folds=True)
    assert (folds.dtype, folds.item()) == (torch.int64, int((det <= 0).sum()))
    assert 0 < folds.item() < det.numel()
    assert torch.equal(value, on(jacobian_loss, u, None, scheme, threshold=0.2))
    assert on(jacobian_loss, torch.zeros_like(u), return_folds=True)[1].item() == 0
    assert on(jacobian_loss, u[:0], return_folds=True)[1].item() == 0


@pytest.mark.parametrize("on", LOSS)
def test_folds_carry_no_gradient(on: On) -> None:
    u = leaf(displacement([4, 5, 6]))
    value, folds = on(jacobian_loss, u, threshold=0.5, return_folds=True)
    assert value.requires_grad
    assert not folds.requires_grad


@pytest.mark.parametrize("on", serving("jacobian_determinant"))
@pytest.mark.parametrize("sizes", [[5, 4, 6], [6, 5]], ids=str)
def test_log_jacobian(on: On, sizes: list[int]) -> None:
    u = 2 * displacement(sizes)
    det = determinants(u)
    assert bool((det <= 0).any())
    actual = on(log_jacobian, u, floor=0.01)
    assert_near(actual, det.clamp_min(0.01).log(), 1e-11)
    assert float(actual.min()) == math.log(0.01)
    v = leaf(u)
    on(log_jacobian, v, None, "forward", 0.3).sum().backward()
    w = leaf(u)
    logs = on(jacobian_determinant, w)
    logs[logs > 0.3].log().sum().backward()
    assert_near(v.grad, w.grad, 1e-11)
    assert torch.autograd.gradcheck(lambda x: on(log_jacobian, x, floor=0.3), (leaf(u),), fast_mode=True)
    u[0, 0, 2, 2] = float("nan")
    assert bool(on(log_jacobian, u).isnan().any())


def wrong_cases() -> dict[str, tuple[Any, tuple[Any, ...], str]]:
    j, u = torch.rand(4, 3, 3), torch.rand(1, 2, 4, 5)
    return {
        "not square": (jacobian_penalty, (j[:, :2],), r"\(N, 2, 2\)"),
        "one matrix": (jacobian_penalty, (j[0],), r"\(N, 2, 2\)"),
        "four axes": (jacobian_penalty, (torch.rand(3, 4, 4),), r"\(N, 2, 2\)"),
        "integers": (jacobian_penalty, (j.int(),), "float"),
        "penalty": (jacobian_penalty, (j, "square"), "penalty.*square"),
        "threshold of a penalty without one": (jacobian_penalty, (j, "unit", 0.2), "threshold"),
        "floor 0": (log_jacobian, (u, None, "forward", 0.0), "floor"),
        "floor infinite": (log_jacobian, (u, None, "forward", math.inf), "floor"),
        "scheme of the logarithm": (log_jacobian, (u, None, "upwind"), "upwind"),
    }


@pytest.mark.parametrize("on", PENALTY)
@pytest.mark.parametrize("case", wrong_cases())
def test_wrong_arguments(on: On, case: str) -> None:
    function, arguments, message = wrong_cases()[case]
    with pytest.raises(ValueError, match=f"(?s)^(?!.*\n).*({message})"):
        on(function, *arguments)
