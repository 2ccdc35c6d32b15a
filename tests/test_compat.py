"""The drop-in losses against the originals: MONAI's class where it is installed, formulas otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from neuralreg import compat

from .kernels.common import assert_near, assert_relative, leaf

SHAPES = {1: (2, 2, 23), 2: (2, 3, 13, 17), 3: (1, 2, 9, 11, 8)}


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    fixed = torch.rand(shape, dtype=torch.float64)
    return fixed, 0.6 * fixed + 0.4 * torch.rand(shape, dtype=torch.float64)


def compare(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], one: Tensor, other: Tensor, bound: float
) -> None:
    """The same value and gradients to both images."""
    found = []
    for loss in (ours, theirs):
        a, b = leaf(one), leaf(other)
        value = loss(a, b)
        (value * torch.linspace(1, 2, value.numel(), dtype=value.dtype).view_as(value)).sum().backward()
        found.append((value.detach(), a.grad, b.grad))
    (value, to_a, to_b), (expected, expected_a, expected_b) = found
    assert_near(value, expected, bound)
    assert_relative(to_a, expected_a, bound)
    assert_relative(to_b, expected_b, bound)


def box(x: Tensor, window: int) -> Tensor:
    """Sums over windows with zeros outside, axis by axis."""
    for axis in range(2, x.ndim):
        line = F.pad(x.movedim(axis, -1), [window // 2, window // 2])
        x = line.unfold(-1, window, 1).sum(-1).movedim(-1, axis)
    return x


def statistics(a: Tensor, b: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Covariance and variances of every window, times its number of voxels."""
    n = window ** (a.ndim - 2)
    sa, sb = box(a, window), box(b, window)
    cross = box(a * b, window) - sa * sb / n
    return cross, box(a * a, window) - sa * sa / n, box(b * b, window) - sb * sb / n


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("constants", [{}, {"smooth_nr": 0.01, "smooth_dr": 0.3}], ids=str)
@pytest.mark.parametrize("window", [3, 5])
def test_the_formula_of_monai(dims: int, reduction: str, constants: dict[str, float], window: int) -> None:
    least, extra = constants.get("smooth_dr", 1e-5), constants.get("smooth_nr", 0.0)

    def theirs(pred: Tensor, target: Tensor) -> Tensor:
        cross, var_p, var_t = statistics(pred, target, window)
        values = -(cross**2 + extra) / (var_p.clamp(min=least) * var_t.clamp(min=least))
        return {"mean": values.mean, "sum": values.sum, "none": lambda: values}[reduction]()

    ours = compat.LocalNormalizedCrossCorrelationLoss(dims, window, reduction=reduction, **constants)
    compare(ours, theirs, *pair(*SHAPES[dims]), 1e-9)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "options", [{}, {"kernel_size": 5, "reduction": "none"}, {"smooth_nr": 0.01}], ids=str
)
def test_against_monai(dims: int, options: dict[str, Any]) -> None:
    losses = pytest.importorskip("monai.losses", reason="MONAI is not installed (extra bench)")
    theirs = losses.LocalNormalizedCrossCorrelationLoss(dims, **options)
    ours = compat.LocalNormalizedCrossCorrelationLoss(dims, **options)
    images = pair(*SHAPES[dims])
    # In float32 MONAI's sums lose what the variance of a window of three voxels is made of; double keeps it.
    compare(ours, theirs.double(), *images, 1e-6)
    if dims > 1:
        compare(ours, theirs.float(), *(x.float() for x in images), 2e-4)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("win", [None, 5, [3]], ids=str)
def test_voxelmorph(dims: int, win: Any) -> None:
    window = 9 if win is None else win if isinstance(win, int) else win[0]

    def theirs(y_true: Tensor, y_pred: Tensor) -> Tensor:
        cross, var_t, var_p = statistics(y_true, y_pred, window)
        return -(cross**2 / (var_t * var_p + 1e-5)).mean()

    ours = compat.NCC(win)
    images = pair(1, 1, *SHAPES[dims][2:])
    compare(ours.loss, theirs, *images, 1e-9)
    assert torch.equal(ours(*images), ours.loss(*images))


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (NotImplementedError, {"kernel_type": "gaussian"}, "gaussian"),
        (NotImplementedError, {"kernel_type": "triangular"}, "triangular"),
        (ValueError, {"kernel_type": "round"}, "round"),
        (ValueError, {"kernel_size": 4}, "odd"),
        (ValueError, {"spatial_dims": 4}, "spatial_dims"),
        (ValueError, {"reduction": "median"}, "median"),
    ],
)
def test_options_that_cannot_be_honoured(error: type[Exception], options: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        compat.LocalNormalizedCrossCorrelationLoss(**options)


def test_images_that_do_not_fit() -> None:
    loss = compat.LocalNormalizedCrossCorrelationLoss(3)
    with pytest.raises(ValueError, match="spatial"):
        loss(torch.rand(1, 1, 5, 6), torch.rand(1, 1, 5, 6))
    with pytest.raises(ValueError, match="shapes"):
        loss(torch.rand(1, 1, 5, 6, 7), torch.rand(1, 1, 5, 6, 8))
    with pytest.raises(ValueError, match="channel"):
        compat.NCC().loss(torch.rand(1, 2, 9, 9), torch.rand(1, 2, 9, 9))
    for win in (4, [3, 5], []):
        with pytest.raises(ValueError, match="win"):
            compat.NCC(win)
    with pytest.raises(ValueError, match="axes"):
        compat.NCC([9, 9]).loss(torch.rand(1, 1, 9, 9, 9), torch.rand(1, 1, 9, 9, 9))
