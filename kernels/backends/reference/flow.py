"""Composition and inversion of dense displacement fields, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from neuralreg.kernels.backends.reference.sampling import warp


def compose(u: Tensor, v: Tensor) -> Tensor:
    """The displacement of (id + u) after (id + v): v(x) + u(x + v(x)).

    u and v (B, ndim, *spatial) in voxels; u is read linearly, and outside the grid has its border's values.
    """
    return v + warp(u, v, padding_mode="border")


def invert(u: Tensor, iterations: int = 20, tolerance: float = 1e-3) -> tuple[Tensor, Tensor]:
    """The displacement v of (id + u)^-1 by the fixed point v <- -u(x + v) (Chen et al. 2008), from v = -u.

    u (B, ndim, *spatial) in voxels. Returns v and the residual (B,): the largest |v + u(x + v)| of each batch
    item in voxels. An item stops when its residual is at most ``tolerance``. The iteration contracts where u
    has a Lipschitz constant below 1; the residual says whether it did.
    """
    v = -u
    residual = _residual(u, v)
    for _ in range(iterations):
        done = residual <= tolerance
        if not torch.compiler.is_compiling() and bool(done.all()):
            break  # saves time only: finished items are frozen anyway
        step = -warp(u, v, padding_mode="border")
        v = torch.where(done.view(-1, *[1] * (u.ndim - 1)), v, step)
        residual = _residual(u, v)
    return v, residual


def _residual(u: Tensor, v: Tensor) -> Tensor:
    return compose(u, v).detach().square().sum(1).flatten(1).amax(1).sqrt()
