"""The CUDA kernels on dense fields, run on the CPU by tests/cuda_on_cpu, against the reference in float64."""

from __future__ import annotations

import math
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

from ..cuda_on_cpu.build import Library
from ..cuda_on_cpu.fixtures import kernels, library  # noqa: F401 (fixtures)
from .calls import calls, results
from .common import On, assert_near, assert_relative, leaf, strided
from .test_jacobian import SCHEMES, SPACINGS, determinants, displacement, with_gradient
from .test_jacobian_penalty import RULES, jacobians

REFERENCE, CUDA = On("reference", "cpu"), On("cuda", "cpu")
# The second has several tiles along every axis, and ends inside one.
SIZES = [
    [5, 4, 7],
    [18, 10, 35],
    [17, 34],
    [6, 5],
    [1, 4, 3],
    [3, 1, 1],
    [1, 1, 1],
    [2, 2, 2],
    [1, 6],
    [9, 1],
]

FUNCTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "determinant": (jacobian_determinant, {"scheme": "central"}),
    "relu": (jacobian_loss, {"threshold": 0.5}),
    "unit": (jacobian_loss, {"penalty": "unit", "scheme": "backward"}),
    "diffusion": (diffusion_loss, {"spacing": (1.0, 2.0, 0.5)}),
    "bending": (bending_loss, {"spacing": (1.0, 2.0, 0.5)}),
}


def check(function: Any, u: Tensor, *args: Any, **options: Any) -> None:
    """Value and gradient as the reference has them."""
    expected = with_gradient(REFERENCE, function, u, *args, **options)
    for one, other in zip(with_gradient(CUDA, function, u, *args, **options), expected, strict=True):
        assert one.dtype == u.dtype
        assert_near(one, other, 1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_determinants(scheme: str, sizes: list[int]) -> None:
    u, spacing = displacement(sizes), SPACINGS[len(sizes)]
    check(jacobian_determinant, u, spacing, scheme)
    if max(sizes) < 10:
        expected = determinants(u, spacing, scheme)
        assert_near(CUDA(jacobian_determinant, u, spacing, scheme), expected, 1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("penalty", "threshold"), RULES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_loss_and_folds(scheme: str, penalty: str, threshold: float, sizes: list[int]) -> None:
    u, spacing = 2 * displacement(sizes), SPACINGS[len(sizes)]
    check(jacobian_loss, u, spacing, scheme, penalty, threshold)
    options = (spacing, scheme, penalty, threshold)
    _, expected = REFERENCE(jacobian_loss, u, *options, return_folds=True)
    _, folds = CUDA(jacobian_loss, u, *options, return_folds=True)
    assert (folds.dtype, folds.item()) == (torch.int64, expected.item())
    if u.numel() > 1000:
        assert 0 < folds.item() < u[:, 0].numel()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_smoothness(channels: int, sizes: list[int]) -> None:
    u = torch.randn(2, channels, *sizes, dtype=torch.float64)
    check(diffusion_loss, u, SPACINGS[len(sizes)])
    check(bending_loss, u, SPACINGS[len(sizes)])


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 1025])
@pytest.mark.parametrize(("penalty", "threshold"), RULES)
def test_penalty_of_matrices(ndim: int, n: int, penalty: str, threshold: float) -> None:
    j = jacobians(n, ndim)
    check(jacobian_penalty, j, penalty, threshold)
    _, expected = REFERENCE(jacobian_penalty, j, penalty, threshold, return_folds=True)
    assert CUDA(jacobian_penalty, j, penalty, threshold, return_folds=True)[1].item() == expected.item()


@pytest.mark.parametrize("case", FUNCTIONS)
def test_float32_and_half_types(case: str) -> None:
    function, options = FUNCTIONS[case]
    u = displacement([11, 13, 35], dtype=torch.float32)
    expected = with_gradient(REFERENCE, function, u.double(), **options)
    for one, other in zip(with_gradient(CUDA, function, u, **options), expected, strict=True):
        assert one.dtype == torch.float32
        assert_relative(one, other, 2e-6)  # two dozen roundings of 6e-8
    half = u.bfloat16()
    expected = with_gradient(REFERENCE, function, half.double(), **options)
    value, gradient = with_gradient(CUDA, function, half, **options)
    assert gradient.dtype == torch.bfloat16
    assert value.dtype == (torch.bfloat16 if case == "determinant" else torch.float32)
    assert_relative(gradient, expected[1], 2**-7)  # the upstream gradient and the result are rounded


