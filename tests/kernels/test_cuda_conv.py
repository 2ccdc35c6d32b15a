"""The CUDA kernels of conv_relu_conv, run on the CPU by tests/cuda_on_cpu, against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from neuralreg.kernels import conv_relu_conv

from ..cuda_on_cpu.build import Library
from ..cuda_on_cpu.fixtures import kernels, library  # noqa: F401 (fixtures)
from .common import On, assert_near, assert_relative, leaf, strided
from .test_conv import draw, oracle, with_gradients

CUDA, REFERENCE = On("cuda", "cpu"), On("reference", "cpu")


@pytest.mark.parametrize(
    ("sizes", "channels"),
    [
        ([5, 4, 7], (3, 8, 3)),
        ([3, 5, 6], (1, 1, 2)),
        ([4, 3, 5], (4, 11, 5)),
        ([1, 4, 3], (3, 2, 3)),
        ([4, 1, 1], (2, 3, 3)),
        ([9, 10, 18], (2, 3, 1)),  # tiles end inside the volume along every axis
        ([6, 7], (2, 8, 2)),
        ([1, 6], (3, 3, 1)),
        ([17, 33], (6, 5, 9)),
    ],
    ids=str,
)
def test_value_and_gradients(sizes: list[int], channels: tuple[int, int, int]) -> None:
    tensors = draw(sizes, channels)
    expected = with_gradients(REFERENCE, tensors)
    for one, other in zip(with_gradients(CUDA, tensors), expected, strict=True):
        assert_relative(one, other, 1e-13)


@pytest.mark.thorough
def test_blocks_with_several_tiles() -> None:
    """More tiles than blocks: a block adds up the gradients of the weights."""
    tensors = draw([7, 2], (1, 1, 1), batch=515)
    expected = with_gradients(REFERENCE, tensors)
    for one, other in zip(with_gradients(CUDA, tensors), expected, strict=True):
        assert_relative(one, other, 1e-12)


def test_float32() -> None:
    # No hidden value is near the ReLU's kink, where the last bit decides over a gradient.
    tensors = [(32 * t).round() / 32 for t in draw([9, 8, 17], (3, 8, 3), 1, torch.float32)]
    tensors[2] += 1 / 2048
    exact = with_gradients(REFERENCE, [t.double() for t in tensors])
    for one, other in zip(with_gradients(CUDA, tensors), exact, strict=True):
        assert one.dtype == torch.float32
        assert_relative(one, other, 3e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_rounded_once(dtype: torch.dtype) -> None:
    tensors = [0.3 * t for t in draw([4, 5, 3], dtype=dtype)]
    actual = CUDA(conv_relu_conv, *tensors)
    assert actual.dtype == dtype
    assert_relative(actual, oracle(*tensors), torch.finfo(dtype).eps)


def test_only_what_is_wanted() -> None:
    tensors = draw([3, 6, 4], (5, 3, 2))
    expected = with_gradients(REFERENCE, tensors)[1:]
    for index, one in enumerate(expected):
        wanted = [leaf(t) if i == index else t for i, t in enumerate(tensors)]
        y = CUDA(conv_relu_conv, *wanted)
        upstream = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view_as(y)
        (gradient,) = torch.autograd.grad(y, wanted[index], upstream)
        assert_near(gradient, one, 1e-12)


def test_strides_empty_and_not_finite() -> None:
    tensors = draw([5, 6, 4], (3, 5, 3))
    expected = with_gradients(CUDA, tensors)
    for views in zip(*[strided(t) for t in tensors], strict=True):
        for one, other in zip(with_gradients(CUDA, list(views)), expected, strict=True):
            assert torch.equal(one, other)
    for empty in (tensors[0][:0], tensors[0][:, :, :0], tensors[0][..., :0]):
        y, *gradients = with_gradients(CUDA, [empty, *tensors[1:]])
        assert y.shape == (len(empty), 3, *empty.shape[2:])
        assert all(not g.any() for g in gradients)
    for value in (float("nan"), float("inf")):
        spoiled = tensors[0].clone()
        spoiled[1, 2, 0, 0, 0] = value
        y = CUDA(conv_relu_conv, spoiled, *tensors[1:])
        assert torch.equal(y.isfinite(), REFERENCE(conv_relu_conv, spoiled, *tensors[1:]).isfinite())


def test_same_bits_for_any_order_of_threads(kernels: Library) -> None:  # noqa: F811
    tensors = draw([9, 5, 18], (2, 5, 2), 1, torch.float32)
    kernels.order(0)
    expected = with_gradients(CUDA, tensors)
    for order in (1, 2):
        kernels.order(order)
        for one, other in zip(with_gradients(CUDA, tensors), expected, strict=True):
            assert torch.equal(one, other)
