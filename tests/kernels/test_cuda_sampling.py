"""The CUDA kernels of sampling, run on the CPU by tests/cuda_on_cpu: through the checks that every backend passes,
and for what is theirs alone, blocks and the order of sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import grid_sample, warp, warp_with_gradient
from neuralreg.kernels import sampling_ops as ops

from ..cuda_on_cpu.build import Library
from ..cuda_on_cpu.fixtures import kernels, library  # noqa: F401 (fixtures)
from . import test_sampling as first
from . import test_sampling_labels as labels
from . import test_sampling_twice as second
from .common import On, assert_near, assert_relative, leaf
from .sampling_oracle import identity, off_lattice

CUDA, REFERENCE = On("cuda", "cpu"), On("reference", "cpu")
PADDINGS = ["zeros", "border", "reflection"]
SIZES = [[5, 4, 7], [6, 3], [1, 4, 3], [5, 1], [1, 1]]

padding_modes = pytest.mark.parametrize("padding_mode", PADDINGS)
modes = pytest.mark.parametrize("mode", ["bilinear", "nearest"])
dimensions = pytest.mark.parametrize("ndim", [2, 3])


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@padding_modes
@modes
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values(padding_mode: str, mode: str, sizes: list[int]) -> None:
    for option in (False, True):
        first.test_grid_sample(CUDA, mode, padding_mode, option, sizes)
        first.test_warp(CUDA, mode, padding_mode, option, sizes, [3, 6, 2][: len(sizes)])


@padding_modes
@modes
@dimensions
def test_torch_s_numbers_and_gradients(padding_mode: str, mode: str, ndim: int) -> None:
    for align_corners in (False, True):
        first.test_grid_sample_is_torchs(CUDA, padding_mode, align_corners, mode, [9, 8, 11][:ndim])


@padding_modes
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_first_derivatives(padding_mode: str, sizes: list[int]) -> None:
    for affine in (False, True):
        first.test_warp_gradcheck(CUDA, padding_mode, affine, sizes)


@padding_modes
@dimensions
def test_first_derivatives_of_grids(padding_mode: str, ndim: int) -> None:
    for align_corners in (False, True):
        first.test_grid_sample_gradcheck(CUDA, padding_mode, align_corners, ndim)


@padding_modes
@dimensions
def test_float32(padding_mode: str, ndim: int) -> None:
    first.test_float32(CUDA, padding_mode, ndim)


@padding_modes
@modes
@dimensions
def test_coordinates_that_are_no_coordinates(padding_mode: str, mode: str, ndim: int) -> None:
    for dtype in (torch.float32, torch.float64):
        first.test_coordinates_that_are_no_coordinates(CUDA, mode, padding_mode, ndim, dtype)
    first.test_nan_lies_below_the_first_voxel(CUDA, mode, padding_mode)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types(dtype: torch.dtype) -> None:
    first.test_half_types_are_computed_in_float32(CUDA, dtype)
    for ndim in (2, 3):
        second.test_half_images_are_read_exactly(CUDA, dtype, ndim)


@pytest.mark.parametrize(
    "check",
    [
        first.test_strides,
        first.test_grid_sample_strides,
        first.test_nearest_has_a_gradient_to_the_image_only,
        second.test_opcheck_of_the_differentiable_backward,
        second.test_second_derivatives_of_warp_with_gradient_are_refused,
        second.test_warp_with_gradient_of_one_result_only,
        second.test_warp_with_gradient_of_odd_tensors,
        labels.test_ties_go_to_the_smaller_label,
        labels.test_labels_have_no_gradient,
    ],
    ids=lambda check: check.__name__,
)
def test_what_every_backend_does(check: Callable[[On], None]) -> None:
    check(CUDA)


@pytest.mark.parametrize(
    ("check", "value"),
    [
        *[(first.test_nearest_rounds_ties_to_even, (p, torch.float32)) for p in PADDINGS],
        *[(first.test_gradient_is_there_where_it_is_zero, (p,)) for p in PADDINGS],
        *[(second.test_nearest_gradgradcheck, (p,)) for p in PADDINGS],
        *[(first.test_gradient_to_one_input_only, (wanted,)) for wanted in ("image", "displacement")],
        *[(first.test_empty_batch, (ndim,)) for ndim in (2, 3)],
        *[(labels.test_strides_empty_batches_and_wild_coordinates, (m,)) for m in ("nearest", "label")],
    ],
)
def test_what_every_backend_does_with(check: Callable[..., None], value: tuple[Any, ...]) -> None:
    check(CUDA, *value)


@padding_modes
@pytest.mark.parametrize("sizes", [[4, 3, 5], [5, 4], [1, 3, 4]], ids=str)
def test_second_derivatives(padding_mode: str, sizes: list[int]) -> None:
    for affine in (False, True):
        second.test_warp_gradgradcheck(CUDA, padding_mode, affine, sizes)
    for align_corners in (False, True):
        if 1 not in sizes:
            second.test_grid_sample_gradgradcheck(CUDA, padding_mode, align_corners, len(sizes))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_second_derivatives_to_some_inputs(wanted: tuple[int, ...]) -> None:
    second.test_second_derivatives_to_some_inputs(CUDA, wanted)


@padding_modes
def test_a_saved_derivative_is_the_computed_one(padding_mode: str) -> None:
    image, grid = second.saved_case()
    found = []
    for x in (image, leaf(image)):  # the first saves: only the grid wants a gradient
        g = leaf(grid)
        value = CUDA(grid_sample, x, g, "bilinear", padding_mode, True)
        found.append(torch.autograd.grad(value.square().sum(), g)[0])
    assert_relative(found[0], found[1], 1e-12)


@padding_modes
@pytest.mark.parametrize("sizes", [[4, 3, 5], [5, 4], [1, 3, 4]], ids=str)
def test_warp_with_gradient(padding_mode: str, sizes: list[int]) -> None:
    for affine in (False, True):
        second.test_warp_with_gradient(CUDA, padding_mode, affine, sizes)


@padding_modes
@pytest.mark.parametrize("sizes", [[4, 5, 6], [7, 5], [1, 4, 3], [5, 1]], ids=str)
def test_votes(padding_mode: str, sizes: list[int]) -> None:
    labels.test_vote(CUDA, padding_mode, sizes)


@pytest.mark.parametrize(
    "dtype", [*labels.INTEGERS, torch.bool, torch.float16, torch.float32, torch.float64], ids=str
)
def test_labels_of_every_type(dtype: torch.dtype) -> None:
    for mode in ("nearest", "label"):
        labels.test_every_type_comes_back_as_it_is(CUDA, dtype, mode)


def large(count: int, ndim: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Image, displacement of ``count`` points a batch item and affine, points clear of the lattice."""
    sizes = [6, 5, 7][:ndim]
    out = [count, *[1] * (ndim - 1)]
    image = torch.rand(2, 2, *sizes, dtype=torch.float64)
    affine = torch.eye(ndim, ndim + 1, dtype=torch.float64).expand(2, -1, -1).clone()
    affine[1, :, ndim] = torch.tensor([0.5, -0.25, 0.125][:ndim])
    points = off_lattice([2, *out], sizes, 2) - affine[:, :, ndim].view(2, ndim, *[1] * ndim)
    return [t.to(dtype) for t in (image, points - identity(out), affine)]


