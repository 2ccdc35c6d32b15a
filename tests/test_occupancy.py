"""Occupancies and their losses, against their formulas."""

from __future__ import annotations

import pytest
import torch

from neuralreg.occupancy import OCCUPANCY_LOSSES, occupancy_loss, otsu_threshold, soft_occupancy


def test_soft_occupancy_is_a_sigmoid_at_the_threshold():
    image = torch.tensor([0.0, 0.4, 0.5, 1.0])
    bright = soft_occupancy(image, 0.4, 0.05)
    torch.testing.assert_close(bright, 1 / (1 + (-(image - 0.4) / 0.05).exp()))
    torch.testing.assert_close(soft_occupancy(image, 0.4, 0.05, "darker"), 1 - bright)
    with pytest.raises(ValueError, match="brighter, darker"):
        soft_occupancy(image, 0.4, 0.05, "mask")
    with pytest.raises(ValueError, match="softness"):
        soft_occupancy(image, 0.4, 0.0)


@pytest.mark.parametrize("masked", [False, True])
def test_losses_are_their_formulas(masked):
    f, w = torch.rand(2, 1, 1, 5, 6, dtype=torch.float64) * 0.98 + 0.01
    mask = (torch.rand(1, 1, 5, 6) > 0.4).double() if masked else None
    kept = torch.ones_like(f, dtype=torch.bool) if mask is None else mask > 0
    a, b = f[kept], w[kept]
    expected = {
        "l1": (a - b).abs().mean(),
        "bce": torch.nn.functional.binary_cross_entropy(b, a),
        "dice": 1 - 2 * (a * b).sum() / (a.square().sum() + b.square().sum()),
    }
    assert set(expected) == set(OCCUPANCY_LOSSES)
    for name, value in expected.items():
        torch.testing.assert_close(occupancy_loss(name, f, w, mask), value)
    with pytest.raises(ValueError, match="l1, bce, dice"):
        occupancy_loss("iou", f, w)


@pytest.mark.parametrize("name", OCCUPANCY_LOSSES)
def test_losses_have_finite_gradients_at_the_edges(name):
    """Empty, full, and nowhere to look."""
    fixed = torch.tensor([0.0, 1.0, 0.0, 1.0]).view(1, 1, 2, 2)
    for warped in (1 - fixed, fixed.clone(), torch.zeros_like(fixed)):
        for mask in (None, torch.zeros_like(fixed)):
            w = warped.requires_grad_()
            loss = occupancy_loss(name, fixed, w, mask)
            (gradient,) = torch.autograd.grad(loss, w)
            assert loss.isfinite()
            assert gradient.isfinite().all()
    empty = torch.zeros(1, 1, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(occupancy_loss(name, torch.zeros(1, 1, 2, 2), empty), empty)
    assert gradient.isfinite().all()


def test_otsu_parts_two_classes():
    torch.manual_seed(0)
    image = torch.cat([0.2 + 0.03 * torch.randn(3000), 0.8 + 0.03 * torch.randn(1000)])
    assert otsu_threshold(image) == pytest.approx(0.5, abs=0.1)
    assert otsu_threshold(torch.tensor([0.0, 0.0, 1.0])) == pytest.approx(0.5, abs=0.01)
    assert otsu_threshold(torch.full((4,), 0.25)) == 0.25
