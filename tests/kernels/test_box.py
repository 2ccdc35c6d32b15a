"""box_mean on every backend, against boxes averaged one by one in numpy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from neuralreg.kernels import box_mean

from .common import On, assert_near, assert_relative, assert_same_for_any_threads, leaf, serving, strided

ON = serving("box_mean")
SHAPES = [
    ((2, 2, 6, 5, 7), 3),
    ((1, 1, 5, 9, 11), (4, 5, 2)),
    ((1, 2, 12, 13), 6),
    ((2, 1, 1, 8), (3, 4)),
    ((1, 1, 7, 1, 1), (5, 1, 3)),
    ((1, 1, 3, 4, 25), 1),
    ((1, 1, 4, 3, 5), (40, 11, 8)),
    ((1, 1, 70, 3, 20), (5, 2, 19)),  # more planes than a work item of the cpu backend
    ((1, 1, 5, 70, 18), (3, 9, 4)),  # more rows than a strip
]


def oracle(image: Tensor, window: Any) -> Tensor:
    """Every box gathered on its own."""
    ndim = image.ndim - 2
    windows = [window] * ndim if isinstance(window, int) else list(window)
    x = image.double().numpy()
    result = np.empty(x.shape)
    for place in itertools.product(*[range(n) for n in x.shape[2:]]):
        box = [slice(max(0, i - (w - 1) // 2), i + w // 2 + 1) for i, w in zip(place, windows, strict=True)]
        result[(..., *place)] = x[(..., *box)].mean(tuple(range(2, x.ndim)))
    return torch.from_numpy(result)


def gradient(on: On, image: Tensor, window: Any, upstream: Tensor) -> Tensor:
    x = leaf(image)
    (on(box_mean, x, window) * upstream).sum().backward()
    return x.grad


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize(("shape", "window"), SHAPES, ids=str)
def test_values_and_gradients(on: On, shape: Any, window: Any) -> None:
    image, upstream, tangent = torch.randn(3, *shape, dtype=torch.float64)
    assert_near(on(box_mean, image, window), oracle(image, window), 1e-12)
    # The gradient is the adjoint: <A x, y> = <x, A' y> for every x.
    found = gradient(on, image, window, upstream)
    for x in (image, tangent, torch.ones_like(image)):
        assert_near((x * found).sum(), (oracle(x, window) * upstream).sum(), 1e-10)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize(("shape", "window"), [((1, 1, 3, 4, 2), (2, 3, 4)), ((2, 1, 3, 4), 4)], ids=str)
def test_gradcheck_once_and_twice(on: On, shape: Any, window: Any) -> None:
    image = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: on(box_mean, x, window), [image], fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: on(box_mean, x.square(), window), [image], fast_mode=True)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_large_offsets_and_constants(on: On, dtype: torch.dtype) -> None:
    """What is left are the roundings of input and result; running sums in float32 would lose everything."""
    eps = torch.finfo(dtype).eps
    constant = torch.full((1, 1, 20, 9, 30), 1e6 / 3, dtype=dtype)
    assert_relative(on(box_mean, constant, 5), constant.double(), 8 * eps)
    image = 1e4 + torch.rand(1, 1, 20, 9, 30, dtype=dtype)
    assert_relative(on(box_mean, image, (5, 4, 9)), oracle(image, (5, 4, 9)), 8 * eps)
    upstream = 1e4 + torch.rand_like(image)
    found = gradient(on, image, (5, 4, 9), upstream).double()
    assert_relative(found.sum(), upstream.double().sum(), 8 * eps)  # a constant keeps its value
    assert_relative(
        found, gradient(On("reference", "cpu"), image.double(), (5, 4, 9), upstream.double()), 8 * eps
    )


@pytest.mark.parametrize("on", ON)
def test_zeros_behind_bright_voxels_stay_zeros(on: On) -> None:
    image = torch.zeros(1, 1, 24, 20, 30)
    image[:, :, :4, :5, :6] = 1e6 * torch.rand(4, 5, 6) + 0.1
    for found in (on(box_mean, image, 3), gradient(on, image, 3, image)):
        assert (found[:, :, :3, :4, :5] > 0).all()
        assert (found[:, :, 6:] == 0).all()
        assert (found[:, :, :, 7:] == 0).all()
        assert (found[..., 8:] == 0).all()


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_touches_its_own_boxes_alone(on: On, value: float) -> None:
    image, window = torch.rand(1, 2, 12, 40, 18), (4, 3, 5)
    expected, upstream = oracle(image, window), torch.rand_like(image)
    expected_gradient = gradient(on, image, window, upstream)
    image[0, 1, 5, 30, 7] = upstream[0, 1, 5, 30, 7] = value
    found = on(box_mean, image, window)
    seen = torch.zeros_like(image, dtype=torch.bool)
    seen[0, 1, 3:7, 29:32, 5:10] = True
    assert not found[seen].isfinite().any()
    assert_near(found[~seen], expected[~seen], 1e-6)
    given = gradient(on, torch.rand_like(image), window, upstream)
    hit = torch.zeros_like(seen)
    hit[0, 1, 4:8, 29:32, 5:10] = True
    assert not given[hit].isfinite().any()
    assert_near(given[~hit], expected_gradient[~hit], 1e-6)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_computed_wider(on: On, dtype: torch.dtype) -> None:
    image = torch.rand(1, 1, 9, 8, 10).to(dtype)
    found = on(box_mean, image, 5)
    assert found.dtype == dtype
    assert_near(found, oracle(image, 5), torch.finfo(dtype).eps)
    assert gradient(on, image, 5, torch.ones_like(image)).dtype == dtype


@pytest.mark.parametrize("on", ON)
def test_strides_and_empty_batches(on: On) -> None:
    image = torch.rand(1, 2, 5, 6, 7, dtype=torch.float64)
    expected = on(box_mean, image, 3)
    assert all(torch.equal(on(box_mean, x, 3), expected) for x in strided(image))
    for shape in ((0, 1, 4, 5, 6), (2, 1, 4, 0, 6), (1, 0, 4, 5)):
        empty = torch.rand(shape)
        assert on(box_mean, empty, 3).shape == empty.shape
        assert gradient(on, empty, 3, empty).shape == empty.shape


@pytest.mark.parametrize("on", serving("box_mean", "cpu"))
def test_any_number_of_threads_gives_the_same_bits(on: On) -> None:
    image = torch.rand(1, 1, 70, 40, 33)
    assert_same_for_any_threads(lambda: [on(box_mean, image, 5), gradient(on, image, 5, image)])


def test_wrong_arguments() -> None:
    image = torch.rand(1, 1, 5, 6, 7)
    for arguments, words in (
        ((image, 0), "window must be"),
        ((image, (3, 3)), "window must be"),
        ((image[0, 0], 3), r"image must be \(B, C, H, W\)"),
        ((image.int(), 3), "image must be floating point"),
    ):
        with pytest.raises(ValueError, match=words):
            box_mean(*arguments)
