"""What only the triton backend's sampling has: blocks of points, scatters, fixed-point sums; and its options in brief.

These run where triton serves: on a GPU, or on the CPU with TRITON_INTERPRET=1 (see test_triton.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import grid_sample, warp, warp_with_gradient
from neuralreg.kernels.backends import registry

from .common import On, assert_near, assert_relative, leaf, serving, strided
from .sampling_oracle import derivatives, identity, off_lattice
from .test_sampling_twice import normalised, problem

ON = serving("warp", "triton")
REFERENCE = On("reference", "cpu")
pytestmark = pytest.mark.skipif(
    not ON, reason=f"triton serves nothing here: {registry.available('triton')[1]}"
)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few points a program, as many points have them."""
    from neuralreg.kernels.backends import triton_sampling, triton_sampling_labels

    monkeypatch.setattr(triton_sampling, "TILE", 16)
    monkeypatch.setattr(triton_sampling_labels, "TILE", 16)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def with_gradients(on: On, function: Any, inputs: list[Tensor], **options: Any) -> list[Tensor]:
    """The results, and the gradients of a weighted sum of them to every input."""
    inputs = [leaf(t) for t in inputs]
    found = on(function, *inputs, **options)
    found = found if isinstance(found, tuple) else (found,)
    total = torch.zeros(())
    for value in found:
        weights = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view_as(value)
        total = total + (value * weights).sum()
    return [*[v.detach() for v in found], *torch.autograd.grad(total, inputs)]


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize(
    ("padding_mode", "affine", "sizes"),
    [
        ("zeros", True, [4, 3, 5]),
        ("border", False, [4, 3, 5]),
        ("reflection", True, [5, 4]),
        ("zeros", False, [1, 3, 4]),
        ("reflection", False, [1, 1]),
    ],
    ids=str,
)
@pytest.mark.usefixtures("small_blocks")
def test_warp_in_blocks(on: On, padding_mode: str, affine: bool, sizes: list[int]) -> None:
    inputs = problem(sizes, 2, affine)
    expected = with_gradients(REFERENCE, warp, inputs, padding_mode=padding_mode)
    for one, other in zip(with_gradients(on, warp, inputs, padding_mode=padding_mode), expected, strict=True):
        assert_near(one, other, 1e-11)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize(
    ("mode", "padding_mode", "align_corners", "sizes"),
    [
        ("bilinear", "zeros", False, [5, 4, 6]),
        ("bilinear", "reflection", False, [7, 5]),
        ("bilinear", "reflection", True, [5, 4, 6]),
        ("bilinear", "border", True, [7, 5]),
        ("nearest", "reflection", False, [5, 4, 6]),
        ("nearest", "border", True, [7, 5]),
    ],
    ids=str,
)
@pytest.mark.usefixtures("small_blocks")
def test_grid_sample_in_blocks(
    on: On, mode: str, padding_mode: str, align_corners: bool, sizes: list[int]
) -> None:
    image = torch.rand(2, 2, *sizes, dtype=torch.float64)
    grid = normalised(off_lattice([2, 3, *[3, 7][: len(sizes) - 1]], sizes, 2), sizes, align_corners)
    options = (mode, padding_mode, align_corners)
    expected = derivatives(REFERENCE, grid_sample, image, grid, *options)
    for one, other in zip(derivatives(on, grid_sample, image, grid, *options), expected, strict=True):
        assert_near(one, other, 1e-11)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_saved_derivative(on: On, dtype: torch.dtype) -> None:
    """Only the grid wants a gradient, and there is one channel: the forward pass keeps the derivative."""
    image = torch.rand(2, 1, 5, 4, 6).to(dtype)
    grid = normalised(off_lattice([2, 3, 5, 4], [5, 4, 6], 2), [5, 4, 6], True)
    grid = grid.to(torch.promote_types(dtype, torch.float32))
    found = []
    for chosen, kind in ((on, grid.dtype), (REFERENCE, torch.float64)):
        g = leaf(grid.to(kind))
        value = chosen(grid_sample, image.to(dtype if chosen is on else kind), g, align_corners=True)
        weights = torch.linspace(-1, 2, value.numel(), dtype=kind).view_as(value)
        found.append(torch.autograd.grad((value.to(kind) * weights).sum(), g)[0])
    bound = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: torch.finfo(dtype).eps}[dtype]
    assert_relative(found[0], found[1], bound)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize(
    ("padding_mode", "affine", "sizes"),
    [("zeros", True, [4, 3, 5]), ("border", False, [4, 3, 5]), ("reflection", True, [5, 4])],
    ids=str,
)
@pytest.mark.usefixtures("small_blocks")
def test_warp_with_gradient_in_blocks(on: On, padding_mode: str, affine: bool, sizes: list[int]) -> None:
    inputs = problem(sizes, 2, affine)
    expected = with_gradients(REFERENCE, warp_with_gradient, inputs, padding_mode=padding_mode)
    actual = with_gradients(on, warp_with_gradient, inputs, padding_mode=padding_mode)
    for one, other in zip(actual, expected, strict=True):
        assert_near(one, other, 1e-11)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("mode", ["nearest", "label"])
