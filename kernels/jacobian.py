"""Jacobian determinants of dense displacement fields, by differences between lattice neighbours, and penalties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .backends import registry
from .backends.reference import jacobian as reference
from .lattice import check_displacement, scalar
from .ops import op

PENALTIES = ("relu", "unit")


@op("jacobian_determinant_forward")
def _determinant_forward(displacement: Tensor, spacing: list[float], scheme: str, backend: str) -> Tensor:
    return registry.implementation("jacobian_determinant_forward", backend)(displacement, spacing, scheme)


@_determinant_forward.register_fake
def _(displacement: Tensor, spacing: list[float], scheme: str, backend: str) -> Tensor:
    return displacement.new_empty(displacement.shape[0], *displacement.shape[2:])


@op("jacobian_determinant_backward")
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

    Memory beyond inputs and outputs, cpu backend: one row a thread forward, three planes of 18 rows x ndim^2 a
    thread backward; cuda: none.

    Raises:
        ValueError: a shape, dtype or option does not fit.
    """
    steps = check_displacement("jacobian_determinant", displacement, spacing, scheme)
    chosen = registry.choose("jacobian_determinant", displacement.device, backend)
    if chosen == "reference":
        return reference.jacobian_determinant(displacement, steps, scheme)
    return _determinant_forward(displacement, steps, scheme, chosen)


def log_jacobian(
    displacement: Tensor,
    spacing: Sequence[float] | None = None,
    scheme: str = "forward",
    floor: float = 1e-6,
    *,
    backend: str | None = None,
) -> Tensor:
    """Logarithm of the map's Jacobian determinant, log(max(det, floor)).

    A fold has no logarithm: where det <= floor the result is log(floor) and has no gradient. Its standard
    deviation over a mask is SDlogJ; ``neuralreg.metrics.sdlogj`` leaves folds out instead of flooring them.

    Args:
        displacement, spacing, scheme, backend: as in :func:`jacobian_determinant`.
        floor: least determinant, above 0.

    Returns:
        (B, *spatial) in the dtype of ``displacement``; 0 where nothing moves; NaN stays. Differentiable once.

    Memory beyond inputs and outputs: two volumes, the determinant and its clamped copy.

    Raises:
        ValueError: a shape, dtype or option does not fit.
    """
    if not 0 < floor < float("inf"):
        raise ValueError(f"log_jacobian: floor must be a positive number, got {floor}")
    return jacobian_determinant(displacement, spacing, scheme, backend=backend).clamp_min(floor).log()


@op("jacobian_loss_forward")
def _loss_forward(
    displacement: Tensor, spacing: list[float], scheme: str, penalty: str, threshold: float, backend: str
) -> tuple[Tensor, Tensor]:
    run = registry.implementation("jacobian_loss_forward", backend)
    return run(displacement, spacing, scheme, penalty, threshold)


@_loss_forward.register_fake
def _(
    displacement: Tensor, spacing: list[float], scheme: str, penalty: str, threshold: float, backend: str
) -> tuple[Tensor, Tensor]:
    return scalar(displacement), displacement.new_empty((), dtype=torch.int64)


@op("jacobian_loss_backward")
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


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    field, *ctx.options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(field)


def _loss_grad(ctx: Any, grad: Tensor, unused: Tensor) -> tuple[Tensor | None, ...]:
    return _loss_backward(grad, *ctx.saved_tensors, *ctx.options), None, None, None, None, None


_loss_forward.register_autograd(_loss_grad, setup_context=_setup)


def jacobian_loss(
    displacement: Tensor,
    spacing: Sequence[float] | None = None,
    scheme: str = "forward",
    penalty: str = "relu",
    threshold: float = 0.0,
    *,
    return_folds: bool = False,
    backend: str | None = None,
) -> Any:
    """Mean penalty on the determinant of the map's Jacobian; the map itself is never stored.

    Args:
        displacement, spacing, scheme: as in :func:`jacobian_determinant`.
        penalty: "relu": relu(threshold - det), with threshold 0 the folding penalty of NIR; "unit":
            abs(det - 1), which asks for the preservation of volume (IDIR, Wolterink et al. 2022).
        threshold: determinants below it are penalised ("relu" only).
        return_folds: also return the number of lattice points with det <= 0, counted in the same pass.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        A scalar, the mean over batch and lattice, summed in float64; in the dtype of ``displacement``,
        float32 for half types; 0 for an empty batch. Differentiable once. With ``return_folds`` the pair of
        it and the count, an int64 scalar tensor without a gradient; NaN is no fold.

    Memory beyond inputs and outputs, cpu backend: one row a thread forward, three planes of 18 rows x ndim^2 a
    thread backward; cuda: sixteen bytes for every tile of 16 x 8 x 32 voxels.

    Raises:
        ValueError: a shape, dtype or option does not fit; a threshold with "unit".
    """
    steps = check_displacement("jacobian_loss", displacement, spacing, scheme)
    _check_penalty("jacobian_loss", penalty, threshold)
    chosen = registry.choose("jacobian_loss", displacement.device, backend)
    options = (displacement, steps, scheme, penalty, threshold)
    if chosen == "reference":
        value, folds = reference.jacobian_loss(*options)
    else:
        value, folds = _loss_forward(*options, chosen)
    return (value, folds) if return_folds else value


