"""What a fit asks of a map at the points of a sample: alike images, and a map that is smooth and does not fold."""

from __future__ import annotations

import torch
from torch import Tensor

from neuralreg import kernels
from neuralreg.losses import Mean, mean_over, similarity, zero_rule_lncc
from neuralreg.pair import Pair
from neuralreg.samplers import Sample


def sampled_similarity(
    pair: Pair,
    sample: Sample,
    displacement: Tensor,
    name: str = "lncc",
    *,
    window: int = 9,
    padding: str = "same",
    zero_rule: bool = False,
    dropout: float = 0.0,
    mean: Mean = mean_over,
) -> Tensor:
    """Similarity between the fixed image at a sample's points and the moving image where the displacement points.

    ``pair`` is shrunk as the sample is; ``displacement`` is in the sample's own steps. The rest is as in
    :func:`neuralreg.losses.similarity`; with ``zero_rule`` LNCC is NIR's, see
    :func:`neuralreg.losses.zero_rule_lncc`.
    """
    warped = sample.warp(pair.moving, displacement, pair.voxel_affine)
    mask = None if pair.fixed_mask is None else sample.pick(pair.fixed_mask)
    if pair.moving_mask is not None:
        inside = sample.warp(pair.moving_mask, displacement.detach(), pair.voxel_affine, mode="nearest")
        mask = inside if mask is None else mask * inside
    fixed = sample.pick(pair.fixed)
    if zero_rule:
        return zero_rule_lncc(fixed, warped, window, mask=mask, dropout=dropout, mean=mean)
    return similarity(
        name, fixed, warped, mask=mask, window=window, padding=padding, dropout=dropout, mean=mean
    )


def lattice_regularity(
    displacement: Tensor,
    *,
    folding: float,
    threshold: float = 0.0,
    diffusion: float = 0.0,
    mean: Mean = mean_over,
) -> Tensor:
    """``folding`` times mean relu(threshold - det) plus ``diffusion`` times the mean squared difference.

    ``displacement`` (P, ndim, *shape) in lattice steps, derivatives by forward differences. A weight of 0 costs
    nothing. ``mean`` takes the means.
    """
    total = displacement.new_zeros(())
    at_once = mean is mean_over  # the kernels take the mean themselves
    if folding and at_once:
        total = total + folding * kernels.jacobian_loss(displacement, threshold=threshold)
    elif folding:
        determinant = kernels.jacobian_determinant(displacement)[:, None]
        total = total + folding * mean((threshold - determinant).relu())
    if diffusion and at_once:
        total = total + diffusion * kernels.diffusion_loss(displacement)
    elif diffusion:
        axes = range(2, displacement.ndim)
        means = [mean(displacement.diff(dim=axis).square()) for axis in axes]
        total = total + diffusion * torch.stack(means).mean()
    return total


def analytic_regularity(
    jacobian: Tensor,
    grid: tuple[int, ...],
    *,
    folding: float,
    threshold: float = 0.0,
    diffusion: float = 0.0,
) -> Tensor:
    """The same from Jacobians du/dx (N, ndim, ndim) in field coordinates, for points that need no neighbours."""
    total = jacobian.new_zeros(())
    if folding:  # a determinant does not depend on the coordinates' unit
        total = total + folding * kernels.jacobian_penalty(jacobian, threshold=threshold)
    if diffusion:
        half = jacobian.new_tensor([max(n - 1, 1) / 2 for n in grid])
        in_voxels = jacobian * half[:, None] / half
        total = total + diffusion * in_voxels.square().mean()
    return total
