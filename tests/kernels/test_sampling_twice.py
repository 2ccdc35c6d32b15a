"""Second derivatives of grid_sample and warp, and the warp that returns its gradient."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import grid_sample, warp, warp_with_gradient
from neuralreg.kernels import sampling_ops as ops

from .common import On, assert_near, assert_relative, assert_same_for_any_threads, leaf, serving, strided
from .sampling_oracle import identity, off_lattice

GRID_SAMPLE, WARP, JET = serving("grid_sample"), serving("warp"), serving("warp_with_gradient")
PADDINGS = ["zeros", "border", "reflection"]


def normalised(points: Tensor, sizes: list[int], align_corners: bool) -> Tensor:
    """Points (B, ndim, *out) in voxels as torch's grid."""
    axes = [
        2 * p / (n - 1) - 1 if align_corners else (2 * p + 1) / n - 1
        for p, n in zip(points.unbind(1), sizes, strict=True)
    ]
    return torch.stack(axes[::-1], -1)


def problem(sizes: list[int], channels: int = 2, affine: bool = False) -> list[Tensor]:
    """Image, displacement and affine whose points keep clear of the lattice, a third of them outside."""
    ndim = len(sizes)
    out = [3, 2, 4][:ndim]
    image = torch.rand(2, channels, *sizes, dtype=torch.float64)
    points = off_lattice([2, *out], sizes, 2)
    if not affine:
        return [leaf(image), leaf(points - identity(out))]
    square = torch.eye(ndim, dtype=torch.float64) + 0.2 * torch.randn(2, ndim, ndim, dtype=torch.float64)
    shift = torch.randn(2, ndim, 1, dtype=torch.float64)
    points = torch.linalg.solve(square, points.flatten(2) - shift).view_as(points)
    return [leaf(image), leaf(points - identity(out)), leaf(torch.cat([square, shift], 2))]


@pytest.mark.parametrize("on", WARP)
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("sizes", [[4, 3, 5], [5, 4], [1, 3, 4]], ids=str)
def test_warp_gradgradcheck(on: On, padding_mode: str, affine: bool, sizes: list[int]) -> None:
    inputs = problem(sizes, affine=affine)
    assert torch.autograd.gradgradcheck(
        lambda *i: on(warp, *i, padding_mode=padding_mode), inputs, fast_mode=True
    )


@pytest.mark.parametrize("on", GRID_SAMPLE)
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("ndim", [2, 3])
def test_grid_sample_gradgradcheck(on: On, padding_mode: str, align_corners: bool, ndim: int) -> None:
    sizes = [4, 3, 5][:ndim]
    image = leaf(torch.rand(2, 2, *sizes, dtype=torch.float64))
    grid = leaf(normalised(off_lattice([2, *[3, 2, 4][:ndim]], sizes, 2), sizes, align_corners))
    assert torch.autograd.gradgradcheck(
        lambda i, g: on(grid_sample, i, g, "bilinear", padding_mode, align_corners),
        (image, grid),
        fast_mode=True,
    )


@pytest.mark.parametrize("on", WARP)
@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_nearest_gradgradcheck(on: On, padding_mode: str) -> None:
    image, displacement = problem([4, 3, 5])
    assert torch.autograd.gradgradcheck(
        lambda i: on(warp, i, displacement.detach(), None, "nearest", padding_mode), (image,), fast_mode=True
    )


@pytest.mark.parametrize("on", WARP)
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_second_derivatives_to_some_inputs(on: On, wanted: tuple[int, ...]) -> None:
    """What is not wanted changes nothing in what is."""
    tensors = [t.detach() for t in problem([4, 3, 5], affine=True)]

    def second(indices: tuple[int, ...]) -> dict[int, Tensor]:
        inputs = [leaf(t) if i in indices else t for i, t in enumerate(tensors)]
        value = on(warp, *inputs)
        weights = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view_as(value)
        one = wanted[0]
        (grad,) = torch.autograd.grad((value.square() * weights).sum(), inputs[one], create_graph=True)
        scalar = (grad * torch.linspace(1, 2, grad.numel(), dtype=grad.dtype).view_as(grad)).sum()
        found = torch.autograd.grad(scalar, [inputs[i] for i in wanted])
        return dict(zip(wanted, found, strict=True))

    everything, some = second((0, 1, 2)), second(wanted)
    for index in wanted:
        assert_relative(some[index], everything[index], 1e-12)


