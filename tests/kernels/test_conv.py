"""conv_relu_conv on every backend, against loops over taps in numpy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from neuralreg.kernels import conv_relu_conv

from .common import On, assert_near, assert_relative, assert_same_for_any_threads, leaf, serving, strided

CONV = serving("conv_relu_conv")


def draw(
    sizes: list[int],
    channels: tuple[int, int, int] = (3, 8, 3),
    batch: int = 2,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """x, w1, b1, w2, b2."""
    ndim = len(sizes)
    inside, hidden, out = channels
    kernel = [3] * ndim
    shapes = [[batch, inside, *sizes], [hidden, inside, *kernel], [hidden], [out, hidden, *kernel], [out]]
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def convolve(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Tap by tap, on a volume with zeros around it."""
    ndim = x.ndim - 2
    around = np.pad(x, [(0, 0), (0, 0), *[(1, 1)] * ndim])
    y = np.zeros((len(x), len(w), *x.shape[2:])) + b.reshape(1, -1, *[1] * ndim)
    for tap in itertools.product(range(3), repeat=ndim):
        part = around[(..., *[slice(t, t + n) for t, n in zip(tap, x.shape[2:], strict=True)])]
        y += np.einsum("oc,bc...->bo...", w[(..., *tap)], part)
    return y


def oracle(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    x, w1, b1, w2, b2 = (t.double().numpy() for t in (x, w1, b1, w2, b2))
    return torch.from_numpy(convolve(np.maximum(convolve(x, w1, b1), 0), w2, b2))


def with_gradients(on: On, tensors: list[Tensor]) -> list[Tensor]:
    leaves = [leaf(t) for t in tensors]
    y = on(conv_relu_conv, *leaves)
    upstream = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view_as(y).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]


@pytest.mark.parametrize("on", CONV)
@pytest.mark.parametrize(
    ("sizes", "channels"),
    [
        ([5, 4, 7], (3, 8, 3)),
        ([3, 5, 6], (1, 1, 2)),
        ([4, 3, 5], (4, 11, 5)),
        ([1, 4, 3], (3, 2, 3)),
        ([4, 1, 1], (2, 9, 3)),
        ([1, 1, 1], (3, 8, 3)),
        ([6, 7], (2, 8, 2)),
        ([1, 6], (3, 3, 1)),
        ([5, 1], (2, 9, 4)),
    ],
    ids=str,
)
def test_value_and_gradients(on: On, sizes: list[int], channels: tuple[int, int, int]) -> None:
    tensors = draw(sizes, channels)
    assert_near(on(conv_relu_conv, *tensors), oracle(*tensors), 1e-12)
    leaves = tuple(leaf(t) for t in tensors)
    assert torch.autograd.gradcheck(lambda *t: on(conv_relu_conv, *t), leaves, fast_mode=True)
    if math.prod(sizes) < 50:  # element by element where that takes no time
        assert torch.autograd.gradcheck(lambda x: on(conv_relu_conv, x, *tensors[1:]), leaves[:1])


@pytest.mark.parametrize("on", serving("conv_relu_conv", "cpu"))
@pytest.mark.parametrize("sizes", [[51, 19, 70], [26, 150, 6], [45, 300], [3, 2, 1400]], ids=str)
def test_many_tiles(on: On, sizes: list[int]) -> None:
    """Tiles end inside the volume along planes and rows; the reference sums in another order."""
    tensors = draw(sizes, batch=1, channels=(len(sizes), 10, len(sizes)))
    expected = with_gradients(On("reference", "cpu"), tensors)
    for one, other in zip(with_gradients(on, tensors), expected, strict=True):
        assert_relative(one, other, 1e-11)


@pytest.mark.parametrize("on", CONV)
def test_float32(on: On) -> None:
    # No hidden value is near the ReLU's kink, where the last bit decides over a gradient.
    tensors = [(32 * t).round() / 32 for t in draw([21, 17, 19], (3, 32, 3), 1, torch.float32)]
    tensors[2] += 1 / 2048
    exact = with_gradients(On("reference", "cpu"), [t.double() for t in tensors])
    for one, other in zip(with_gradients(on, tensors), exact, strict=True):
        assert one.dtype == torch.float32
        assert_relative(one, other, 3e-6)  # sums of 864 products, and of 7000 for the weights


