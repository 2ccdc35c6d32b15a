"""Regularity of dense displacement fields by differences between lattice neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .backends import registry
from .backends.reference import jacobian as reference

SCHEMES = ("forward", "backward", "central")
PENALTIES = ("relu", "unit")


@torch.library.custom_op("neuralreg::jacobian_determinant_forward", mutates_args=())
def _determinant_forward(displacement: Tensor, spacing: list[float], scheme: str, backend: str) -> Tensor:
    return registry.implementation("jacobian_determinant_forward", backend)(displacement, spacing, scheme)


@_determinant_forward.register_fake
def _(displacement: Tensor, spacing: list[float], scheme: str, backend: str) -> Tensor:
    return displacement.new_empty(displacement.shape[0], *displacement.shape[2:])


@torch.library.custom_op("neuralreg::jacobian_determinant_backward", mutates_args=())
def _determinant_backward(
    grad: Tensor, displacement: Tensor, spacing: list[float], scheme: str, backend: str
) -> Tensor:
    run = registry.implementation("jacobian_determinant_backward", backend)
    return run(grad, displacement, spacing, scheme)


@_determinant_backward.register_fake
def _(grad: Tensor, displacement: Tensor, spacing: list[float], scheme: str, backend: str) -> Tensor:
    return displacement.new_empty(displacement.shape)


def _determinant_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    displacement, *ctx.options = inputs
    ctx.save_for_backward(displacement)


def _determinant_grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _determinant_backward(grad, *ctx.saved_tensors, *ctx.options), None, None, None


_determinant_forward.register_autograd(_determinant_grad, setup_context=_determinant_setup)


def jacobian_determinant(
    displacement: Tensor,
    spacing: Sequence[float] | None = None,
    scheme: str = "forward",
    *,
    backend: str | None = None,
) -> Tensor:
    """Determinant of the Jacobian of x -> x + u(x): det(I + J), J[c, k] = du_c / dx_k.

    Args:
        displacement: u (B, ndim, H, W) or (B, ndim, D, H, W), channel k along tensor axis k.
        spacing: distance between lattice points along each axis, in the displacement's own units (None: 1,
            the displacement is in voxels).
        scheme: "forward" u[i+1] - u[i], "backward" u[i] - u[i-1], "central" their mean. Where the neighbour
            does not exist the one-sided difference that does is taken; an axis of one voxel has derivative 0.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        (B, *spatial) in the dtype of ``displacement``; 1 where nothing moves, at most 0 where the map folds.
        Differentiable once; half types are computed in float32.

    Memory beyond inputs and outputs: one row a thread forward, three planes of 18 rows x ndim^2 a thread
    backward.

    Raises:
        ValueError: a shape, dtype or option does not fit.
    """
    steps = _check("jacobian_determinant", displacement, spacing, scheme)
    chosen = registry.choose("jacobian_determinant", displacement.device, backend)
    if chosen == "reference":
        return reference.jacobian_determinant(displacement, steps, scheme)
    return _determinant_forward(displacement, steps, scheme, chosen)


@torch.library.custom_op("neuralreg::jacobian_loss_forward", mutates_args=())
def _loss_forward(
    displacement: Tensor, spacing: list[float], scheme: str, penalty: str, threshold: float, backend: str
) -> Tensor:
    run = registry.implementation("jacobian_loss_forward", backend)
    return run(displacement, spacing, scheme, penalty, threshold)


@_loss_forward.register_fake
def _(
    displacement: Tensor, spacing: list[float], scheme: str, penalty: str, threshold: float, backend: str
) -> Tensor:
    return _scalar(displacement)


@torch.library.custom_op("neuralreg::jacobian_loss_backward", mutates_args=())
def _loss_backward(
    grad: Tensor,
    displacement: Tensor,
    spacing: list[float],
    scheme: str,
    penalty: str,
    threshold: float,
    backend: str,
) -> Tensor:
    run = registry.implementation("jacobian_loss_backward", backend)
    return run(grad, displacement, spacing, scheme, penalty, threshold)


@_loss_backward.register_fake
def _(
    grad: Tensor,
    displacement: Tensor,
    spacing: list[float],
    scheme: str,
    penalty: str,
    threshold: float,
    backend: str,
) -> Tensor:
    return displacement.new_empty(displacement.shape)


def _loss_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    displacement, *ctx.options = inputs
    ctx.save_for_backward(displacement)


def _loss_grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _loss_backward(grad, *ctx.saved_tensors, *ctx.options), None, None, None, None, None


_loss_forward.register_autograd(_loss_grad, setup_context=_loss_setup)


def jacobian_loss(
    displacement: Tensor,
    spacing: Sequence[float] | None = None,
    scheme: str = "forward",
    penalty: str = "relu",
    threshold: float = 0.0,
    *,
    backend: str | None = None,
) -> Tensor:
    """Mean penalty on the determinant of the map's Jacobian; the map itself is never stored.

    Args:
        displacement, spacing, scheme: as in :func:`jacobian_determinant`.
        penalty: "relu": relu(threshold - det), with threshold 0 the folding penalty of NIR; "unit":
            abs(det - 1), which asks for the preservation of volume (IDIR, Wolterink et al. 2022).
        threshold: determinants below it are penalised ("relu" only).
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        A scalar, the mean over batch and lattice, summed in float64; in the dtype of ``displacement``,
        float32 for half types; 0 for an empty batch. Differentiable once.

    Memory beyond inputs and outputs: one row a thread forward, three planes of 18 rows x ndim^2 a thread
    backward.

    Raises:
        ValueError: a shape, dtype or option does not fit; a threshold with "unit".
    """
    steps = _check("jacobian_loss", displacement, spacing, scheme)
    if penalty not in PENALTIES:
        raise ValueError(f"jacobian_loss: penalty must be one of {PENALTIES}, got {penalty!r}")
    if penalty == "unit" and threshold != 0:
        raise ValueError(f"jacobian_loss: penalty 'unit' takes no threshold, got {threshold}")
    chosen = registry.choose("jacobian_loss", displacement.device, backend)
    if chosen == "reference":
        return reference.jacobian_loss(displacement, steps, scheme, penalty, threshold)
    return _loss_forward(displacement, steps, scheme, penalty, threshold, chosen)


@torch.library.custom_op("neuralreg::diffusion_loss_forward", mutates_args=())
def _diffusion_forward(displacement: Tensor, spacing: list[float], backend: str) -> Tensor:
    return registry.implementation("diffusion_loss_forward", backend)(displacement, spacing)


@_diffusion_forward.register_fake
def _(displacement: Tensor, spacing: list[float], backend: str) -> Tensor:
    return _scalar(displacement)


@torch.library.custom_op("neuralreg::diffusion_loss_backward", mutates_args=())
def _diffusion_backward(grad: Tensor, displacement: Tensor, spacing: list[float], backend: str) -> Tensor:
    return registry.implementation("diffusion_loss_backward", backend)(grad, displacement, spacing)


@_diffusion_backward.register_fake
def _(grad: Tensor, displacement: Tensor, spacing: list[float], backend: str) -> Tensor:
    return displacement.new_empty(displacement.shape)


def _diffusion_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    displacement, *ctx.options = inputs
    ctx.save_for_backward(displacement)


def _diffusion_grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _diffusion_backward(grad, *ctx.saved_tensors, *ctx.options), None, None


_diffusion_forward.register_autograd(_diffusion_grad, setup_context=_diffusion_setup)


def diffusion_loss(
    displacement: Tensor, spacing: Sequence[float] | None = None, *, backend: str | None = None
) -> Tensor:
    """Mean squared forward difference, averaged over the axes: VoxelMorph's Grad with penalty l2.

    Args:
        displacement: (B, C, H, W) or (B, C, D, H, W); any number of channels.
        spacing: distance between lattice points along each axis (None: 1).
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        A scalar: for axis k the mean over batch, channels and its N_k - 1 differences of
        ((u[i+1] - u[i]) / spacing_k)^2, averaged over the axes; an axis of one voxel contributes 0. Summed in
        float64; in the dtype of ``displacement``, float32 for half types; 0 for an empty batch.
        Differentiable once.

    Memory beyond inputs and outputs: eight bytes for every 256 rows.

    Raises:
        ValueError: a shape, dtype or option does not fit.
    """
    steps = _check("diffusion_loss", displacement, spacing, "forward", vectors=False)
    chosen = registry.choose("diffusion_loss", displacement.device, backend)
    if chosen == "reference":
        return reference.diffusion_loss(displacement, steps)
    return _diffusion_forward(displacement, steps, chosen)


def _scalar(like: Tensor) -> Tensor:
    return like.new_empty((), dtype=torch.promote_types(like.dtype, torch.float32))


def _check(
    op: str, displacement: Tensor, spacing: Sequence[float] | None, scheme: str, vectors: bool = True
) -> list[float]:
    """The spacing as a list of numbers, after checking everything."""
    ndim = displacement.ndim - 2
    if ndim not in (2, 3) or (vectors and displacement.shape[1] != ndim):
        channels = "ndim" if vectors else "C"
        raise ValueError(
            f"{op}: displacement must be (B, {channels}, H, W) or (B, {channels}, D, H, W), "
            f"got {tuple(displacement.shape)}"
        )
    if not displacement.is_floating_point():
        raise ValueError(f"{op}: displacement must be floating point, got {displacement.dtype}")
    if scheme not in SCHEMES:
        raise ValueError(f"{op}: scheme must be one of {SCHEMES}, got {scheme!r}")
    if spacing is None:
        return [1.0] * ndim
    steps = [float(step) for step in spacing]
    if len(steps) != ndim or not all(0 < step < float("inf") for step in steps):
        raise ValueError(f"{op}: spacing must be {ndim} positive numbers, got {tuple(steps)}")
    return steps