@pytest.mark.parametrize("sizes", [[4, 5, 6], [7, 5]], ids=str)
@pytest.mark.usefixtures("small_blocks")
def test_labels_in_blocks(on: On, mode: str, sizes: list[int]) -> None:
    labels = torch.randint(-2, 3, (2, 2, *sizes), dtype=torch.int16)
    out = [4, 3, 5][: len(sizes)]
    displacement = off_lattice([2, *out], sizes, 2) - identity(out)
    matrix = torch.eye(len(sizes), len(sizes) + 1, dtype=torch.float64).expand(2, -1, -1)
    for affine in (None, matrix):
        expected = REFERENCE(warp, labels, displacement, affine, mode, "reflection")
        assert torch.equal(on(warp, labels, displacement, affine, mode, "reflection"), expected)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize(
    ("function", "dtype", "affine"),
    [
        (warp, torch.float64, False),
        (warp, torch.float16, False),
        (warp_with_gradient, torch.float64, True),
        (warp_with_gradient, torch.float32, False),
    ],
)
@pytest.mark.usefixtures("small_blocks", "deterministic")
def test_whole_numbers_are_summed_in_deterministic_mode(
    on: On, function: Any, dtype: torch.dtype, affine: bool
) -> None:
    inputs = [t.detach() for t in problem([4, 3, 5], 2, affine)]
    inputs[0] = inputs[0].to(dtype)
    if dtype != torch.float64:
        inputs[1:] = [t.float() for t in inputs[1:]]
    expected = with_gradients(REFERENCE, function, [t.double() for t in inputs])
    first, second = (with_gradients(on, function, inputs) for _ in range(2))
    bound = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 2 * torch.finfo(dtype).eps}[dtype]
    for one, again, other in zip(first, second, expected, strict=True):
        assert torch.equal(one, again)
        assert_relative(one, other, bound)


@pytest.mark.parametrize("on", ON)
@pytest.mark.usefixtures("deterministic")
def test_fixed_point_sums_of_large_and_of_no_gradients(on: On) -> None:
    image, u = leaf(torch.rand(1, 1, 4, 5)), 0.3 * torch.rand(1, 2, 4, 5)
    for factor in (1e30, 1e-30, 0.0):
        (fixed,) = torch.autograd.grad(on(warp, image, u).sum() * factor, image)
        (expected,) = torch.autograd.grad(REFERENCE(warp, image.double(), u.double()).sum() * factor, image)
        assert bool((fixed - expected).abs().max() <= 1e-6 * expected.abs().max())
    (spoilt,) = torch.autograd.grad(on(warp, image, u).sum() * float("nan"), image)
    assert bool(spoilt.isnan().all())


