"""Similarities against their formulas, with masks and dropout; NIR's rule for windows without content."""

from __future__ import annotations

import pytest
import torch

from neuralreg import kernels
from neuralreg.losses import at_centres, global_ncc, similarity, zero_rule_lncc


def pair(shape=(1, 1, 12, 11, 13)):
    return torch.rand(shape, dtype=torch.float64), torch.rand(shape, dtype=torch.float64)


def test_global_ncc_is_the_correlation_coefficient():
    a, b = pair()
    expected = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
    torch.testing.assert_close(global_ncc(a, b), expected, rtol=1e-6, atol=1e-8)
    mask = torch.rand_like(a) > 0.5
    expected = torch.corrcoef(torch.stack([a[mask], b[mask]]))[0, 1]
    torch.testing.assert_close(global_ncc(a, b, mask), expected, rtol=1e-6, atol=1e-8)
    assert global_ncc(a, torch.ones_like(a)) == 0


@pytest.mark.parametrize(("name", "power"), [("mse", 2), ("l1", 1)])
def test_differences_are_means_over_the_mask(name, power):
    a, b = pair()
    mask = (torch.rand_like(a) > 0.7).double()
    expected = -((a - b).abs() ** power)[mask > 0].mean()
    torch.testing.assert_close(similarity(name, a, b, mask=mask), expected)
    torch.testing.assert_close(similarity(name, a, b), -((a - b).abs() ** power).mean())
    assert similarity(name, a, b, mask=torch.zeros_like(a)) == 0


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("name", ["lncc", "ssim"])
def test_windowed_means_over_masks(name, padding):
    a, b = pair()
    whole = similarity(name, a, b, window=5, padding=padding)
    values = getattr(kernels, name)(a, b, 5, padding=padding, reduction="none")
    torch.testing.assert_close(whole, values.mean())
    if (name, padding) != ("lncc", "same"):  # whose masked windows count the voxels inside alone
        everywhere = similarity(name, a, b, window=5, padding=padding, mask=torch.ones_like(a))
        torch.testing.assert_close(everywhere, whole)
    mask = torch.zeros_like(a)
    mask[..., :7] = 1
    found = similarity(name, a, b, window=5, padding=padding, mask=mask)
    if name == "ssim":
        centres = mask if padding == "same" else at_centres(mask, 5)
        torch.testing.assert_close(found, values[centres > 0].mean())
    assert found != whole


@pytest.mark.parametrize("name", ["lncc", "ssim", "mse", "l1"])
def test_dropout_leaves_the_mean_where_it_was_on_average(name):
    a, b = pair((1, 1, 40, 40))
    whole = similarity(name, a, b, window=5)
    thinned = torch.stack([similarity(name, a, b, window=5, dropout=0.5) for _ in range(50)])
    assert thinned.std() > 0
    assert abs(thinned.mean() - whole) < 5 * thinned.std() / 50**0.5 + 1e-4
    with pytest.raises(ValueError, match="dropout"):
        similarity("ncc", a, b, dropout=0.5)
    with pytest.raises(ValueError, match="one of lncc"):
        similarity("mi", a, b)


@pytest.mark.parametrize("window", [3, 4])
def test_empty_windows_count_by_their_differences(window):
    """Against loops over the windows."""
    a, b = pair((1, 1, 14, 12))
    a[..., :6] = 0
    b[..., 9:, :] = 0
    values = kernels.lncc(a, b, window, padding="valid", reduction="none")
    good, under = [], torch.zeros_like(a)
    for i in range(14 - window + 1):
        for j in range(12 - window + 1):
            part = (..., slice(i, i + window), slice(j, j + window))
            if a[part].max() > 0 and b[part].max() > 0:
                good.append(values[..., i, j].squeeze())
            else:
                under[part] = 1
    assert good
    assert 0 < under.sum() < under.numel()
    expected = torch.stack(good).mean() - (a - b).square()[under > 0].mean()
    torch.testing.assert_close(zero_rule_lncc(a, b, window), expected)


def test_the_zero_rules_gradient_is_finite_and_exact():
    a, b = pair((1, 1, 9, 8))
    a[..., :5] = 0
    b[..., 6:, :] = 0
    # Moving a zero off zero would change which windows count.
    filled = b.flatten().nonzero()[:, 0]

    def run(values):
        moved = b.flatten().index_put((filled,), values).view_as(b)
        return zero_rule_lncc(a, moved, 3)

    assert torch.autograd.gradcheck(run, b.flatten()[filled].requires_grad_())
