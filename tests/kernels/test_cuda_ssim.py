"""The CUDA kernels of ssim, run on the CPU by tests/cuda_on_cpu, against the reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import ssim

from ..cuda_on_cpu.build import Library
from ..cuda_on_cpu.fixtures import kernels, library  # noqa: F401 (fixtures)
from .common import assert_near, assert_relative, leaf
from .lncc_oracle import pair


def gradients(backend: str, fixed: Tensor, warped: Tensor, *args: Any, **options: Any) -> list[Tensor]:
    """The value, and the gradients of its sum to both images."""
    f, w = leaf(fixed), leaf(warped)
    value = ssim(f, w, *args, **options, backend=backend)
    (value * torch.linspace(0.5, 2, value.numel(), dtype=value.dtype).view_as(value)).sum().backward()
    assert f.grad is not None
    assert w.grad is not None
    return [value.detach(), f.grad, w.grad]


def check(fixed: Tensor, warped: Tensor, *args: Any, **options: Any) -> None:
    expected = gradients("reference", fixed, warped, *args, **options)
    for actual, wanted in zip(gradients("cuda", fixed, warped, *args, **options), expected, strict=True):
        assert_near(actual, wanted, 1e-10)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, (2, 3, 5), (7, 5, 9)], ids=str)
def test_windows(window: Any, padding: str, reduction: str) -> None:
    check(*pair(1, 1, 7, 5, 9), window, padding=padding, reduction=reduction)


@pytest.mark.parametrize("window", [11, 18, (1, 60, 6)], ids=str)
def test_windows_larger_than_the_volume(window: Any) -> None:
    check(*pair(1, 1, 7, 6, 11), window, sigma=(1.0, 4.0, 2.5))


@pytest.mark.parametrize(
    "shape", [(2, 3, 6, 5, 4), (1, 1, 1, 6, 5), (1, 2, 7, 1, 1), (3, 2, 9, 1), (1, 1, 1, 13), (1, 1, 37, 70)]
)
def test_batches_channels_and_axes_of_size_one(shape: tuple[int, ...]) -> None:
    check(*pair(*shape), 3, data_range=0.5)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("recompute", [True, False])
def test_several_tiles_and_slabs(padding: str, recompute: bool) -> None:
    check(*pair(1, 1, 40, 20, 35), (11, 4, 3), padding=padding, recompute=recompute)


@pytest.mark.parametrize("recompute", [True, False])
def test_gradient_to_one_image(recompute: bool) -> None:
    fixed, warped = pair(1, 2, 9, 8, 7)
    _, both_f, both_w = gradients("reference", fixed, warped, 5)
    only_f, only_w = leaf(fixed), leaf(warped)
    # `gradients` weighs a mean with 0.5
    (0.5 * ssim(only_f, warped, 5, backend="cuda", recompute=recompute)).backward()
    (0.5 * ssim(fixed, only_w, 5, backend="cuda", recompute=recompute)).backward()
    assert_relative(only_f.grad, both_f, 1e-11)
    assert_relative(only_w.grad, both_w, 1e-11)


def test_gradient_to_one_of_the_saved() -> None:
    fixed, warped = pair(1, 1, 6, 5, 7)
    f, w = leaf(fixed), leaf(warped)
    value = 0.5 * ssim(f, w, 3, backend="cuda", recompute=False)
    (only,) = torch.autograd.grad(value, [f])
    assert_relative(only, gradients("reference", fixed, warped, 3)[1], 1e-11)


def test_equal_constant_and_empty_images() -> None:
    fixed, _ = pair(1, 1, 9, 10, 11)
    assert abs(float(ssim(fixed, fixed, backend="cuda")) - 1) < 1e-12
    constant = torch.full((1, 1, 5, 6, 7), 1e4)
    for tensor in gradients("cuda", constant, constant, 5, padding="valid"):
        assert torch.isfinite(tensor).all()
    assert ssim(fixed[:0], fixed[:0], 3, backend="cuda") == 0


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_float32(offset: float) -> None:
    fixed, warped = (x.float() + offset for x in pair(1, 1, 21, 18, 33))
    expected = gradients("reference", fixed.double(), warped.double())
    actual = gradients("cuda", fixed, warped)
    assert all(a.dtype == torch.float32 for a in actual)
    assert_near(actual[0], expected[0], 1e-6)
    assert_relative(actual[1], expected[1], 1e-5)
    assert_relative(actual[2], expected[2], 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types(dtype: torch.dtype) -> None:
    fixed, warped = pair(1, 1, 12, 11, 10, dtype=dtype)
    value, _, grad_w = gradients("cuda", fixed, warped, 5)
    expected = gradients("reference", fixed.double(), warped.double(), 5)
    assert value.dtype == torch.float32
    assert_near(value, expected[0], 1e-6)
    assert_relative(grad_w, expected[2], torch.finfo(dtype).eps)


def test_same_bits_for_any_order_of_threads_and_for_any_memory(kernels: Library) -> None:  # noqa: F811
    fixed, warped = pair(2, 1, 14, 21, 35, dtype=torch.float32)
    kernels.order(0)
    expected = gradients("cuda", fixed, warped, 7, reduction="none")
    for order in (1, 2):
        kernels.order(order)
        for one, other in zip(gradients("cuda", fixed, warped, 7, reduction="none"), expected, strict=True):
            assert torch.equal(one, other)
    kernels.shared_memory(8 * 1024)  # too small for any tile
    for one, other in zip(gradients("cuda", fixed, warped, 7, reduction="none"), expected, strict=True):
        assert torch.equal(one, other)


def test_gradcheck() -> None:
    inputs = tuple(leaf(image) for image in pair(1, 2, 4, 5, 4))
    assert torch.autograd.gradcheck(
        lambda f, w: ssim(f, w, (4, 3, 2), backend="cuda"), inputs, fast_mode=True
    )


def test_too_many_taps_are_refused() -> None:
    image = torch.rand(1, 1, 300, 300)
    with pytest.raises(RuntimeError, match="more than 384 taps"):
        ssim(image, image, 250, backend="cuda")