@pytest.mark.parametrize("on", ON)
def test_non_finite_voxels_and_coordinates_stay_where_they_are(on: On) -> None:
    image, u = torch.rand(1, 1, 5, 6, 7, dtype=torch.float64), torch.zeros(1, 3, 5, 6, 7, dtype=torch.float64)
    u += 0.25
    clean = derivatives(on, warp, image, u)
    image[0, 0, 2, 3, 3] = float("nan")
    spoilt = derivatives(on, warp, image, u)
    near = torch.zeros_like(image, dtype=torch.bool)
    near[:, :, 1:3, 2:4, 2:4] = True
    assert bool((spoilt[0].isnan() == near).all())
    assert_near(spoilt[0][~near], clean[0][~near], 0)
    assert_near(spoilt[1], clean[1], 0)
    assert bool((spoilt[2].isnan().any(1) == near[0]).all())
    u[0, 1, 1, 2, 2] = float("nan")
    image[0, 0, 2, 3, 3] = 0.5
    value, grad_image, grad_u = derivatives(on, warp, image, u)
    assert value[0, 0, 1, 2, 2] == 0
    assert bool(grad_image.isfinite().all() and grad_u.isfinite().all())


@pytest.mark.parametrize("on", ON)
def test_strides_and_nothing(on: On) -> None:
    image, u = torch.rand(2, 2, 4, 5, dtype=torch.float64), torch.randn(2, 2, 3, 4, dtype=torch.float64)
    expected = with_gradients(on, warp_with_gradient, [image, u])
    for i, w in zip(strided(image), strided(u)[::-1], strict=True):
        for one, other in zip(with_gradients(on, warp_with_gradient, [i, w]), expected, strict=True):
            assert_near(one, other, 1e-12)
    for i, w in ((image[:0], u[:0]), (image, u[..., :0]), (image[:, :0], u)):
        results = with_gradients(on, warp, [i, w])
        assert [r.shape for r in results] == [(*i.shape[:2], *w.shape[2:]), i.shape, w.shape]
        assert all(torch.count_nonzero(r) == 0 for r in results)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize(
    ("padding_mode", "affine", "mode", "sizes"),
    [
        ("zeros", True, "bilinear", [4, 3, 5]),
        ("reflection", False, "bilinear", [5, 4]),
        ("border", True, "bilinear", [5, 4]),
        ("border", False, "nearest", [5, 4]),
    ],
    ids=str,
)
@pytest.mark.usefixtures("small_blocks")
def test_second_derivatives(on: On, padding_mode: str, affine: bool, mode: str, sizes: list[int]) -> None:
    found = []
    inputs = problem(sizes, 2, affine)
    wanted = inputs if mode == "bilinear" else inputs[:1]
    for chosen in (on, REFERENCE):
        matrix = inputs[2] if affine else None
        value = chosen(warp, *inputs[:2], matrix, mode, padding_mode)
        weights = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view_as(value)
        grads = torch.autograd.grad((value.square() * weights).sum(), wanted, create_graph=True)
        total = sum((g * torch.linspace(1, 2, g.numel(), dtype=g.dtype).view_as(g)).sum() for g in grads)
        found.append(torch.autograd.grad(total, wanted))
    for one, other in zip(*found, strict=True):
        assert_near(one, other, 1e-10)


@pytest.mark.parametrize("on", ON)
@pytest.mark.usefixtures("deterministic")
def test_second_derivatives_of_grid_sample_by_whole_numbers(on: On) -> None:
    image = torch.rand(1, 2, 5, 4, dtype=torch.float64)
    grid = normalised(off_lattice([1, 3, 6], [5, 4], 2), [5, 4], False)
    found = []
    for chosen in (on, on, REFERENCE):
        i, g = leaf(image), leaf(grid)
        value = chosen(grid_sample, i, g, "bilinear", "reflection", False)
        (slope,) = torch.autograd.grad(value.pow(3).sum(), g, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), (i, g)))
    for one, again, other in zip(*found, strict=True):
        assert torch.equal(one, again)
        assert_relative(one, other, 1e-10)
