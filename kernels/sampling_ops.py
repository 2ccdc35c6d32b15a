"""The registered ops behind ``grid_sample`` and ``warp``.

Coordinates are either torch's grid (``normalised``) or a displacement in voxels with an optional affine. The
derivatives nest twice: ``sample_double_backward`` is the backward of ``sample_backward``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .backends import registry
from .ops import op


def _wide(*tensors: Tensor) -> torch.dtype:
    """The type that is computed in."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _points(coordinates: Tensor, normalised: bool) -> torch.Size:
    return coordinates.shape[1:-1] if normalised else coordinates.shape[2:]


def _gradient(like: Tensor, want: bool) -> Tensor:
    return like.new_empty(like.shape if want else (0,))


@op("sample_forward")
def sample_forward(
    image: Tensor,
    coordinates: Tensor,
    affine: Tensor | None,
    normalised: bool,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    save: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The values; and with ``save`` (one channel) their derivative, laid out as the coordinates."""
    run = registry.implementation("sample_forward", backend)
    return run(image, coordinates, affine, normalised, mode, padding_mode, align_corners, save)


@sample_forward.register_fake
def _(
    image: Tensor,
    coordinates: Tensor,
    affine: Tensor | None,
    normalised: bool,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    save: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    value = image.new_empty(*image.shape[:2], *_points(coordinates, normalised))
    shape = coordinates.shape if save else (0,)
    return value, coordinates.new_empty(shape, dtype=_wide(image, coordinates))


@op("sample_backward")
def sample_backward(
    grad: Tensor,
    image: Tensor,
    coordinates: Tensor,
    affine: Tensor | None,
    saved: Tensor | None,
    normalised: bool,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    want_image: bool,
    want_coordinates: bool,
    want_affine: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of image, coordinates and affine, empty where not wanted; ``saved`` is the forward's."""
    run = registry.implementation("sample_backward", backend)
    options = (normalised, mode, padding_mode, align_corners)
    return run(grad, image, coordinates, affine, saved, *options, want_image, want_coordinates, want_affine)


@sample_backward.register_fake
def _(
    grad: Tensor,
    image: Tensor,
    coordinates: Tensor,
    affine: Tensor | None,
    saved: Tensor | None,
    normalised: bool,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    want_image: bool,
    want_coordinates: bool,
    want_affine: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        _gradient(image, want_image),
        _gradient(coordinates, want_coordinates),
        _gradient(coordinates if affine is None else affine, want_affine),
    )


@op("sample_double_backward")
def sample_double_backward(
    tangent_image: Tensor | None,
    tangent_coordinates: Tensor | None,
    tangent_affine: Tensor | None,
    grad: Tensor,
    image: Tensor,
    coordinates: Tensor,
    affine: Tensor | None,
    normalised: bool,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    want_grad: bool,
    want_image: bool,
    want_coordinates: bool,
    want_affine: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of grad, image, coordinates and affine from what arrives at the results of the backward."""
    run = registry.implementation("sample_double_backward", backend)
    tangents = (tangent_image, tangent_coordinates, tangent_affine)
    options = (normalised, mode, padding_mode, align_corners)
    wants = (want_grad, want_image, want_coordinates, want_affine)
    return run(*tangents, grad, image, coordinates, affine, *options, *wants)


@sample_double_backward.register_fake
def _(
    tangent_image: Tensor | None,
    tangent_coordinates: Tensor | None,
    tangent_affine: Tensor | None,
    grad: Tensor,
    image: Tensor,
    coordinates: Tensor,
    affine: Tensor | None,
    normalised: bool,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    want_grad: bool,
    want_image: bool,
    want_coordinates: bool,
    want_affine: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        _gradient(grad, want_grad),
        _gradient(image, want_image),
        _gradient(coordinates, want_coordinates),
        _gradient(coordinates if affine is None else affine, want_affine),
    )


def _chosen(gradients: tuple[Tensor, ...], wants: list[bool], length: int) -> tuple[Tensor | None, ...]:
    """What autograd takes back: None for what is not wanted, and for the options."""
    kept = [g if want else None for g, want in zip(gradients, wants, strict=True)]
    return (*kept, *[None] * (length - len(kept)))


def _forward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    image, coordinates, affine, *ctx.options, save, ctx.backend = inputs
    ctx.save_for_backward(image, coordinates, affine, output[1] if save else None)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _forward_grad(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 9
    wants = [bool(want) for want in ctx.needs_input_grad[:3]]
    gradients = sample_backward(grad, *ctx.saved_tensors, *ctx.options, *wants, ctx.backend)
    return _chosen(gradients, wants, 9)


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad, image, coordinates, affine, _, *options, ctx.backend = inputs
    *ctx.options, want_image, want_coordinates, want_affine = options
    ctx.computed = (want_image, want_coordinates, want_affine)
    ctx.save_for_backward(grad, image, coordinates, affine)
    ctx.set_materialize_grads(False)


def _backward_grad(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
    tangents = [t if computed else None for t, computed in zip(arriving, ctx.computed, strict=True)]
    if all(t is None for t in tangents):
        return (None,) * 13
    wants = [bool(want) for want in ctx.needs_input_grad[:4]]
    gradients = sample_double_backward(*tangents, *ctx.saved_tensors, *ctx.options, *wants, ctx.backend)
    return _chosen(gradients, wants, 13)


def _no_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _no_third(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    raise NotImplementedError(
        "grid_sample and warp have first and second derivatives on native backends; for third ones take "
        "backend='reference'"
    )


def _no_second(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    raise NotImplementedError(
        "warp_with_gradient has first derivatives on native backends; for second ones take backend='reference'"
    )


sample_forward.register_autograd(_forward_grad, setup_context=_forward_setup)
sample_backward.register_autograd(_backward_grad, setup_context=_backward_setup)
sample_double_backward.register_autograd(_no_third, setup_context=_no_setup)


@op("warp_with_gradient_forward")
def jet_forward(
    image: Tensor, displacement: Tensor, affine: Tensor | None, padding_mode: str, backend: str
) -> tuple[Tensor, Tensor]:
    run = registry.implementation("warp_with_gradient_forward", backend)
    return run(image, displacement, affine, padding_mode)


@jet_forward.register_fake
def _(
    image: Tensor, displacement: Tensor, affine: Tensor | None, padding_mode: str, backend: str
) -> tuple[Tensor, Tensor]:
    return (
        image.new_empty(*image.shape[:2], *displacement.shape[2:]),
        image.new_empty(*image.shape[:2], *displacement.shape[1:]),
    )


@op("warp_with_gradient_backward")
def jet_backward(
    grad: Tensor,
    grad_gradient: Tensor,
    image: Tensor,
    displacement: Tensor,
    affine: Tensor | None,
    padding_mode: str,
    want_image: bool,
    want_displacement: bool,
    want_affine: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    run = registry.implementation("warp_with_gradient_backward", backend)
    wants = (want_image, want_displacement, want_affine)
    return run(grad, grad_gradient, image, displacement, affine, padding_mode, *wants)


@jet_backward.register_fake
def _(
    grad: Tensor,
    grad_gradient: Tensor,
    image: Tensor,
    displacement: Tensor,
    affine: Tensor | None,
    padding_mode: str,
    want_image: bool,
    want_displacement: bool,
    want_affine: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        _gradient(image, want_image),
        _gradient(displacement, want_displacement),
        _gradient(displacement if affine is None else affine, want_affine),
    )


def _jet_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    image, displacement, affine, ctx.padding_mode, ctx.backend = inputs
    ctx.save_for_backward(image, displacement, affine)


def _jet_grad(ctx: Any, grad: Tensor, grad_gradient: Tensor) -> tuple[Tensor | None, ...]:
    wants = [bool(want) for want in ctx.needs_input_grad[:3]]
    gradients = jet_backward(grad, grad_gradient, *ctx.saved_tensors, ctx.padding_mode, *wants, ctx.backend)
    return _chosen(gradients, wants, 5)


jet_forward.register_autograd(_jet_grad, setup_context=_jet_setup)
jet_backward.register_autograd(_no_second, setup_context=_no_setup)


@op("labels_forward")
def labels_forward(
    labels: Tensor, displacement: Tensor, affine: Tensor | None, mode: str, padding_mode: str, backend: str
) -> Tensor:
    """Labels, or whatever must not be computed with; no derivative."""
    run = registry.implementation("labels_forward", backend)
    return run(labels, displacement, affine, mode, padding_mode)


@labels_forward.register_fake
def _(
    labels: Tensor, displacement: Tensor, affine: Tensor | None, mode: str, padding_mode: str, backend: str
) -> Tensor:
    return labels.new_empty(*labels.shape[:2], *displacement.shape[2:])
