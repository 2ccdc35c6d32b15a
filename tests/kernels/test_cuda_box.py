"""The CUDA kernel of box_mean, run on the CPU by tests/cuda_on_cpu, against the reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import box_mean

from ..cuda_on_cpu.build import Library
from ..cuda_on_cpu.fixtures import kernels, library  # noqa: F401 (fixtures)
from .common import assert_near, leaf
from .test_box import SHAPES


def both(backend: str, image: Tensor, window: Any) -> list[Tensor]:
    """The means, and the gradient of their weighted sum."""
    x = leaf(image)
    means = box_mean(x, window, backend=backend)
    (means * torch.linspace(0.5, 2, x.numel(), dtype=x.dtype).view_as(x)).sum().backward()
    assert x.grad is not None
    return [means.detach(), x.grad]


@pytest.mark.parametrize(("shape", "window"), [*SHAPES, ((0, 1, 4, 5), 3), ((1, 1, 21, 18, 70), 5)], ids=str)
def test_windows_shapes_and_sizes(shape: tuple[int, ...], window: Any) -> None:
    image = torch.randn(shape, dtype=torch.float64)
    for actual, wanted in zip(both("cuda", image, window), both("reference", image, window), strict=True):
        assert_near(actual, wanted, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_other_types_and_large_offsets(dtype: torch.dtype) -> None:
    image = (1e4 + torch.rand(1, 2, 12, 11, 10)).to(dtype)
    expected = both("reference", image.double(), 5)
    for actual, wanted in zip(both("cuda", image, 5), expected, strict=True):
        assert actual.dtype == dtype
        assert_near(actual, wanted, 2 * torch.finfo(dtype).eps)


def test_zeros_and_what_is_not_finite() -> None:
    image = torch.zeros(1, 1, 24, 20, 40)
    image[:, :, :4, :5, :6] = 1e6 * torch.rand(4, 5, 6) + 0.1
    means = box_mean(image, 3, backend="cuda")
    assert (means[:, :, 6:] == 0).all()
    assert (means[..., 8:] == 0).all()
    spoiled = torch.rand_like(image)
    expected = box_mean(spoiled, 3, backend="reference")
    spoiled[0, 0, 5, 6, 7], spoiled[0, 0, 15, 6, 7] = float("nan"), float("inf")
    means = box_mean(spoiled, 3, backend="cuda")
    seen = torch.zeros_like(image, dtype=torch.bool)
    seen[0, 0, 4:7, 5:8, 6:9] = seen[0, 0, 14:17, 5:8, 6:9] = True
    assert not means[seen].isfinite().any()
    assert_near(means[~seen], expected[~seen], 1e-6)


def test_same_bits_for_any_order_of_threads_and_for_any_memory(kernels: Library) -> None:  # noqa: F811
    image = torch.rand(2, 1, 14, 21, 35)
    kernels.order(0)
    expected = both("cuda", image, 7)
    for order in (1, 2):
        kernels.order(order)
        assert all(map(torch.equal, both("cuda", image, 7), expected))
    kernels.shared_memory(4 * 1024)  # too small for any tile
    assert all(map(torch.equal, both("cuda", image, 7), expected))
