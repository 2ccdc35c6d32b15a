"""Smoothness of dense fields: mean squared first and second differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .backends import registry
from .backends.reference import smoothness as reference
from .lattice import check_displacement, scalar
from .ops import op


@op("diffusion_loss_forward")
def _diffusion_forward(displacement: Tensor, spacing: list[float], backend: str) -> Tensor:
    return registry.implementation("diffusion_loss_forward", backend)(displacement, spacing)


@_diffusion_forward.register_fake
def _(displacement: Tensor, spacing: list[float], backend: str) -> Tensor:
    return scalar(displacement)


@op("diffusion_loss_backward")
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

    Memory beyond inputs and outputs: eight bytes for every 256 rows; cuda: sixteen for every 16 x 8 x 32 voxels.

    Raises:
        ValueError: a shape, dtype or option does not fit.
    """
    steps = check_displacement("diffusion_loss", displacement, spacing, vectors=False)
    chosen = registry.choose("diffusion_loss", displacement.device, backend)
    if chosen == "reference":
        return reference.diffusion_loss(displacement, steps)
    return _diffusion_forward(displacement, steps, chosen)


@op("bending_loss_forward")
def _bending_forward(displacement: Tensor, spacing: list[float], backend: str) -> Tensor:
    return registry.implementation("bending_loss_forward", backend)(displacement, spacing)


@_bending_forward.register_fake
def _(displacement: Tensor, spacing: list[float], backend: str) -> Tensor:
    return scalar(displacement)


@op("bending_loss_backward")
def _bending_backward(grad: Tensor, displacement: Tensor, spacing: list[float], backend: str) -> Tensor:
    return registry.implementation("bending_loss_backward", backend)(grad, displacement, spacing)


@_bending_backward.register_fake
def _(grad: Tensor, displacement: Tensor, spacing: list[float], backend: str) -> Tensor:
    return displacement.new_empty(displacement.shape)


def _bending_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    displacement, *ctx.options = inputs
    ctx.save_for_backward(displacement)


def _bending_grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _bending_backward(grad, *ctx.saved_tensors, *ctx.options), None, None


_bending_forward.register_autograd(_bending_grad, setup_context=_bending_setup)


def bending_loss(
    displacement: Tensor, spacing: Sequence[float] | None = None, *, backend: str | None = None
) -> Tensor:
    """Bending energy: mean squared second differences, mixed ones counted twice (Rueckert et al. 1999).

    Zero for every affine map.

    Args:
        displacement: (B, C, H, W) or (B, C, D, H, W); any number of channels.
        spacing: distance between lattice points along each axis (None: 1).
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        A scalar, the sum over the axes k and l of the mean over batch, channels and places of d_kl^2::

            d_kk = (u[i+1] - 2 u[i] + u[i-1]) / spacing_k^2                    N_k - 2 of them along the axis
            d_kl = (u[i+1, j+1] - u[i+1, j] - u[i, j+1] + u[i, j]) / (spacing_k spacing_l)
                                                                   (N_k - 1) (N_l - 1) of them in the plane

        Differences that an axis is too short for contribute 0. Summed in float64; in the dtype of
        ``displacement``, float32 for half types; 0 for an empty batch. Differentiable once.

    Memory beyond inputs and outputs: eight bytes for every 256 rows; cuda: sixteen for every 16 x 8 x 32 voxels.

    Raises:
        ValueError: a shape, dtype or option does not fit.
    """
    steps = check_displacement("bending_loss", displacement, spacing, vectors=False)
    chosen = registry.choose("bending_loss", displacement.device, backend)
    if chosen == "reference":
        return reference.bending_loss(displacement, steps)
    return _bending_forward(displacement, steps, chosen)