def gradients(function: Any, on: On, tensors: list[Tensor], **options: Any) -> list[Tensor]:
    """Values, and the gradients of a weighted sum of them."""
    inputs = [leaf(t) for t in tensors]
    values = on(function, *inputs, **options)
    values = values if isinstance(values, tuple) else (values,)
    total = sum((v * torch.linspace(-1, 2, v.numel(), dtype=v.dtype).view_as(v)).sum() for v in values)
    return [*[v.detach() for v in values], *torch.autograd.grad(total, inputs)]


@dimensions
@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 1025])
def test_any_number_of_points(count: int, ndim: int) -> None:
    tensors = large(count, ndim)
    found, expected = (gradients(warp, on, tensors) for on in (CUDA, REFERENCE))
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, 1e-11)


@padding_modes
@pytest.mark.parametrize("function", [warp, warp_with_gradient])
def test_deterministic_sums(
    function: Any,
    padding_mode: str,
    deterministic: None,
    kernels: Library,  # noqa: F811
) -> None:
    tensors = large(1100, 3)
    expected = gradients(function, REFERENCE, tensors, padding_mode=padding_mode)
    # float32: i + u with i up to 1100 is right to 6e-5 voxel, and the image changes by 1 a voxel
    for dtype, bound in ((torch.float32, 2e-4), (torch.float64, 1e-11)):
        found = []
        for order in (0, 1, 2):
            kernels.order(order)
            typed = [t.to(dtype) for t in tensors]
            found.append(gradients(function, CUDA, typed, padding_mode=padding_mode))
        for other in found[1:]:
            for one, same in zip(other, found[0], strict=True):
                assert torch.equal(one, same)
        for one, other in zip(found[0], expected, strict=True):
            assert_relative(one, other, bound)


