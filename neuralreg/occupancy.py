"""Occupancy: how much of a point belongs to the body, or to the lung, and how far two occupancies are apart."""

from __future__ import annotations

import torch
from torch import Tensor

from neuralreg.losses import mean_over

OCCUPIED = ("brighter", "darker")
OCCUPANCY_LOSSES = ("l1", "bce", "dice")


def soft_occupancy(image: Tensor, threshold: float, softness: float, occupied: str = "brighter") -> Tensor:
    """sigmoid((I - threshold) / softness): near 1 where the image is brighter (a body), else near 0.

    ``occupied`` "darker" turns it round (a lung). ``softness`` is in intensities: at the threshold plus twice that the
    occupancy is .88.
    """
    if occupied not in OCCUPIED:
        raise ValueError(f"occupied must be one of {', '.join(OCCUPIED)}, got {occupied!r}")
    if not softness > 0:
        raise ValueError(f"softness must be above 0, got {softness}")
    sign = 1 if occupied == "brighter" else -1
    return torch.sigmoid((image - threshold) * (sign / softness))


def occupancy_loss(name: str, fixed: Tensor, warped: Tensor, mask: Tensor | None = None) -> Tensor:
    """One of OCCUPANCY_LOSSES between occupancies (B, C, *spatial) in [0, 1]; ``mask`` (B, 1, *spatial) chooses points.

    l1: mean |f - w|.
    bce: cross entropy, mean of -(f log w + (1 - f) log(1 - w)) with w held in [1e-4, 1 - 1e-4].
    dice: 1 - 2 sum(f w) / (sum f^2 + sum w^2), 0 where both are empty (Milletari et al. 2016, V-Net).
    """
    if name == "l1":
        return mean_over((fixed - warped).abs(), mask)
    if name == "bce":
        # A logarithm's slope at 0 has no bound.
        inside = warped.clamp(1e-4, 1 - 1e-4)
        return -mean_over(fixed * inside.log() + (1 - fixed) * (1 - inside).log(), mask)
    if name == "dice":
        weight = torch.ones_like(fixed) if mask is None else mask.to(fixed.dtype).expand_as(fixed)
        both = (weight * fixed * warped).sum()
        sizes = (weight * (fixed.square() + warped.square())).sum()
        return torch.where(sizes > 0, 1 - 2 * both / sizes.clamp(min=1e-12), torch.zeros_like(sizes))
    raise ValueError(f"occupancy loss must be one of {', '.join(OCCUPANCY_LOSSES)}, got {name!r}")


def otsu_threshold(image: Tensor, bins: int = 256) -> float:
    """The intensity that parts the voxels into two classes of the least variance (Otsu 1979); any of a constant image.

    Between bins of equal merit the middle one counts: two sharp classes have their threshold half-way.
    """
    values = image.detach().float().reshape(-1)
    low, high = float(values.min()), float(values.max())
    if not low < high:
        return low
    counts = torch.histc(values, bins, low, high).double()
    width = (high - low) / bins
    centres = low + width * (torch.arange(bins, dtype=torch.float64, device=counts.device) + 0.5)
    below = counts.cumsum(0)[:-1]
    above = counts.sum() - below
    mass = (counts * centres).cumsum(0)
    difference = mass[:-1] / below.clamp(min=1) - (mass[-1] - mass[:-1]) / above.clamp(min=1)
    merit = below * above * difference.square()
    best = (merit >= merit.max() * (1 - 1e-9)).nonzero().flatten()
    return low + width * (float(best.double().mean()) + 1)