def saved_case(align_corners: bool = True) -> tuple[Tensor, Tensor]:
    image = torch.rand(2, 1, 5, 4, 6, dtype=torch.float64)
    return image, normalised(off_lattice([2, 3, 5, 4], [5, 4, 6], 2), [5, 4, 6], align_corners)


@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_a_saved_derivative_is_the_computed_one(padding_mode: str) -> None:
    """Only the grid wants a gradient, and there is one channel: the backward pass is a product."""
    image, grid = saved_case()
    for on in (p.values[0] for p in serving("grid_sample", "cpu")):
        found = []
        for x in (image, leaf(image)):
            g = leaf(grid)
            value = on(grid_sample, x, g, "bilinear", padding_mode, True)
            (grad,) = torch.autograd.grad(value.square().sum(), g, create_graph=True)
            found.append((grad.detach(), torch.autograd.grad(grad.square().sum(), g)[0]))
        for one, other in zip(*found, strict=True):
            assert_relative(one, other, 1e-12)


@pytest.mark.parametrize("on", serving("warp", "cpu"))
@pytest.mark.parametrize("function", [grid_sample, warp])
def test_third_derivatives_are_refused(on: On, function: Any) -> None:
    image = torch.rand(1, 1, 4, 5, dtype=torch.float64)
    where = leaf(0.3 * torch.rand(1, 4, 5, 2, dtype=torch.float64))
    where = where if function is grid_sample else leaf(where.detach().permute(0, 3, 1, 2))
    first = torch.autograd.grad(on(function, image, where).pow(4).sum(), where, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), where, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match=r"third.*reference"):
        torch.autograd.grad(second.square().sum(), where)