def test_only_the_image_s_gradient_depends_on_the_order(kernels: Library) -> None:  # noqa: F811
    found = []
    for order in (0, 1, 2):
        kernels.order(order)
        found.append(gradients(warp, CUDA, large_once()))
    for other in found[1:]:
        for which in (0, 2, 3):
            assert torch.equal(other[which], found[0][which])
    assert any(not torch.equal(other[1], found[0][1]) for other in found[1:])


def large_once() -> list[Tensor]:
    torch.manual_seed(1)
    return large(1100, 3, torch.float32)


def test_deterministic_second_derivatives(deterministic: None, kernels: Library) -> None:  # noqa: F811
    def compute(on: On, dtype: torch.dtype) -> list[Tensor]:
        inputs = [leaf(t.to(dtype)) for t in large_once()]
        grads = torch.autograd.grad(on(warp, *inputs).square().sum(), inputs, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in grads), inputs))

    found = []
    for order in (0, 1, 2):
        kernels.order(order)
        found.append(compute(CUDA, torch.float64))
    for other in found[1:]:
        for one, same in zip(other, found[0], strict=True):
            assert torch.equal(one, same)
    for one, other in zip(found[0], compute(REFERENCE, torch.float64), strict=True):
        assert_relative(one, other, 1e-11)


def image_gradient(grad: Tensor, mode: str = "bilinear") -> Tensor:
    image, displacement, affine = large_once()
    grad = grad.expand(2, 2, *displacement.shape[2:])
    options = (False, mode, "border", True, True, False, False, "cuda")
    return ops.sample_backward(grad, image, displacement, affine, None, *options)[0]


@modes
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_deterministic_sums_of_any_size(size: float, mode: str, deterministic: None) -> None:
    unit, scaled = image_gradient(torch.ones(()), mode), image_gradient(torch.full((), size), mode)
    assert_near(scaled / size if size else scaled, unit if size else 0 * unit, 1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_deterministic_sums_that_are_not_finite(bad: float, deterministic: None) -> None:
    assert image_gradient(torch.full((), bad)).isnan().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_voxels_that_are_not_finite(bad: float) -> None:
    """They reach the points whose cells they are in; where padding moved the coordinate, no gradient."""
    image, displacement = torch.rand(1, 1, 6, 7), torch.zeros(1, 2, 6, 7)
    displacement[:, :, 0, 0], displacement[:, :, 3, 3] = -3.0, 0.5
    found = gradients(warp, CUDA, [image.index_fill(3, torch.tensor([0]), bad), displacement + 0.1])
    assert not found[0][..., 1:, 0].isfinite().any()
    assert found[0][..., 1:].isfinite().all()
    image[..., 0, 0] = bad
    value, grad_image, grad = gradients(warp, CUDA, [image, displacement], padding_mode="border")
    image[..., 0, 0] = 0
    expected = gradients(warp, REFERENCE, [image, displacement], padding_mode="border")
    assert not value[..., 0, 0].isfinite()
    value[..., 0, 0] = 0
    for one, other in zip((value, grad_image), expected[:2], strict=True):
        assert_near(one, other, 1e-6)
    assert grad.isfinite().all()


def test_compiles_whole() -> None:
    image, displacement, _ = large(20, 2)
    compiled = torch.compile(warp, fullgraph=True, backend="aot_eager")
    inputs = [leaf(image), leaf(displacement)]
    value = compiled(*inputs, backend="cuda")
    grads = torch.autograd.grad(value.square().sum(), inputs)
    direct = CUDA(warp, *inputs)
    assert torch.equal(value, direct)
    for one, other in zip(grads, torch.autograd.grad(direct.square().sum(), inputs), strict=True):
        assert_near(one, other, 1e-12)
