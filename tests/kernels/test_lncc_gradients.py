"""Derivatives and numerics of lncc on every backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from neuralreg.kernels import lncc

from .common import On, assert_near, assert_relative, assert_same_for_any_threads, leaf, serving, strided
from .lncc_oracle import gradients, pair

ON = serving("lncc")

# float32 in [0, 1]: a window's variance is about a quarter of its mean square, so it keeps all but two bits
# of sums that are right to a few float32 roundings; gradients divide by the variance once more.
FLOAT32_VALUE = 1e-5
FLOAT32_GRADIENT = 1e-5


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("window", [9, 4, (3, 6, 1)], ids=str)
def test_gradient_equals_that_of_dense_convolutions(on: On, padding: str, window: Any) -> None:
    fixed, warped = pair(2, 1, 14, 13, 17)
    size = (window,) * 3 if isinstance(window, int) else window
    ones = torch.ones(1, 1, *size, dtype=torch.float64)
    pads = [p for w in reversed(size) for p in ((w - 1) // 2, w // 2)] if padding == "same" else [0] * 6

    def box(x: Tensor) -> Tensor:
        return F.conv3d(F.pad(x, pads), ones)

    f, w, n = leaf(fixed), leaf(warped), ones.numel()
    cross = box(f * w) - box(f) * box(w) / n
    var_f, var_w = box(f * f) - box(f) ** 2 / n, box(w * w) - box(w) ** 2 / n
    expected = (cross**2 / (var_f * var_w + 1e-5)).mean()
    expected.backward()
    value, grad_f, grad_w = gradients(on, fixed, warped, window, padding=padding)
    assert_near(value, expected.detach(), 1e-10)
    assert_relative(grad_f, f.grad, 1e-9)
    assert_relative(grad_w, w.grad, 1e-9)


GRADCHECKS = [
    {"window": 3},
    {"window": 2, "padding": "valid"},
    {"window": (4, 3, 2), "eps_mode": "each"},
    {"window": (2, 5, 4), "padding": "valid", "eps_mode": "clamp", "squared": False},
    {"window": 3, "squared": False, "numerator_eps": 0.02, "eps": 0.1},
    {"window": 3, "eps_mode": "each", "reduction": "none"},
    {"window": 4, "masked": True},
    {"window": 3, "masked": True, "padding": "valid", "reduction": "none"},
    {"window": 18},
    {"window": 3, "zero_rule": True},
    {"window": 3, "recompute": True},
]


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("options", GRADCHECKS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()))
def test_gradcheck(on: On, options: dict[str, Any]) -> None:
    options = dict(options)
    shape = (1, 2, 4, 5, 4)
    fixed, warped = pair(*shape)
    mask = torch.rand(1, 1, *shape[2:]) < 0.7 if options.pop("masked", False) else None
    assert torch.autograd.gradcheck(
        lambda f, w: on(lncc, f, w, mask=mask, **options), (leaf(fixed), leaf(warped)), fast_mode=True
    )


@pytest.mark.parametrize("on", ON)
def test_gradcheck_in_two_dimensions(on: On) -> None:
    fixed, warped = pair(2, 1, 5, 6)
    assert torch.autograd.gradcheck(lambda f, w: on(lncc, f, w, (3, 2)), (leaf(fixed), leaf(warped)))


@pytest.mark.parametrize("on", serving("lncc", "reference"))
def test_second_derivative_of_the_reference(on: On) -> None:
    fixed, warped = pair(1, 1, 4, 5)
    inputs = leaf(fixed), leaf(warped)
    assert torch.autograd.gradgradcheck(lambda f, w: on(lncc, f, w, 3), inputs, fast_mode=True)


@pytest.mark.parametrize("on", ON)
def test_gradient_to_one_image_is_the_same_as_to_both(on: On) -> None:
    fixed, warped = pair(1, 2, 9, 8, 7)
    _, both_f, both_w = gradients(on, fixed, warped, 3)
    only_f, only_w = leaf(fixed), leaf(warped)
    on(lncc, only_f, warped, 3).backward()
    on(lncc, fixed, only_w, 3).backward()
    assert_relative(only_f.grad, both_f, 1e-12)
    assert_relative(only_w.grad, both_w, 1e-12)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("recompute", [True, False])
def test_recomputing_changes_nothing(on: On, recompute: bool) -> None:
    fixed, warped = pair(1, 1, 9, 8, 7)
    expected = gradients(on, fixed, warped, 3)
    for actual, wanted in zip(gradients(on, fixed, warped, 3, recompute=recompute), expected, strict=True):
        assert_near(actual, wanted, 1e-12)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("window", [3, 9, 4])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_float32(on: On, window: int, offset: float) -> None:
    fixed, warped = (x.float() + offset for x in pair(1, 1, 31, 18, 33))
    reference = On("reference", "cpu")
    expected = gradients(reference, fixed.double(), warped.double(), window)
    actual = gradients(on, fixed, warped, window)
    assert all(a.dtype == torch.float32 for a in actual)
    # an offset of 1 leaves a twentieth of the mean square as variance, squared in the gradient
    bound = FLOAT32_GRADIENT if offset == 0 else 3 * FLOAT32_GRADIENT
    assert_near(actual[0], expected[0], FLOAT32_VALUE)
    assert_relative(actual[1], expected[1], bound)
    assert_relative(actual[2], expected[2], bound)


@pytest.mark.parametrize("on", ON)
def test_float32_with_a_huge_offset(on: On) -> None:
    # Texture of 100 on 1e4, valid windows: the variance is 1e-5 of the mean square, so float32 sums about
    # zero would keep two digits; what is asked is what raw CT is asked for.
    fixed, warped = (1e4 + 100 * x.float() for x in pair(1, 1, 17, 18, 19))
    options: dict[str, Any] = {"padding": "valid", "flat_tol": 1e-9}
    expected = gradients(On("reference", "cpu"), fixed.double(), warped.double(), 5, **options)
    actual = gradients(on, fixed, warped, 5, **options)
    assert_near(actual[0], expected[0], 1e-4)
    assert_relative(actual[1], expected[1], 1e-3)
    assert_relative(actual[2], expected[2], 1e-3)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types(on: On, dtype: torch.dtype) -> None:
    fixed, warped = pair(1, 1, 12, 11, 10, dtype=dtype)
    value, grad_f, grad_w = gradients(on, fixed, warped, 5)
    expected = gradients(On("reference", "cpu"), fixed.double(), warped.double(), 5)
    assert value.dtype == torch.float32
    assert grad_f.dtype == dtype
    assert grad_w.dtype == dtype
    assert_near(value, expected[0], FLOAT32_VALUE)  # the inputs are exact, the sums are at least float32
    assert_relative(grad_w, expected[2], torch.finfo(dtype).eps)  # one rounding of the result
    assert on(lncc, fixed, warped, 5, reduction="none").dtype == dtype


@pytest.mark.parametrize("on", ON)
def test_upstream_gradient_of_any_stride(on: On) -> None:
    fixed, warped = pair(1, 1, 6, 5, 7)
    weights = torch.rand(1, 1, 6, 5, 7, dtype=torch.float64)
    expected = None
    for upstream in (weights, *strided(weights)):
        f = leaf(fixed)
        on(lncc, f, warped, 3, reduction="none").backward(upstream)
        expected = f.grad if expected is None else expected
        assert_near(f.grad, expected, 1e-12)
    f = leaf(fixed)
    on(lncc, f, warped, 3, reduction="none").sum().backward()  # its upstream gradient has strides 0
    g = leaf(fixed)
    on(lncc, g, warped, 3, reduction="none").backward(torch.ones_like(weights))
    assert_near(f.grad, g.grad, 1e-12)


@pytest.mark.parametrize("on", serving("lncc", "cpu"))
def test_same_bits_for_any_number_of_threads(on: On) -> None:
    fixed, warped = pair(2, 1, 37, 41, 35, dtype=torch.float32)
    mask = torch.rand(2, 1, 37, 41, 35) < 0.9

    def compute() -> list[Tensor]:
        return [
            on(lncc, fixed, warped, 9, reduction="none"),
            *gradients(on, fixed, warped, 9),
            *gradients(on, fixed, warped, 4, padding="valid", mask=mask),
        ]

    assert_same_for_any_threads(compute)


@pytest.mark.parametrize("on", ON)
def test_raw_hounsfield_values(on: On, data_folder: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    scan = data_folder / "lung_ct_elastix" / "fixed_ct.nii.gz"
    if not scan.exists():
        pytest.skip(f"no lung scan: {scan} does not exist")
    volume = torch.from_numpy(np.asarray(nibabel.load(scan).dataobj, dtype=np.float32))
    middle = tuple(slice(n // 2 - 20, n // 2 + 20) for n in volume.shape)
    fixed = volume[middle][None, None].contiguous()
    warped = (fixed + 20 * torch.randn_like(fixed)).round()
    expected = gradients(On("reference", "cpu"), fixed.double(), warped.double(), 9)
    actual = gradients(on, fixed, warped, 9)
    assert_near(actual[0], expected[0], 1e-4)
    assert_relative(actual[2], expected[2], 1e-3)
