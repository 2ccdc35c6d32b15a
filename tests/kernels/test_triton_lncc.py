"""What only the triton backend's lncc has: slabs, tiles, and sums without any subtraction.

These run where triton serves: on a GPU, or on the CPU with TRITON_INTERPRET=1 (see test_triton.py).
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from neuralreg.kernels import lncc
from neuralreg.kernels.backends import registry

from .calls import results
from .common import On, assert_near, assert_relative, leaf, serving
from .lncc_oracle import gradients, pair
from .test_random_options import described, draw_lncc

ON = serving("lncc", "triton")
REFERENCE = On("reference", "cpu")
pytestmark = pytest.mark.skipif(
    not ON, reason=f"triton serves nothing here: {registry.available('triton')[1]}"
)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs of few planes and tiles of few voxels, as large volumes have them."""
    from neuralreg.kernels.backends import triton_lncc, triton_plan

    monkeypatch.setattr(triton_plan, "TILE", 256)
    monkeypatch.setattr(triton_lncc, "WORKSPACE", 12_000)
    monkeypatch.setattr(triton_lncc, "RECOMPUTED", 20_000)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"window": 3},
        {"window": (4, 1, 2), "padding": "valid"},
        {"window": (1, 3, 1), "reduction": "none"},
        {"window": (5, 2, 3), "padding": "valid", "masked": True, "reduction": "none"},
    ],
    ids=str,
)
@pytest.mark.usefixtures("small_pieces")
def test_slabs_and_tiles(on: On, recompute: bool, options: dict[str, Any]) -> None:
    options = dict(options)
    fixed, warped = pair(1, 2, 11, 5, 6)
    if options.pop("masked", False):
        options["mask"] = torch.rand(1, 1, 11, 5, 6) < 0.8
    expected = gradients(REFERENCE, fixed, warped, **options)
    for one, other in zip(
        gradients(on, fixed, warped, recompute=recompute, **options), expected, strict=True
    ):
        assert_near(one, other, 1e-11)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("shape", [(3, 1, 8, 7), (2, 2, 4, 3, 5)], ids=str)
@pytest.mark.usefixtures("small_pieces")
def test_a_slab_of_several_channels(on: On, shape: tuple[int, ...]) -> None:
    expected = gradients(REFERENCE, *pair(*shape), 3)
    torch.manual_seed(0)  # the same pair again
    for one, other in zip(gradients(on, *pair(*shape), 3), expected, strict=True):
        assert_near(one, other, 1e-11)


@pytest.mark.parametrize("on", ON)
def test_windows_of_zeros_are_flat_without_any_tolerance(on: On) -> None:
    """Running sums would leave rounding errors of the voxels before; flat_tol 0 shows the least of them."""
    fixed, warped = pair(1, 1, 14, 12, 15)
    for image in (fixed, warped):
        image[..., 6:, :, :] = image[..., :, 5:, :] = image[..., :, :, 7:] = 0
    options = {"flat_tol": 0.0, "eps": 0.0, "numerator_eps": 1.0, "reduction": "none"}
    values, grad_f, grad_w = gradients(on, fixed, warped, 3, **options)
    assert torch.count_nonzero(values[..., 7:, 6:, 8:]) == 0
    assert torch.count_nonzero(grad_f[..., 8:, 7:, 9:]) == 0
    assert torch.count_nonzero(grad_w[..., 8:, 7:, 9:]) == 0
    assert bool(values.isfinite().all() and grad_f.isfinite().all() and grad_w.isfinite().all())


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("window", [5, 9])
def test_float32_on_smooth_images_with_a_background(on: On, offset: float, window: int) -> None:
    x = F.avg_pool3d(torch.rand(1, 1, 30, 24, 26, dtype=torch.float64), 5, 1)
    x = (x - x.min()) / (x.max() - x.min())
    x[:, :, :8] = 0
    fixed, warped = (x + offset).float(), (0.7 * x + 0.3 * x * x + offset).float()
    expected = gradients(REFERENCE, fixed.double(), warped.double(), window)
    actual = gradients(on, fixed, warped, window)
    assert_near(actual[0], expected[0], 1e-6)
    assert_relative(actual[1], expected[1], 1e-5)
    assert_relative(actual[2], expected[2], 1e-5)


@pytest.mark.parametrize("on", ON)
def test_same_bits_again(on: On) -> None:
    fixed, warped = pair(2, 1, 13, 9, 11, dtype=torch.float32)
    first, second = (gradients(on, fixed, warped, 5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("on", ON)
def test_non_finite_voxels_spoil_only_their_windows(on: On) -> None:
    fixed, warped = pair(1, 1, 9, 8, 7)
    fixed[..., 4, 4, 4] = float("nan")
    values = on(lncc, fixed, warped, 3, reduction="none")
    assert bool(values[..., 3:6, 3:6, 3:6].isnan().logical_or(values[..., 3:6, 3:6, 3:6] == 0).all())
    values[..., 3:6, 3:6, 3:6] = 0
    assert bool(values.isfinite().all())


@pytest.mark.parametrize("on", ON)
def test_saved_for_both_asked_for_one(on: On) -> None:
    """The gradient of one image alone, from maps that were saved for both."""
    fixed, warped = pair(1, 1, 6, 7, 5)
    f, w = leaf(fixed), leaf(warped)
    value = on(lncc, f, w, 3)
    (only_f,) = torch.autograd.grad(value, f, retain_graph=True)
    both_f, _ = torch.autograd.grad(value, (f, w))
    assert_relative(only_f, both_f, 1e-12)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("seed", range(6))
def test_drawn_options(on: On, seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    function, arguments, options = call = draw_lncc()
    expected = results(call, "reference")
    actual = results((lambda *a, backend, **o: on(function, *a, **o), arguments, options), None)
    for one, other in zip(actual, expected, strict=True):
        scale = max(1.0, float(other.abs().max())) if other.numel() else 1.0
        assert one.shape == other.shape, described(call)
        assert float((one - other).abs().max() if other.numel() else 0) <= 1e-8 * scale, described(call)
