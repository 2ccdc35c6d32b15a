"""Composition and inversion of dense displacement fields, over :func:`warp`."""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import registry
from .backends.reference import flow as reference
from .sampling import warp


def compose(u: Tensor, v: Tensor, *, backend: str | None = None) -> Tensor:
    """The displacement of (id + u) after (id + v): v(x) + u(x + v(x)).

    Args:
        u, v: (B, ndim, H, W) or (B, ndim, D, H, W) in voxels, channel k along tensor axis k, on one grid. u
        is read
            linearly; outside the grid its border values go on.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        The same shape and dtype. Differentiable once in both.

    Memory beyond inputs and outputs: one field, u at the displaced positions.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    _check("compose", "u", u)
    if u.shape != v.shape or u.dtype != v.dtype or u.device != v.device:
        raise ValueError(
            f"compose: u and v must share shape, dtype and device, got {tuple(u.shape)} {u.dtype} {u.device} "
            f"and {tuple(v.shape)} {v.dtype} {v.device}"
        )
    chosen = registry.choose("warp", u.device, backend)
    if chosen == "reference":
        return reference.compose(u, v)
    return v + warp(u, v, padding_mode="border", backend=chosen)


def invert(
    u: Tensor, iterations: int = 20, tolerance: float = 1e-3, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """The displacement v of (id + u)^-1 by the fixed point v <- -u(x + v) (Chen et al. 2008), from v = -u.

    Args:
        u: (B, ndim, H, W) or (B, ndim, D, H, W) in voxels, channel k along tensor axis k; read linearly, its
            border values go on outside the grid.
        iterations: most steps, at least 0.
        tolerance: an item of the batch stops once its residual is at most this many voxels; at least 0.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        v, like u, and the residual (B,): the largest length of v + u(x + v) over the grid, in voxels. The
        iteration contracts where u has a Lipschitz constant below 1; the residual says whether it did, and a
        map that folds keeps a large one. Differentiable once in u through the iterations; the residual
        carries no gradient.

    Memory beyond inputs and outputs: three fields; with gradients one more for every iteration.

    Raises:
        ValueError: a shape, dtype or option does not fit.
    """
    _check("invert", "u", u)
    if iterations < 0:
        raise ValueError(f"invert: iterations must be at least 0, got {iterations}")
    if not tolerance >= 0:
        raise ValueError(f"invert: tolerance must be at least 0, got {tolerance}")
    chosen = registry.choose("warp", u.device, backend)
    if chosen == "reference":
        return reference.invert(u, iterations, tolerance)
    v = -u
    moved = warp(u, v, padding_mode="border", backend=chosen)
    residual = _length(v + moved)
    for _ in range(iterations):
        done = residual <= tolerance
        # Stopping saves time only, as finished items stay as they are; a compiled graph runs all steps.
        if not torch.compiler.is_compiling() and bool(done.all()):
            break
        v = torch.where(done.view(-1, *[1] * (u.ndim - 1)), v, -moved)
        moved = warp(u, v, padding_mode="border", backend=chosen)
        residual = _length(v + moved)
    return v, residual


def _length(gap: Tensor) -> Tensor:
    """Largest length of a vector in each item of the batch."""
    return gap.detach().square().sum(1).flatten(1).amax(1).sqrt()


def _check(op: str, name: str, u: Tensor) -> None:
    ndim = u.ndim - 2
    if ndim not in (2, 3) or u.shape[1] != ndim:
        raise ValueError(
            f"{op}: {name} must be a displacement (B, ndim, H, W) or (B, ndim, D, H, W), got {tuple(u.shape)}"
        )
    if not u.is_floating_point():
        raise ValueError(f"{op}: {name} must be floating point, got {u.dtype}")
