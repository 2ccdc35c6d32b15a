"""Composition, integration and inversion of dense displacement fields, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from neuralreg.kernels.backends.reference.sampling import warp


def compose(u: Tensor, v: Tensor) -> Tensor:
    """The displacement of (id + u) after (id + v): v(x) + u(x + v(x)).

    u and v (B, ndim, *spatial) in voxels; u is read linearly, and outside the grid has its border's values.
    """
    return v + warp(u, v, padding_mode="border")


def integrate(velocity: Tensor, steps: int = 7, scheme: str = "squaring") -> Tensor:
    """The displacement at time 1 of the flow of a stationary velocity (B, ndim, *spatial), in voxels.

    "squaring": u = v / 2^steps, then steps times u <- compose(u, u); "euler" and "rk4": that many steps of
    phi' = v(phi) from the identity. Half types compute in float32.
    """
    v = velocity.to(torch.promote_types(velocity.dtype, torch.float32))

    def at(place: Tensor) -> Tensor:
        return warp(v, place, padding_mode="border")

    if scheme == "squaring":
        u = v / 2**steps
        for _ in range(steps):
            u = compose(u, u)
        return u.to(velocity.dtype)
    h, u = 1 / steps, torch.zeros_like(v)
    for _ in range(steps):
        k1 = at(u)
        if scheme == "euler":
            u = u + h * k1
            continue
        k2 = at(u + h / 2 * k1)
        k3 = at(u + h / 2 * k2)
        k4 = at(u + h * k3)
        u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return u.to(velocity.dtype)


def invert(u: Tensor, iterations: int = 20, tolerance: float = 1e-3) -> tuple[Tensor, Tensor, Tensor]:
    """The displacement v of (id + u)^-1 by the fixed point v <- -u(x + v) (Chen et al. 2008), from v = -u.

    u (B, ndim, *spatial) in voxels. Returns v, the residual (B,), which is the largest |v + u(x + v)| of each
    batch item in voxels, and the number of steps (B,) that the item took. An item stops when its residual is at
    most ``tolerance``. The iteration contracts where u has a Lipschitz constant below 1; the residual says
    whether it did.
    """
    v = -u
    residual = _residual(u, v)
    taken = torch.zeros_like(residual, dtype=torch.int64)
    for _ in range(iterations):
        done = residual <= tolerance
        if not torch.compiler.is_compiling() and bool(done.all()):
            break  # saves time only: finished items are frozen anyway
        taken = taken + ~done
        step = -warp(u, v, padding_mode="border")
        v = torch.where(done.view(-1, *[1] * (u.ndim - 1)), v, step)
        residual = _residual(u, v)
    return v, residual, taken


def _residual(u: Tensor, v: Tensor) -> Tensor:
    return compose(u, v).detach().square().sum(1).flatten(1).amax(1).sqrt()
