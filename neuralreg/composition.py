"""One transform behind another as a transform of its own, and registrations that build on an earlier one."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from neuralreg.errors import InputError
from neuralreg.images import Geometry, Image
from neuralreg.transforms import Transform, _lattice, _mix, _slabs, load_transform


def compose(first: Transform, then: Transform) -> Transform:
    """x -> then(first(x)), dense on ``first``'s grid; ``then`` is read linearly, and beyond its grid is the identity.

    Allocates the result, and slabs.
    """
    grid = first.fixed
    ndim = grid.ndim
    if then.ndim != ndim:
        raise ValueError(f"a {ndim}-D transform cannot stand before a {then.ndim}-D one")
    to_world = torch.from_numpy((first.initial @ grid.affine)[:-1])
    back = torch.from_numpy(np.linalg.inv(grid.affine)[:-1])
    then_back = torch.from_numpy(np.linalg.inv(then.fixed.affine)[:-1])
    identity = torch.from_numpy(np.eye(ndim, ndim + 1))
    out = torch.empty_like(first.displacement)
    shift = [-1, *[1] * ndim]
    for part in _slabs(grid.shape):
        index = _lattice(identity, grid.shape, part, out.device)
        world = _mix(to_world[:, :-1], index + first.displacement[:, part])
        world += to_world[:, -1].to(world).view(shift)
        voxels = _mix(then_back[:, :-1], world) + then_back[:, -1].to(world).view(shift)
        world += then._displacement_at(voxels)
        out[:, part] = _mix(back[:, :-1], world) + back[:, -1].to(world).view(shift) - index
    return Transform(out, grid, then.moving)


def read_prior(prior: str | os.PathLike[str] | Transform, ndim: int) -> Transform:
    """The transform that a registration builds on, from its file or as it is.

    Raises:
        InputError: a file that is no transform, or one of another dimension.
    """
    found = prior if isinstance(prior, Transform) else load_transform(prior)
    if found.ndim != ndim:
        raise InputError(f"the prior is a {found.ndim}-D transform, the images are {ndim}-D")
    return found


def seen_through(prior: Transform, moving: Tensor, affine: np.ndarray, fixed: Geometry, mode: str) -> Tensor:
    """A moving image (*moving grid), scaled already, as the prior shows it on the fixed grid; 0 beyond its border."""
    return prior.warp(Image(moving, affine), fixed, mode).data


def behind(
    forward: Transform, inverse: Transform, prior: Transform, moving: Geometry
) -> tuple[Transform, Transform]:
    """Both maps of a registration on a prior: forward, then the prior; the prior undone, then inverse."""
    whole = replace(compose(forward, prior), moving=moving)
    back = replace(compose(prior.inverse(moving), inverse), moving=forward.fixed)
    return whole, back