def test_the_reference_nests_without_limit() -> None:
    image, displacement = problem([4, 5])
    on = On("reference", "cpu")

    def slope(i: Tensor, u: Tensor) -> Tensor:
        return torch.autograd.grad(on(warp, i, u).pow(3).sum(), u, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(slope, (image, displacement), fast_mode=True)


@pytest.mark.parametrize("on", JET)
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("sizes", [[4, 3, 5], [5, 4], [1, 3, 4]], ids=str)
def test_warp_with_gradient(on: On, padding_mode: str, affine: bool, sizes: list[int]) -> None:
    inputs = problem(sizes, channels=3, affine=affine)
    value, gradient = on(warp_with_gradient, *inputs, padding_mode=padding_mode)
    expected = On("reference", "cpu")(warp, *inputs, padding_mode=padding_mode)
    assert_near(value, expected, 1e-12)
    for channel in range(3):
        (slope,) = torch.autograd.grad(expected[:, channel].sum(), inputs[1], retain_graph=True)
        assert_near(gradient[:, channel], slope, 1e-11)
    assert torch.autograd.gradcheck(
        lambda *i: on(warp_with_gradient, *i, padding_mode=padding_mode), inputs, fast_mode=True
    )


@pytest.mark.parametrize("on", serving("warp_with_gradient", "cpu"))
def test_second_derivatives_of_warp_with_gradient_are_refused(on: On) -> None:
    image, displacement = problem([4, 5])
    value, gradient = on(warp_with_gradient, image, displacement)
    (first,) = torch.autograd.grad(value.square().sum() + gradient.square().sum(), image, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"second.*reference"):
        first.square().sum().backward()


@pytest.mark.parametrize("on", JET)
def test_warp_with_gradient_of_one_result_only(on: On) -> None:
    inputs = problem([4, 3, 5])
    for use in (0, 1):
        results = on(warp_with_gradient, *inputs)
        grads = torch.autograd.grad(results[use].pow(2).sum(), inputs)
        expected = torch.autograd.grad(
            On("reference", "cpu")(warp_with_gradient, *inputs)[use].pow(2).sum(), inputs
        )
        for one, other in zip(grads, expected, strict=True):
            assert_relative(one, other, 1e-11)


@pytest.mark.parametrize("on", JET)
def test_warp_with_gradient_of_odd_tensors(on: On) -> None:
    image, displacement = (t.detach() for t in problem([4, 3, 5]))
    expected = on(warp_with_gradient, image, displacement)
    for i, u in itertools.product(strided(image), strided(displacement)):
        for one, other in zip(on(warp_with_gradient, i, u), expected, strict=True):
            assert_near(one, other, 1e-12)
    half = image.to(torch.bfloat16)
    value, gradient = on(warp_with_gradient, half, displacement.float())
    assert value.dtype == gradient.dtype == torch.bfloat16
    exact = On("reference", "cpu")(warp_with_gradient, half.double(), displacement)
    for one, other in zip((value, gradient), exact, strict=True):
        assert_relative(one, other, torch.finfo(torch.bfloat16).eps)
    value, gradient = on(warp_with_gradient, image[:0], displacement[:0])
    assert value.shape == (0, 2, 3, 2, 4)
    assert gradient.shape == (0, 2, 3, 3, 2, 4)


@pytest.mark.parametrize("on", JET)
@pytest.mark.parametrize("arguments", [{"padding_mode": "wrap"}, {"affine": torch.eye(3)[None]}], ids=str)
def test_wrong_arguments_of_warp_with_gradient(on: On, arguments: dict[str, Any]) -> None:
    image, displacement = problem([4, 3, 5])
    with pytest.raises(ValueError, match=r"warp_with_gradient: .*(padding_mode|affine)"):
        on(warp_with_gradient, image, displacement, **arguments)


@pytest.mark.parametrize("on", serving("warp", "cpu"))
def test_second_derivatives_have_the_same_bits_for_any_number_of_threads(on: On) -> None:
    image, displacement = torch.rand(2, 2, 31, 30, 37), 3 * torch.randn(2, 3, 31, 30, 37)
    affine = torch.eye(3, 4).expand(2, -1, -1) + 0.05 * torch.randn(2, 3, 4)

    def compute() -> list[Tensor]:
        inputs = [leaf(t) for t in (image, displacement, affine)]
        grads = torch.autograd.grad(on(warp, *inputs).square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in grads), inputs)
        jet = on(warp_with_gradient, *inputs)
        first = torch.autograd.grad(jet[0].square().sum() + jet[1].square().sum(), inputs)
        return [*second, *first]

    assert_same_for_any_threads(compute)


@pytest.mark.parametrize("on", serving("warp", "cpu"))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ndim", [2, 3])
def test_half_images_are_read_exactly(on: On, dtype: torch.dtype, ndim: int) -> None:
    """Every finite bit pattern, infinities and NaN, through warp by nothing and through nearest."""
    bits = torch.arange(1 << 16).to(torch.int32).to(torch.int16)  # wraps around: all patterns
    image = bits.view(dtype).view(1, 1, *[256, 256] if ndim == 2 else [32, 64, 32])
    still = torch.zeros(1, ndim, *image.shape[2:])
    nearest = on(warp, image, still, mode="nearest")
    assert torch.equal(nearest.view(torch.int16)[~image.isnan()], image.view(torch.int16)[~image.isnan()])
    assert bool(nearest[image.isnan()].isnan().all())
    half = on(warp, image, still + 0.25)
    exact = on(warp, image.float(), still + 0.25).to(dtype)
    assert torch.equal(half.nan_to_num(3.0), exact.nan_to_num(3.0))


@pytest.mark.parametrize("on", serving("warp", "cpu"))
def test_opcheck_of_the_differentiable_backward(on: On) -> None:
    image, displacement, affine = (leaf(t.float()) for t in problem([4, 3, 5], affine=True))
    grad = leaf(torch.rand(2, 2, 3, 2, 4))
    options = (False, "bilinear", "border", True)
    wants = (True, True, True)
    torch.library.opcheck(
        ops.sample_backward.overload, (grad, image, displacement, affine, None, *options, *wants, on.backend)
    )
