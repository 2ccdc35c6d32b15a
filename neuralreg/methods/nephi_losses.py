"""What NePhi asks of a pair's two maps: alike images in both directions, maps that undo each other, small codes.

Everything is asked at sampled points, so memory does not grow with the volume.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from neuralreg import kernels
from neuralreg.methods.nephi_options import Options
from neuralreg.objective import sampled_similarity
from neuralreg.pair import Pair
from neuralreg.samplers import Downsize, Patches, Points, Sample, shrunken_grid, smallest_stride
from neuralreg.two_way import CodedMap

DELTA = 1e-3  # of finite differences, in coordinates of [-1, 1]: GradICON's


def pair_losses(
    maps: tuple[CodedMap, CodedMap], pair: Pair, sample: Sample, points: Tensor, options: Options
) -> dict[str, Tensor]:
    """Loss of one pair and its parts; ``pair``'s images share a grid, ``points`` (N, ndim) are the regulariser's.

    ``options`` are those of one stage (:meth:`Options.stage`), as in all that follows.
    """
    similarity = symmetric_similarity(maps, pair, sample, options)
    if options.regulariser == "diffusion":
        regulariser = diffusion(maps, points)
    elif options.derivative == "exact":
        regulariser = gradient_inverse_consistency(maps, points)
    else:
        regulariser = difference_inverse_consistency(maps, points)
    prior = code_prior(maps[0].latent, maps[0].volume, like=similarity)
    loss = -similarity + options.regulariser_weight * regulariser + options.prior_weight * prior
    return {"loss": loss, "similarity": similarity, "regulariser": regulariser, "prior": prior}


def symmetric_similarity(
    maps: tuple[CodedMap, CodedMap], pair: Pair, sample: Sample, options: Options
) -> Tensor:
    """Mean of the similarities of moving image to fixed one and of fixed to moving, at the same points."""
    x = sample.coordinates()
    turned = Pair(pair.moving, pair.fixed, pair.voxel_affine, pair.moving_mask, pair.fixed_mask)
    found = [
        sampled_similarity(
            images, sample, sample.displacement(one(x)), options.similarity, window=options.windows[0]
        )
        for one, images in zip(maps, (pair, turned), strict=True)
    ]
    return torch.stack(found).mean()


def gradient_inverse_consistency(maps: tuple[CodedMap, CodedMap], x: Tensor) -> Tensor:
    """Exact, of two maps of one architecture: see :func:`neuralreg.kernels.gradient_inverse_consistency`."""
    there, back = (one.decoder for one in maps)
    if there.spec != back.spec:
        raise ValueError("gradient_inverse_consistency: the maps' decoders must have one spec")
    return kernels.gradient_inverse_consistency(
        x,
        [*there.encoding, *there.weights],
        [*back.encoding, *back.weights],
        there.spec,
        latent=maps[0].latent,
        volume=maps[0].volume,
    )


def difference_inverse_consistency(
    maps: tuple[CodedMap, CodedMap], x: Tensor, delta: float = DELTA
) -> Tensor:
    """The same by one-sided differences of psi(phi(x)) - x over ``delta``, without derivatives of the maps."""
    count, ndim = x.shape
    steps = delta * torch.eye(ndim, dtype=x.dtype, device=x.device)
    asked = torch.cat([x, *(x + step for step in steps)])
    terms = []
    for first, second in (maps, maps[::-1]):
        u = first(asked)
        error = (u + second(asked + u)).view(ndim + 1, count, ndim)
        terms.append(((error[1:] - error[0]) / delta).square().mean())
    return torch.stack(terms).mean()


def diffusion(maps: tuple[CodedMap, CodedMap], x: Tensor) -> Tensor:
    """Mean squared entry of both displacements' Jacobians: what the ablation puts in inverse consistency's place."""
    return torch.stack([one.jet(x)[1].square().mean() for one in maps]).mean()


def code_prior(latent: Tensor | None, volume: Tensor | None, *, like: Tensor) -> Tensor:
    """Norm of the global code and mean norm of the local ones over their lattice."""
    total = like.new_zeros(())
    if latent is not None:
        total = total + torch.linalg.vector_norm(latent)
    if volume is not None:
        total = total + torch.linalg.vector_norm(volume, dim=0).mean()
    return total


def draw_sample(
    options: Options, grid: tuple[int, ...], generator: torch.Generator, device: torch.device
) -> Sample:
    """Where images are compared: scattered points anywhere between the voxels, patches, or a lattice of the grid."""
    where = (generator, device, options.scales[0])
    if options.sampler == "patches":
        return Patches(grid, options.patches, options.patch_side, *where).draw()
    count = similarity_points(options, grid)
    if options.sampler == "lattice":
        stride = options.strides[0] or smallest_stride(shrunken_grid(grid, options.scales[0]), count)
        return Downsize(grid, stride, *where).draw()
    last = torch.tensor(grid, dtype=torch.float32) - 1
    voxels = torch.rand(count, len(grid), generator=generator) * last
    return Points(grid, 1, voxels.to(device))


def draw_points(
    options: Options, grid: tuple[int, ...], generator: torch.Generator, device: torch.device
) -> Tensor:
    """(N, ndim) uniform coordinates for the regulariser."""
    count = regulariser_points(options, grid)
    return (torch.rand(count, len(grid), generator=generator) * 2 - 1).to(device)


def similarity_points(options: Options, grid: tuple[int, ...]) -> int:
    """The share of the voxels that the options ask for, at most ``max_points``."""
    return max(1, min(options.max_points, round(options.point_share * math.prod(grid))))


def regulariser_points(options: Options, grid: tuple[int, ...]) -> int:
    """The regulariser's share of the voxels, between its two bounds."""
    low, high = options.regulariser_bounds
    return min(max(round(options.regulariser_share * math.prod(grid)), low), high)
