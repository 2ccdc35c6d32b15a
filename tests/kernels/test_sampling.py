"""grid_sample and warp on every backend, against a sampler that visits one point after the other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from neuralreg.kernels import grid_sample, warp
from neuralreg.kernels.backends.registry import BackendError

from .common import On, assert_near, assert_relative, assert_same_for_any_threads, leaf, serving, strided
from .sampling_oracle import derivatives, identity, off_lattice, sample, unnormalise

GRID_SAMPLE, WARP = serving("grid_sample"), serving("warp")
MODES = ["bilinear", "nearest"]
PADDINGS = ["zeros", "border", "reflection"]

# float32: a coordinate near 30 is right to 4e-6 voxel after [-1, 1]; the image changes by 1 a voxel.
FLOAT32 = 2e-5


@pytest.mark.parametrize("on", GRID_SAMPLE)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("sizes", [[5, 4, 7], [6, 3], [1, 4, 3], [5, 1]], ids=str)
def test_grid_sample(on: On, mode: str, padding_mode: str, align_corners: bool, sizes: list[int]) -> None:
    image = torch.rand(2, 3, *sizes, dtype=torch.float64)
    grid = 4 * torch.rand(2, *[3, 5, 2][: len(sizes)], len(sizes), dtype=torch.float64) - 2
    points = unnormalise(grid, sizes, align_corners)
    expected = sample(image, points, mode, padding_mode, 0.0 if align_corners else 0.5)
    assert_near(on(grid_sample, image, grid, mode, padding_mode, align_corners), expected, 1e-10)


@pytest.mark.parametrize("on", GRID_SAMPLE)
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sizes", [[9, 8, 11], [13, 10]], ids=str)
def test_grid_sample_is_torchs(
    on: On, padding_mode: str, align_corners: bool, mode: str, sizes: list[int]
) -> None:
    image = torch.rand(2, 2, *sizes, dtype=torch.float64)
    grid = 3 * torch.rand(2, 14, *[6, 7][: len(sizes) - 1], len(sizes), dtype=torch.float64) - 1.5
    i, g = leaf(image), leaf(grid)
    value = F.grid_sample(i, g, mode, padding_mode, align_corners)
    weights = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).view_as(value)
    (value * weights).sum().backward()
    expected = [value.detach(), i.grad, g.grad]
    actual = derivatives(on, grid_sample, image, grid, mode, padding_mode, align_corners)
    for one, other in zip(actual, expected, strict=True):
        assert_near(one, other, 1e-11)


@pytest.mark.parametrize("on", GRID_SAMPLE)
def test_grid_sample_defaults_are_torchs(on: On) -> None:
    image = torch.rand(1, 1, 5, 6)
    grid = 3 * torch.rand(1, 7, 8, 2) - 1.5
    assert_near(on(grid_sample, image, grid), F.grid_sample(image, grid, align_corners=False), 1e-6)


@pytest.mark.parametrize("on", WARP)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(
    ("sizes", "out"),
    [
        ([5, 4, 7], [5, 4, 7]),
        ([5, 4, 3], [3, 6, 2]),
        ([6, 3], [4, 7]),
        ([1, 4, 3], [2, 1, 3]),
        ([5, 1], [1, 4]),
    ],
    ids=str,
)
def test_warp(on: On, mode: str, padding_mode: str, affine: bool, sizes: list[int], out: list[int]) -> None:
    ndim = len(sizes)
    image = torch.rand(2, 3, *sizes, dtype=torch.float64)
    displacement = 3 * torch.randn(2, ndim, *out, dtype=torch.float64)
    points = identity(out) + displacement
    matrix = None
    if affine:
        matrix = 0.3 * torch.randn(2, ndim, ndim + 1, dtype=torch.float64)
        matrix[:, :, :ndim] += torch.eye(ndim, dtype=torch.float64)
        points = torch.einsum("bij,bj...->bi...", matrix[:, :, :ndim], points)
        points = points + matrix[:, :, ndim].view(2, ndim, *[1] * ndim)
    expected = sample(image, points, mode, padding_mode)
    assert_near(on(warp, image, displacement, matrix, mode, padding_mode), expected, 1e-10)


@pytest.mark.parametrize("on", WARP)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_warp_by_nothing_and_by_whole_voxels(on: On, dtype: torch.dtype) -> None:
    image = torch.rand(1, 2, 6, 7, 5, dtype=dtype)
    zero = torch.zeros(1, 3, 6, 7, 5, dtype=dtype)
    bound = 1e-12 if dtype == torch.float64 else 5e-6  # some roundings of 7 x 6e-8 in [-1, 1]
    assert_near(on(warp, image, zero), image, bound)
    shift = zero.clone()
    shift[:, 1] = 2
    shifted = torch.zeros_like(image)
    shifted[..., :5, :] = image[..., 2:, :]
    assert_near(on(warp, image, shift), shifted, bound)
    assert torch.equal(on(warp, image, shift, mode="nearest"), shifted)


@pytest.mark.parametrize("on", WARP)
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_nearest_rounds_ties_to_even(on: On, padding_mode: str, dtype: torch.dtype) -> None:
    image = torch.rand(1, 1, 7, 6, dtype=dtype)
    displacement = torch.randint(-6, 7, (1, 2, 5, 4)).to(dtype) / 2
    expected = sample(image, identity([5, 4]) + displacement, "nearest", padding_mode)
    assert_near(on(warp, image, displacement, None, "nearest", padding_mode), expected, 1e-12)


@pytest.mark.parametrize("on", WARP)
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("ndim", [2, 3])
def test_float32(on: On, padding_mode: str, ndim: int) -> None:
    sizes, out = [21, 17, 30][:ndim], [19, 23, 9][:ndim]
    image = torch.rand(2, 2, *sizes)
    displacement = (off_lattice([2, *out], sizes, 3) - identity(out)).float()
    expected = derivatives(
        On("reference", "cpu"), warp, image.double(), displacement.double(), padding_mode=padding_mode
    )
    actual = derivatives(on, warp, image, displacement, padding_mode=padding_mode)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == torch.float32
        assert_relative(one, other, FLOAT32)


@pytest.mark.parametrize("on", WARP)
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("sizes", [[4, 3, 5], [5, 4], [1, 3, 4], [1, 1]], ids=str)
def test_warp_gradcheck(on: On, padding_mode: str, affine: bool, sizes: list[int]) -> None:
    ndim = len(sizes)
    out = [3, 2, 4][:ndim]
    image = torch.rand(2, 2, *sizes, dtype=torch.float64)
    points = off_lattice([2, *out], sizes, 2)
    matrix = None
    if affine:
        square = torch.eye(ndim, dtype=torch.float64) + 0.2 * torch.randn(2, ndim, ndim, dtype=torch.float64)
        shift = torch.randn(2, ndim, 1, dtype=torch.float64)
        matrix = torch.cat([square, shift], 2)
        points = torch.linalg.solve(square, points.flatten(2) - shift).view_as(points)
    inputs = [leaf(image), leaf(points - identity(out)), *([] if matrix is None else [leaf(matrix)])]
    assert torch.autograd.gradcheck(
        lambda *i: on(warp, *i, padding_mode=padding_mode), inputs, fast_mode=True
    )


@pytest.mark.parametrize("on", GRID_SAMPLE)
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("ndim", [2, 3])
def test_grid_sample_gradcheck(on: On, padding_mode: str, align_corners: bool, ndim: int) -> None:
    sizes = [4, 3, 5][:ndim]
    points = off_lattice([2, *[3, 2, 4][:ndim]], sizes, 2)
    normalised = [
        2 * p / (n - 1) - 1 if align_corners else (2 * p + 1) / n - 1
        for p, n in zip(points.unbind(1), sizes, strict=True)
    ]
    inputs = leaf(torch.rand(2, 2, *sizes, dtype=torch.float64)), leaf(torch.stack(normalised[::-1], -1))
    assert torch.autograd.gradcheck(
        lambda i, g: on(grid_sample, i, g, "bilinear", padding_mode, align_corners), inputs, fast_mode=True
    )


@pytest.mark.parametrize("on", WARP)
def test_nearest_has_a_gradient_to_the_image_only(on: On) -> None:
    image = torch.rand(1, 1, 5, 6, dtype=torch.float64)
    displacement = torch.randn(1, 2, 5, 6, dtype=torch.float64)
    _, grad_image, grad_displacement = derivatives(on, warp, image, displacement, mode="nearest")
    assert torch.count_nonzero(grad_displacement) == 0
    assert torch.count_nonzero(grad_image) > 0


@pytest.mark.parametrize("on", WARP)
@pytest.mark.parametrize("wanted", ["image", "displacement"])
def test_gradient_to_one_input_only(on: On, wanted: str) -> None:
    image = torch.rand(1, 2, 5, 6, dtype=torch.float64)
    displacement = torch.randn(1, 2, 5, 6, dtype=torch.float64)
    _, grad_image, grad_displacement = derivatives(on, warp, image, displacement)
    i = leaf(image) if wanted == "image" else image
    u = leaf(displacement) if wanted == "displacement" else displacement
    value = on(warp, i, u)
    (value * torch.linspace(-1, 2, value.numel(), dtype=torch.float64).view_as(value)).sum().backward()
    if wanted == "image":
        assert_relative(i.grad, grad_image, 1e-12)
    else:
        assert_relative(u.grad, grad_displacement, 1e-12)


@pytest.mark.parametrize("on", WARP)
@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_gradient_is_there_where_it_is_zero(on: On, padding_mode: str) -> None:
    displacement = leaf(torch.full((1, 2, 1, 1), 0.25))
    on(warp, torch.ones(1, 1, 1, 1), displacement, padding_mode=padding_mode).sum().backward()
    assert (torch.count_nonzero(displacement.grad) > 0) == (padding_mode == "zeros")


@pytest.mark.parametrize("on", WARP)
def test_strides(on: On) -> None:
    image = torch.rand(2, 3, 4, 5, 6, dtype=torch.float64)
    displacement = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    expected = derivatives(on, warp, image, displacement)
    for i, u in zip(strided(image), strided(displacement)[::-1], strict=True):
        for one, other in zip(derivatives(on, warp, i, u), expected, strict=True):
            assert_near(one, other, 1e-12)
    one = image[:1].expand(2, -1, -1, -1, -1)
    assert_near(on(warp, one, displacement), on(warp, one.contiguous(), displacement), 1e-12)
    last = image.contiguous(memory_format=torch.channels_last_3d)
    assert_near(on(warp, last, displacement), expected[0], 1e-12)


@pytest.mark.parametrize("on", GRID_SAMPLE)
def test_grid_sample_strides(on: On) -> None:
    image = torch.rand(2, 3, 4, 5, 6, dtype=torch.float64)
    grid = 3 * torch.rand(2, 4, 3, 5, 3, dtype=torch.float64) - 1.5
    expected = derivatives(on, grid_sample, image, grid)
    for i, g in zip(strided(image), strided(grid)[::-1], strict=True):
        for one, other in zip(derivatives(on, grid_sample, i, g), expected, strict=True):
            assert_near(one, other, 1e-12)


@pytest.mark.parametrize("on", WARP)
@pytest.mark.parametrize("ndim", [2, 3])
def test_empty_batch(on: On, ndim: int) -> None:
    sizes = [4, 5, 6][:ndim]
    for result, channels in zip(
        derivatives(on, warp, torch.rand(0, 2, *sizes), torch.rand(0, ndim, *sizes)),
        (2, 2, ndim),
        strict=True,
    ):
        assert result.shape == (0, channels, *sizes)


@pytest.mark.parametrize("on", WARP)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_coordinates_that_are_no_coordinates(
    on: On, mode: str, padding_mode: str, ndim: int, dtype: torch.dtype
) -> None:
    sizes = [5, 4, 6][:ndim]
    image = 5 + torch.rand(1, 1, *sizes, dtype=dtype)
    clean = torch.rand(1, ndim, 40, *[1] * (ndim - 1), dtype=dtype)
    clean[:, 0] -= torch.arange(40).view(40, *[1] * (ndim - 1)) % 5
    clean[:, 0] = clean[:, 0].clamp(min=-30)
    bad, spoilt = clean.clone(), torch.zeros(40, dtype=torch.bool)
    wild = [math.nan, math.inf, -math.inf, 1e30, -1e30, 3e9, -3e9, 1e19, -1e19]
    for position, value in enumerate(wild):
        for axis in range(ndim):
            bad[:, axis, 3 * position + axis] = value
            spoilt[3 * position + axis] = True
    expected = derivatives(on, warp, image, clean, mode=mode, padding_mode=padding_mode)
    value, grad_image, grad_bad = derivatives(on, warp, image, bad, mode=mode, padding_mode=padding_mode)
    assert torch.equal(value[:, :, ~spoilt], expected[0][:, :, ~spoilt])
    assert torch.equal(grad_bad[:, :, ~spoilt], expected[2][:, :, ~spoilt])
    # what was read is a mixture of voxels and zeros, not some other memory
    assert bool(((value >= 0) & (value <= image.max() * (1 + 1e-5))).all())
    assert bool(grad_image.isfinite().all())
    assert bool(grad_bad.isfinite().all())
    if padding_mode == "zeros":
        assert torch.count_nonzero(value[:, :, spoilt]) == 0


@pytest.mark.parametrize("on", WARP)
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
def test_nan_lies_below_the_first_voxel(on: On, mode: str, padding_mode: str) -> None:
    image = torch.rand(1, 1, 4, 5)
    displacement = torch.full((1, 2, 4, 5), math.nan)
    expected = torch.zeros_like(image) if padding_mode == "zeros" else image[..., :1, :1].expand_as(image)
    assert_near(on(warp, image, displacement, None, mode, padding_mode), expected, 1e-6)
    grid = torch.full((1, 4, 5, 2), math.nan)
    for align_corners in (True, False):
        assert_near(on(grid_sample, image, grid, mode, padding_mode, align_corners), expected, 1e-6)


@pytest.mark.parametrize("on", WARP)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_computed_in_float32(on: On, dtype: torch.dtype) -> None:
    image = torch.rand(1, 2, 9, 8, 7).to(dtype)
    displacement = (off_lattice([1, 9, 8, 7], [9, 8, 7], 2) - identity([9, 8, 7])).float()
    expected = derivatives(On("reference", "cpu"), warp, image.double(), displacement.double())
    actual = derivatives(on, warp, image, displacement)
    assert [a.dtype for a in actual] == [dtype, dtype, torch.float32]
    for one, other in zip(actual, expected, strict=True):
        # the upstream gradient and the result are rounded once each
        assert_relative(one, other, torch.finfo(dtype).eps)
    grid = torch.rand(1, 9, 8, 7, 3) - 0.5
    sampled = on(grid_sample, image, grid)
    assert sampled.dtype == dtype
    assert_near(sampled, F.grid_sample(image.float(), grid, align_corners=False), torch.finfo(dtype).eps)


@pytest.mark.parametrize("on", serving("warp", "cpu"))
@pytest.mark.parametrize("ndim", [2, 3])
def test_same_bits_for_any_number_of_threads(on: On, ndim: int) -> None:
    sizes = [90, 80, 40][:ndim] if ndim == 2 else [31, 40, 37]
    image, displacement = torch.rand(2, 2, *sizes), 3 * torch.randn(2, ndim, *sizes)

    def compute() -> list[Tensor]:
        return derivatives(on, warp, image, displacement)

    assert_same_for_any_threads(compute)


@pytest.mark.parametrize("on", serving("grid_sample", "cpu"))
def test_grid_sample_has_the_same_bits_for_any_number_of_threads(on: On) -> None:
    image, grid = torch.rand(1, 2, 31, 40, 37), 2.2 * torch.rand(1, 30, 31, 32, 3) - 1.1
    assert_same_for_any_threads(lambda: derivatives(on, grid_sample, image, grid))


def wrong_cases() -> dict[str, tuple[Any, tuple[Any, ...], str]]:
    image, u = torch.rand(1, 1, 5, 6, 7), torch.rand(1, 3, 5, 6, 7)
    grid = torch.rand(1, 5, 6, 7, 3)
    two, three_u, three_grid = (torch.cat([t] * n) for t, n in ((image, 2), (u, 3), (grid, 3)))
    return {
        "channels of the displacement": (warp, (image, u[:, :2]), "displacement"),
        "batches": (
            warp,
            (two, three_u),
            "displacement",
        ),
        "2-D displacement": (warp, (image, u[..., 0]), "displacement"),
        "affine": (warp, (image, u, torch.rand(1, 3, 3)), "affine"),
        "mode": (warp, (image, u, None, "bicubic"), "mode.*bicubic"),
        "padding": (warp, (image, u, None, "bilinear", "wrap"), "padding_mode.*wrap"),
        "image axes": (warp, (image[0, 0], u), "image|input"),
        "empty image": (warp, (image[..., :0], u), "image|input"),
        "grid batches": (
            grid_sample,
            (two, three_grid),
            "grid must",
        ),
        "grid components": (grid_sample, (image, grid[..., :2]), "grid"),
        "grid axes": (grid_sample, (image, grid[0]), "grid"),
        "grid mode": (grid_sample, (image, grid, "cubic"), "mode.*cubic"),
        "grid padding": (grid_sample, (image, grid, "bilinear", "wrap"), "padding_mode.*wrap"),
    }


@pytest.mark.parametrize("on", WARP)
@pytest.mark.parametrize("case", wrong_cases())
def test_wrong_arguments(on: On, case: str) -> None:
    function, arguments, message = wrong_cases()[case]
    with pytest.raises(ValueError, match=f"(?s)^(?!.*\n).*({message})"):
        on(function, *arguments)


def test_unknown_backend() -> None:
    with pytest.raises(BackendError, match="abacus"):
        warp(torch.rand(1, 1, 5, 6), torch.rand(1, 2, 5, 6), backend="abacus")
