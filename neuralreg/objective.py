"""What a fit asks of a map at the points of a sample: alike images, and a map that is smooth and does not fold."""

from __future__ import annotations

import itertools

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
    bending: float = 0.0,
    mean: Mean = mean_over,
) -> Tensor:
    """``folding`` times mean relu(threshold - det), ``diffusion`` and ``bending`` times mean squared differences.

    First differences for ``diffusion`` (:func:`neuralreg.kernels.diffusion_loss`), second ones, which leave affine
    maps free, for ``bending`` (:func:`neuralreg.kernels.bending_loss`). ``displacement`` (P, ndim, *shape) in lattice
    steps. A weight of 0 costs nothing. ``mean`` takes the means.
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
    if bending and at_once:
        total = total + bending * kernels.bending_loss(displacement)
    elif bending:
        for first, second in itertools.product(range(2, displacement.ndim), repeat=2):
            total = total + bending * mean(displacement.diff(dim=first).diff(dim=second).square())
    return total


def analytic_regularity(
    jacobian: Tensor,
    grid: tuple[int, ...],
    *,
    folding: float,
    threshold: float = 0.0,
    diffusion: float = 0.0,
    bending: float = 0.0,
    beyond: Tensor | None = None,
) -> Tensor:
    """The same from Jacobians du/dx (N, ndim, ndim) in field coordinates, for points that need no neighbours.

    ``bending`` takes the Jacobians ``beyond``, those at :func:`one_step_beyond` of the points.
    """
    total = jacobian.new_zeros(())
    if folding:  # a determinant does not depend on the coordinates' unit
        total = total + folding * kernels.jacobian_penalty(jacobian, threshold=threshold)
    half = jacobian.new_tensor([max(n - 1, 1) / 2 for n in grid])
    to_voxels = half[:, None] / half
    if diffusion:
        total = total + diffusion * (jacobian * to_voxels).square().mean()
    if bending:
        assert beyond is not None
        second = ((beyond - jacobian) * to_voxels).square()
        # One axis is drawn of those that there are; a component's entries are summed, components averaged
        total = total + bending * sum(n > 1 for n in grid) * second.sum(-1).mean()
    return total


def one_step_beyond(x: Tensor, grid: tuple[int, ...], scale: int = 1) -> Tensor:
    """Field coordinates (N, ndim) moved by ``scale`` voxels along an axis drawn for each, toward the grid's middle."""
    axes = torch.tensor([k for k, n in enumerate(grid) if n > 1], device=x.device)
    if not len(axes):
        return x
    chosen = axes[torch.randint(len(axes), (len(x), 1), device=x.device)]
    step = x.new_tensor([2 * scale / max(n - 1, 1) for n in grid])
    moves = torch.where(x > 0, -step, step)
    return x.scatter_add(1, chosen, moves.gather(1, chosen))