@pytest.mark.parametrize("case", FUNCTIONS)
def test_strides_and_empty_batches(case: str) -> None:
    function, options = FUNCTIONS[case]
    u = displacement([5, 6, 4])
    expected = with_gradient(CUDA, function, u, **options)
    for v in strided(u):
        for one, other in zip(with_gradient(CUDA, function, v, **options), expected, strict=True):
            assert torch.equal(one, other)
    value, gradient = with_gradient(CUDA, function, u[:0], **options)
    assert gradient.shape == (0, 3, 5, 6, 4)
    assert value.shape == (0, 5, 6, 4) if case == "determinant" else value.item() == 0


def test_upstream_gradient_of_any_stride() -> None:
    weights = torch.rand(2, 5, 6, 4, dtype=torch.float64)
    u = displacement([5, 6, 4])
    grads = []
    for upstream in (weights, *strided(weights)):
        v = leaf(u)
        jacobian_determinant(v, backend="cuda").backward(upstream)
        grads.append(v.grad)
    assert torch.equal(grads[1], grads[0])
    assert torch.equal(grads[2], grads[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("case", FUNCTIONS)
def test_what_is_not_finite_stays_where_it_is(case: str, bad: float) -> None:
    function, options = FUNCTIONS[case]
    u = displacement([9, 8, 33], dtype=torch.float32)
    clean = with_gradient(CUDA, function, u, **options)
    u[0, 1, 4, 4, 16] = bad
    value, gradient = with_gradient(CUDA, function, u, **options)
    assert not bool(value.isfinite().all())
    near = torch.zeros(gradient.shape, dtype=torch.bool)
    near[0, :, 2:7, 2:7, 14:19] = True
    assert torch.equal(gradient[~near], clean[1][~near])


def test_a_huge_constant_displacement_changes_no_bit() -> None:
    u = (torch.randint(-8, 9, (1, 3, 9, 8, 7)) / 16).float()  # exact in float32 beside 1e4 as well
    for function, options in FUNCTIONS.values():
        for one, other in zip(
            with_gradient(CUDA, function, u + 1e4, **options),
            with_gradient(CUDA, function, u, **options),
            strict=True,
        ):
            assert torch.equal(one, other)


def test_same_bits_for_any_order_of_threads_and_blocks(kernels: Library) -> None:  # noqa: F811
    u, j = displacement([18, 10, 35], dtype=torch.float32), jacobians(1100, 3, torch.float32)

    def compute() -> list[Tensor]:
        found = with_gradient(CUDA, jacobian_penalty, j)
        for function, options in FUNCTIONS.values():
            found += with_gradient(CUDA, function, u, **options)
        return found

    kernels.order(0)
    expected = compute()
    for order in (1, 2):
        kernels.order(order)
        for one, other in zip(compute(), expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("sizes", [[4, 3, 3], [5, 4]], ids=str)
def test_gradcheck(sizes: list[int]) -> None:
    u, spacing = leaf(displacement(sizes, batch=1)), SPACINGS[len(sizes)]
    for function, options in (
        (jacobian_determinant, (spacing, "central")),
        (jacobian_loss, (spacing, "forward", "relu", 0.8)),
        (diffusion_loss, (spacing,)),
        (bending_loss, (spacing,)),
    ):
        assert torch.autograd.gradcheck(lambda v, f=function, o=options: CUDA(f, v, *o), (u,), fast_mode=True)


NAMES = ("jacobian", "diffusion", "bending")


def test_every_call_of_the_family() -> None:
    for case, call in calls(torch.float64).items():
        if case.startswith(NAMES):
            for one, other in zip(results(call, "cuda"), results(call, "reference"), strict=True):
                assert_near(one, other, 1e-11)


def test_opcheck() -> None:
    ops, u = torch.ops.neuralreg, leaf(displacement([4, 5, 3]))
    spacing = [1.0, 2.0, 0.5]
    torch.library.opcheck(ops.jacobian_determinant_forward, (u, spacing, "central", "cuda"))
    torch.library.opcheck(ops.jacobian_loss_forward, (u, spacing, "forward", "relu", 0.8, "cuda"))
    torch.library.opcheck(ops.jacobian_penalty_forward, (leaf(jacobians(9, 3)), "unit", 0.0, "cuda"))
    torch.library.opcheck(ops.diffusion_loss_forward, (u, spacing, "cuda"))
    torch.library.opcheck(ops.bending_loss_forward, (u, spacing, "cuda"))


def test_a_field_that_is_too_large_is_refused(kernels: Library) -> None:  # noqa: F811
    shape = kernels.module.LatticeShape(1, 1, [2**16, 2**15], [1.0, 1.0], 0)  # a tensor would take 8 GB
    with pytest.raises(RuntimeError, match="2\\^31"):
        kernels.module.lattice_scratch(shape)