@op("jacobian_penalty_forward")
def _penalty_forward(
    jacobians: Tensor, penalty: str, threshold: float, backend: str
) -> tuple[Tensor, Tensor]:
    return registry.implementation("jacobian_penalty_forward", backend)(jacobians, penalty, threshold)


@_penalty_forward.register_fake
def _(jacobians: Tensor, penalty: str, threshold: float, backend: str) -> tuple[Tensor, Tensor]:
    return scalar(jacobians), jacobians.new_empty((), dtype=torch.int64)


@op("jacobian_penalty_backward")
def _penalty_backward(
    grad: Tensor, jacobians: Tensor, penalty: str, threshold: float, backend: str
) -> Tensor:
    run = registry.implementation("jacobian_penalty_backward", backend)
    return run(grad, jacobians, penalty, threshold)


@_penalty_backward.register_fake
def _(grad: Tensor, jacobians: Tensor, penalty: str, threshold: float, backend: str) -> Tensor:
    return jacobians.new_empty(jacobians.shape)


def _penalty_grad(ctx: Any, grad: Tensor, unused: Tensor) -> tuple[Tensor | None, ...]:
    return _penalty_backward(grad, *ctx.saved_tensors, *ctx.options), None, None, None


_penalty_forward.register_autograd(_penalty_grad, setup_context=_setup)


def jacobian_penalty(
    jacobians: Tensor,
    penalty: str = "relu",
    threshold: float = 0.0,
    *,
    return_folds: bool = False,
    backend: str | None = None,
) -> Any:
    """Mean penalty on det(I + J) for Jacobians of a displacement that are there already.

    The analytic counterpart of :func:`jacobian_loss`: what the jet of a field returns goes in as it is.

    Args:
        jacobians: J (N, ndim, ndim), ndim 2 or 3, J[n, i, k] = du_i / dx_k; the identity is added inside.
        penalty, threshold, return_folds, backend: as in :func:`jacobian_loss`.

    Returns:
        A scalar, the mean over N, summed in float64; in the dtype of ``jacobians``, float32 for half types; 0
        for N = 0. Differentiable once. With ``return_folds`` the pair of it and the number of det <= 0.

    Memory beyond inputs and outputs: sixteen bytes for every 4096 matrices, 1024 on cuda.

    Raises:
        ValueError: a shape, dtype or option does not fit; a threshold with "unit".
    """
    if jacobians.ndim != 3 or jacobians.shape[1] not in (2, 3) or jacobians.shape[1] != jacobians.shape[2]:
        raise ValueError(
            f"jacobian_penalty: jacobians must be (N, 2, 2) or (N, 3, 3), got {tuple(jacobians.shape)}"
        )
    if not jacobians.is_floating_point():
        raise ValueError(f"jacobian_penalty: jacobians must be floating point, got {jacobians.dtype}")
    _check_penalty("jacobian_penalty", penalty, threshold)
    chosen = registry.choose("jacobian_penalty", jacobians.device, backend)
    if chosen == "reference":
        value, folds = reference.jacobian_penalty(jacobians, penalty, threshold)
    else:
        value, folds = _penalty_forward(jacobians, penalty, threshold, chosen)
    return (value, folds) if return_folds else value


def _check_penalty(op: str, penalty: str, threshold: float) -> None:
    if penalty not in PENALTIES:
        raise ValueError(f"{op}: penalty must be one of {PENALTIES}, got {penalty!r}")
    if penalty == "unit" and threshold != 0:
        raise ValueError(f"{op}: penalty 'unit' takes no threshold, got {threshold}")
