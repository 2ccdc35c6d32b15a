"""Composition, integration and inversion of dense displacement fields, over :func:`warp`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .backends import registry
from .backends.reference import flow as reference
from .integration import SCHEMES, backward, forward
from .lattice import check_displacement
from .ops import op
from .sampling import warp


class Convergence(NamedTuple):
    """How an inversion ended, one entry an item of the batch.

    Attributes:
        iterations: (B,) int64, steps that the item took.
        residual: (B,), largest length of v + u(x + v) over the grid, in voxels.
        converged: (B,) bool, whether the residual is at most the tolerance.
    """

    iterations: Tensor
    residual: Tensor
    converged: Tensor


def compose(u: Tensor, v: Tensor, *, backend: str | None = None) -> Tensor:
    """The displacement of (id + u) after (id + v): v(x) + u(x + v(x)).

    Args:
        u, v: (B, ndim, H, W) or (B, ndim, D, H, W) in voxels, channel k along tensor axis k, on one grid. u
            is read linearly; outside the grid its border values go on.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        The same shape and dtype. Differentiable once in both.

    Memory beyond inputs and outputs: one field, u at the displaced positions.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    check_displacement("compose", u, name="u")
    if u.shape != v.shape or u.dtype != v.dtype or u.device != v.device:
        raise ValueError(
            f"compose: u and v must share shape, dtype and device, got {tuple(u.shape)} {u.dtype} {u.device} "
            f"and {tuple(v.shape)} {v.dtype} {v.device}"
        )
    chosen = registry.choose("warp", u.device, backend)
    if chosen == "reference":
        return reference.compose(u, v)
    return v + warp(u, v, padding_mode="border", backend=chosen)


@op("integrate_forward")
def _integrate_forward(velocity: Tensor, steps: int, scheme: str, backend: str) -> Tensor:
    return forward(velocity, steps, scheme, backend)


@_integrate_forward.register_fake
def _(velocity: Tensor, steps: int, scheme: str, backend: str) -> Tensor:
    return velocity.new_empty(velocity.shape)


@op("integrate_backward")
def _integrate_backward(grad: Tensor, velocity: Tensor, steps: int, scheme: str, backend: str) -> Tensor:
    return backward(grad, velocity, steps, scheme, backend)


@_integrate_backward.register_fake
def _(grad: Tensor, velocity: Tensor, steps: int, scheme: str, backend: str) -> Tensor:
    return velocity.new_empty(velocity.shape)


def _integrate_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    velocity, *ctx.options = inputs
    ctx.save_for_backward(velocity)


def _integrate_grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _integrate_backward(grad, *ctx.saved_tensors, *ctx.options), None, None, None


_integrate_forward.register_autograd(_integrate_grad, setup_context=_integrate_setup)


def integrate(
    velocity: Tensor, steps: int = 7, scheme: str = "squaring", *, backend: str | None = None
) -> Tensor:
    """The displacement at time 1 of the flow of a stationary velocity field: phi' = v(phi), phi(0) = id.

    "squaring" (scaling and squaring, Arsigny et al. 2006)::

        u <- v / 2^steps, then steps times    u <- u + u(x + u)

    "euler" and "rk4" make ``steps`` steps of h = 1 / steps, from u = 0::

        euler   u <- u + h v(x + u)
        rk4     k1 = v(x + u), k2 = v(x + u + h/2 k1), k3 = v(x + u + h/2 k2), k4 = v(x + u + h k3),
                u <- u + h/6 (k1 + 2 k2 + 2 k3 + k4)

    Args:
        velocity: v (B, ndim, H, W) or (B, ndim, D, H, W) in voxels per unit of time, channel k along tensor
            axis k; read linearly, its border values go on outside the grid.
        steps: at least 0 for "squaring", 1 for the others. Folds of the result mean that there are too few, or
            that v bends within a voxel.
        scheme: "squaring", "euler" or "rk4".
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        The displacement, like ``velocity``. Differentiable once. Half types compute in float32.

    Memory beyond inputs and outputs: a few fields, however many steps; the reference backend saves every step
    for its backward pass. Elsewhere nothing but v is saved: the backward pass holds at most four intermediate
    fields and computes the others again, each at most twice up to 15 steps and three times up to 35 (binomial
    checkpoints, Griewank 1992).

    Raises:
        ValueError: a shape, dtype or option does not fit.
    """
    check_displacement("integrate", velocity, name="velocity")
    if scheme not in SCHEMES:
        raise ValueError(f"integrate: scheme must be one of {SCHEMES}, got {scheme!r}")
    least = 0 if scheme == "squaring" else 1
    if steps < least:
        raise ValueError(f"integrate: scheme {scheme!r} takes at least {least} steps, got {steps}")
    chosen = registry.choose("warp", velocity.device, backend)
    if chosen == "reference":
        return reference.integrate(velocity, steps, scheme)
    return _integrate_forward(velocity, steps, scheme, chosen)


def invert(
    u: Tensor,
    iterations: int = 20,
    tolerance: float = 1e-3,
    *,
    report: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Any]:
    """The displacement v of (id + u)^-1 by the fixed point v <- -u(x + v) (Chen et al. 2008), from v = -u.

    Args:
        u: (B, ndim, H, W) or (B, ndim, D, H, W) in voxels, channel k along tensor axis k; read linearly, its
            border values go on outside the grid.
        iterations: most steps, at least 0.
        tolerance: an item of the batch stops once its residual is at most this many voxels; at least 0.
        report: return a :class:`Convergence` instead of the residual alone.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        v, like u, and the residual (B,): the largest length of v + u(x + v) over the grid, in voxels. The
        iteration contracts where u has a Lipschitz constant below 1; the residual says whether it did, and a
        map that folds keeps a large one. Differentiable once in u through the iterations; the residual
        carries no gradient. With ``report`` the residual comes with the number of iterations and a flag.

    Memory beyond inputs and outputs: three fields; with gradients one more for every iteration.

    Raises:
        ValueError: a shape, dtype or option does not fit.
    """
    check_displacement("invert", u, name="u")
    if iterations < 0:
        raise ValueError(f"invert: iterations must be at least 0, got {iterations}")
    if not tolerance >= 0:
        raise ValueError(f"invert: tolerance must be at least 0, got {tolerance}")
    chosen = registry.choose("warp", u.device, backend)
    if chosen == "reference":
        v, residual, taken = reference.invert(u, iterations, tolerance)
    else:
        v, residual, taken = _invert(u, iterations, tolerance, chosen)
    return v, Convergence(taken, residual, residual <= tolerance) if report else residual


def _invert(u: Tensor, iterations: int, tolerance: float, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    v = -u
    moved = warp(u, v, padding_mode="border", backend=backend)
    residual = _length(v + moved)
    taken = torch.zeros_like(residual, dtype=torch.int64)
    for _ in range(iterations):
        done = residual <= tolerance
        # Stopping saves time only, as finished items stay as they are; a compiled graph runs all steps.
        if not torch.compiler.is_compiling() and bool(done.all()):
            break
        taken = taken + ~done
        v = torch.where(done.view(-1, *[1] * (u.ndim - 1)), v, -moved)
        moved = warp(u, v, padding_mode="border", backend=backend)
        residual = _length(v + moved)
    return v, residual, taken


def _length(gap: Tensor) -> Tensor:
    """Largest length of a vector in each item of the batch."""
    return gap.detach().square().sum(1).flatten(1).amax(1).sqrt()
