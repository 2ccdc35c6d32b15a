"""What only the triton backend's ssim has: slabs, tiles, float64 on the way through the axes."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import ssim
from neuralreg.kernels.backends import registry

from .common import On, assert_near, assert_relative, leaf, serving
from .lncc_oracle import pair

ON = serving("ssim", "triton")
REFERENCE = On("reference", "cpu")
pytestmark = pytest.mark.skipif(
    not ON, reason=f"triton serves nothing here: {registry.available('triton')[1]}"
)


def gradients(on: On, fixed: Tensor, warped: Tensor, *args: Any, **options: Any) -> list[Tensor]:
    """The value, and the gradients of a weighted sum of it to both images."""
    f, w = leaf(fixed), leaf(warped)
    value = on(ssim, f, w, *args, **options)
    (value * torch.linspace(1, 2, value.numel(), dtype=value.dtype).view_as(value)).sum().backward()
    return [value.detach(), f.grad, w.grad]


def draw() -> tuple[tuple[int, ...], dict[str, Any]]:
    spatial = [random.choice([1, 2, 5, 8, 13, 21]) for _ in range(random.choice([2, 3]))]
    window = [random.choice([1, 2, 3, 4, 7, 11]) for _ in spatial]
    padding = random.choice(["same", "valid"])
    if padding == "valid":
        window = [min(w, n) for w, n in zip(window, spatial, strict=True)]
    options = {
        "window": window,
        "padding": padding,
        "sigma": random.choice([0.7, 1.5, 4.0]),
        "data_range": random.choice([1.0, 3.0]),
        "reduction": random.choice(["mean", "none"]),
        "recompute": random.choice([None, True, False]),
    }
    return (random.choice([1, 2]), random.choice([1, 2]), *spatial), options


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("seed", range(7))
def test_drawn_options(on: On, seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    shape, options = draw()
    images = pair(*shape)
    expected = gradients(REFERENCE, *images, **options)
    for one, other in zip(gradients(on, *images, **options), expected, strict=True):
        assert_near(one, other, 1e-11)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("window", "padding"), [((3, 4, 2), "valid"), ((1, 3, 3), "same")], ids=str)
def test_slabs_and_tiles(
    on: On, recompute: bool, window: tuple[int, ...], padding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuralreg.kernels.backends import triton_plan, triton_ssim

    monkeypatch.setattr(triton_plan, "TILE", 256)
    monkeypatch.setattr(triton_ssim, "WORKSPACE", 12_000)
    monkeypatch.setattr(triton_ssim, "RECOMPUTED", 12_000)
    images, options = pair(1, 2, 11, 5, 6), {"padding": padding, "recompute": recompute, "reduction": "none"}
    expected = gradients(REFERENCE, *images, window, **options)
    for one, other in zip(gradients(on, *images, window, **options), expected, strict=True):
        assert_near(one, other, 1e-11)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("offset", [0.0, 1.0, 10.0])
def test_float32(on: On, offset: float) -> None:
    fixed, warped = (x.float() + offset for x in pair(1, 1, 14, 15, 16))
    expected = gradients(REFERENCE, fixed.double(), warped.double())
    actual = gradients(on, fixed, warped)
    assert_near(actual[0], expected[0], 1e-6)
    assert_relative(actual[1], expected[1], 1e-5)
    assert_relative(actual[2], expected[2], 1e-5)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types(on: On, dtype: torch.dtype) -> None:
    fixed, warped = pair(1, 1, 9, 12, dtype=dtype)
    expected = gradients(REFERENCE, fixed.double(), warped.double(), 5)
    value, grad_f, grad_w = gradients(on, fixed, warped, 5)
    assert value.dtype == torch.float32
    assert grad_f.dtype == grad_w.dtype == dtype
    assert_near(value, expected[0], 1e-6)
    assert_relative(grad_w, expected[2], torch.finfo(dtype).eps)


@pytest.mark.parametrize("on", ON)
def test_gradient_to_one_image(on: On) -> None:
    fixed, warped = pair(1, 2, 6, 7, 5)
    f, w = leaf(fixed), leaf(warped)
    both = torch.autograd.grad(on(ssim, f, w, 5), (f, w))
    assert_relative(torch.autograd.grad(on(ssim, f, warped, 5), f)[0], both[0], 1e-12)
    assert_relative(torch.autograd.grad(on(ssim, fixed, w, 5), w)[0], both[1], 1e-12)
    assert torch.autograd.gradcheck(lambda a, b: on(ssim, a, b, (2, 3, 4)), (f, w), fast_mode=True)
