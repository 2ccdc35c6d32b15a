"""Registrations that build on an earlier transform."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
from torch import Tensor

from neuralreg.errors import InputError
from neuralreg.images import Geometry, Image
from neuralreg.maps import SpatialMap, compose
from neuralreg.transforms import Transform, load_transform


def read_prior(prior: str | os.PathLike[str] | SpatialMap, ndim: int) -> SpatialMap:
    """The transform that a registration builds on, from its file or as it is.

    Raises:
        InputError: a file that is no transform, or one of another dimension.
    """
    found = prior if isinstance(prior, SpatialMap) else load_transform(prior)
    if found.ndim != ndim:
        raise InputError(f"the prior is a {found.ndim}-D transform, the images are {ndim}-D")
    return found


def seen_through(prior: SpatialMap, moving: Tensor, affine: np.ndarray, fixed: Geometry, mode: str) -> Tensor:
    """A moving image (*moving grid), scaled already, as the prior shows it on the fixed grid; 0 beyond its border."""
    return prior.warp(Image(moving, affine), fixed, mode).data


def behind(forward: Transform, prior: SpatialMap, moving: Geometry) -> Transform:
    """The map of a registration on a prior: forward, then the prior."""
    return replace(compose(forward, prior).dense(forward.fixed), moving=moving)


def before(inverse: Transform, prior: SpatialMap, forward: Transform) -> Transform:
    """The way back through `behind`: the prior undone, then inverse."""
    moving = forward.moving
    return replace(compose(prior.inverse(moving), inverse).dense(moving), moving=forward.fixed)