@pytest.mark.parametrize("on", CONV)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_rounded_once(on: On, dtype: torch.dtype) -> None:
    tensors = [0.3 * t for t in draw([6, 5, 7], dtype=dtype)]
    actual = on(conv_relu_conv, *tensors)
    assert actual.dtype == dtype
    assert_relative(actual, oracle(*tensors), torch.finfo(dtype).eps)


@pytest.mark.parametrize("on", CONV)
def test_only_what_is_wanted(on: On) -> None:
    tensors = draw([5, 6, 4])
    expected = with_gradients(on, tensors)[1:]
    for index, one in enumerate(expected):
        wanted = [leaf(t) if i == index else t for i, t in enumerate(tensors)]
        y = on(conv_relu_conv, *wanted)
        upstream = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view_as(y)
        (gradient,) = torch.autograd.grad(y, wanted[index], upstream)
        assert_near(gradient, one, 1e-13)


@pytest.mark.parametrize("on", CONV)
def test_strides_empty_constant_and_not_finite(on: On) -> None:
    tensors = draw([5, 6, 4])
    expected = with_gradients(on, tensors)
    for views in zip(*[strided(t) for t in tensors], strict=True):
        for one, other in zip(with_gradients(on, list(views)), expected, strict=True):
            assert_near(one, other, 1e-13)
    for empty in (tensors[0][:0], tensors[0][:, :, :0], tensors[0][..., :0]):
        y, *gradients = with_gradients(on, [empty, *tensors[1:]])
        assert y.shape == (len(empty), 3, *empty.shape[2:])
        assert all(not g.any() for g in gradients)
    flat = torch.full_like(tensors[0], 0.7)
    assert_near(on(conv_relu_conv, flat, *tensors[1:]), oracle(flat, *tensors[1:]), 1e-12)
    for value in (float("nan"), float("inf")):
        spoiled = tensors[0].clone()
        spoiled[1, 2, 0, 0, 0] = value
        y = on(conv_relu_conv, spoiled, *tensors[1:])
        assert_near(y[0], expected[0][0], 1e-13)
        assert not y[1, :, 0, 0, 0].isfinite().any()
        assert_near(y[1, :, 3:], expected[0][1, :, 3:], 1e-13)


@pytest.mark.parametrize("on", serving("conv_relu_conv", "reference"))
def test_second_derivatives_of_the_reference(on: On) -> None:
    tensors = tuple(leaf(t) for t in draw([3, 4], (2, 3, 2), 1))
    assert torch.autograd.gradgradcheck(lambda *t: on(conv_relu_conv, *t), tensors, fast_mode=True)


@pytest.mark.parametrize("on", serving("conv_relu_conv", "cpu"))
def test_same_bits_for_any_number_of_threads(on: On) -> None:
    tensors = draw([27, 40, 41], batch=1, dtype=torch.float32)
    assert_same_for_any_threads(lambda: with_gradients(on, tensors))


@pytest.mark.parametrize("on", CONV)
@pytest.mark.parametrize(
    ("index", "wrong", "message"),
    [
        (0, torch.rand(3, 4, 5), "x must be"),
        (0, torch.ones(1, 3, 4, 5, 6).int(), "floating point"),
        (1, torch.rand(8, 2, 3, 3, 3), r"w1 must be \(8, 3, 3, 3, 3\)"),
        (1, torch.rand(8, 3, 3, 3), "w1 must be"),
        (1, torch.rand(8, 3, 5, 5, 5), "w1 must be"),
        (2, torch.rand(7), "b1 must be"),
        (3, torch.rand(3, 7, 3, 3, 3), "w2 must be"),
        (4, torch.rand(2), "b2 must be"),
        (3, torch.rand(0, 8, 3, 3, 3), "b2 must be"),
    ],
)
def test_wrong_arguments(on: On, index: int, wrong: Tensor, message: str) -> None:
    tensors = draw([4, 5, 6], batch=1)
    tensors[index] = wrong
    with pytest.raises(ValueError, match=message):
        on(conv_relu_conv, *tensors)
