"""Sampling of images at continuous positions: on torch's grids, and through displacement fields."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .backends import registry
from .backends.reference import sampling as reference

MODES = ("bilinear", "nearest")
PADDING_MODES = ("zeros", "border", "reflection")


@torch.library.custom_op("neuralreg::grid_sample_forward", mutates_args=())
def _grid_forward(
    input: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool, backend: str
) -> Tensor:
    run = registry.implementation("grid_sample_forward", backend)
    return run(input, grid, mode, padding_mode, align_corners)


@_grid_forward.register_fake
def _(input: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool, backend: str) -> Tensor:
    return input.new_empty(*input.shape[:2], *grid.shape[1:-1])


@torch.library.custom_op("neuralreg::grid_sample_backward", mutates_args=())
def _grid_backward(
    grad: Tensor,
    input: Tensor,
    grid: Tensor,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    want_input: bool,
    want_grid: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    run = registry.implementation("grid_sample_backward", backend)
    return run(grad, input, grid, mode, padding_mode, align_corners, want_input, want_grid)


@_grid_backward.register_fake
def _(
    grad: Tensor,
    input: Tensor,
    grid: Tensor,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    want_input: bool,
    want_grid: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return input.new_empty(input.shape if want_input else (0,)), grid.new_empty(
        grid.shape if want_grid else (0,)
    )


def _grid_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, grid, *ctx.options = inputs
    ctx.save_for_backward(input, grid)


def _grid_grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, grid = ctx.saved_tensors
    mode, padding_mode, align_corners, backend = ctx.options
    want_input, want_grid = ctx.needs_input_grad[:2]
    grad_input, grad_grid = _grid_backward(
        grad, input, grid, mode, padding_mode, align_corners, want_input, want_grid, backend
    )
    return grad_input if want_input else None, grad_grid if want_grid else None, None, None, None, None


_grid_forward.register_autograd(_grid_grad, setup_context=_grid_setup)


def grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    *,
    backend: str | None = None,
) -> Tensor:
    """The numbers of ``torch.nn.functional.grid_sample``, gradients included.

    Args:
        input: (B, C, H, W) or (B, C, D, H, W), floating point; fewer than 2^31 voxels a channel.
        grid: (B, *out, ndim), last axis x, y(, z), -1 and 1 at the ends of the image: at the centres of the
            outermost voxels with ``align_corners``, at their outer edges without.
        mode: "bilinear" (linear in 3-D as well) or "nearest" (halves go to the even voxel; no gradient to the
            grid).
        padding_mode: what lies outside: "zeros"; "border", the nearest voxel; "reflection", mirrored at the
            ends (``align_corners`` as above). Clipped coordinates have gradient zero. NaN reads 0 with
            "zeros" and the first voxel otherwise; no coordinate, however large, reads outside the image.
        align_corners: see ``grid``.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        (B, C, *out) in the dtype of ``input``. Differentiable once in input and grid; half types are computed
        in float32. Results do not depend on the number of threads, the gradient of the input included.

    Memory beyond inputs and outputs: a few kilobytes a thread; for the gradient of the input one private
    buffer a thread, as large as the slices along the first axis that a sixteenth of the points reaches.

    Raises:
        ValueError: a shape, dtype or option does not fit.
    """
    _check_options("grid_sample", mode, padding_mode)
    _check_image("grid_sample", "input", input)
    ndim = input.ndim - 2
    if grid.ndim != input.ndim or grid.shape[-1] != ndim or grid.shape[0] != input.shape[0]:
        raise ValueError(
            f"grid_sample: grid must be ({input.shape[0]}, *out, {ndim}) with {ndim} axes in out for input "
            f"{tuple(input.shape)}, got {tuple(grid.shape)}"
        )
    _check_floating("grid_sample", "grid", grid, input)
    chosen = registry.choose("grid_sample", input.device, backend)
    if chosen == "reference":
        return reference.grid_sample(input, grid, mode, padding_mode, align_corners)
    return _grid_forward(input, grid, mode, padding_mode, align_corners, chosen)


@torch.library.custom_op("neuralreg::warp_forward", mutates_args=())
def _warp_forward(
    image: Tensor, displacement: Tensor, affine: Tensor | None, mode: str, padding_mode: str, backend: str
) -> Tensor:
    return registry.implementation("warp_forward", backend)(image, displacement, affine, mode, padding_mode)


@_warp_forward.register_fake
def _(
    image: Tensor, displacement: Tensor, affine: Tensor | None, mode: str, padding_mode: str, backend: str
) -> Tensor:
    return image.new_empty(*image.shape[:2], *displacement.shape[2:])


@torch.library.custom_op("neuralreg::warp_backward", mutates_args=())
def _warp_backward(
    grad: Tensor,
    image: Tensor,
    displacement: Tensor,
    affine: Tensor | None,
    mode: str,
    padding_mode: str,
    want_image: bool,
    want_displacement: bool,
    want_affine: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    run = registry.implementation("warp_backward", backend)
    return run(
        grad, image, displacement, affine, mode, padding_mode, want_image, want_displacement, want_affine
    )


@_warp_backward.register_fake
def _(
    grad: Tensor,
    image: Tensor,
    displacement: Tensor,
    affine: Tensor | None,
    mode: str,
    padding_mode: str,
    want_image: bool,
    want_displacement: bool,
    want_affine: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    like = displacement if affine is None else affine
    return (
        image.new_empty(image.shape if want_image else (0,)),
        displacement.new_empty(displacement.shape if want_displacement else (0,)),
        like.new_empty(like.shape if want_affine else (0,)),
    )


def _warp_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    image, displacement, affine, *ctx.options = inputs
    ctx.save_for_backward(image, displacement, affine)


def _warp_grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    image, displacement, affine = ctx.saved_tensors
    mode, padding_mode, backend = ctx.options
    wants = [bool(want) for want in ctx.needs_input_grad[:3]]
    grads = _warp_backward(grad, image, displacement, affine, mode, padding_mode, *wants, backend)
    return (*(g if want else None for g, want in zip(grads, wants, strict=True)), None, None, None)


_warp_forward.register_autograd(_warp_grad, setup_context=_warp_setup)


def warp(
    image: Tensor,
    displacement: Tensor,
    affine: Tensor | None = None,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    *,
    backend: str | None = None,
) -> Tensor:
    """The image read at A(i + u(i)) for every output voxel i; the identity grid is never built.

    Args:
        image: (B, C, *in), floating point; 2-D or 3-D, fewer than 2^31 voxels a channel.
        displacement: u (B, ndim, *out) in voxels of the output, channel k along tensor axis k. ``out`` may
            differ from ``in``.
        affine: A (B, ndim, ndim + 1), output voxel coordinates -> image voxel coordinates; None is the
            identity.
        mode: "bilinear" (linear in 3-D as well) or "nearest" (halves go to the even voxel; gradient only to
            the image).
        padding_mode: what lies outside the centres of the outermost voxels: "zeros" (the image falls to 0
            within one voxel), "border" (nearest voxel) or "reflection" (mirrored at the centres). Clipped
            coordinates have gradient zero. NaN reads 0 with "zeros" and the first voxel otherwise.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        (B, C, *out) in the image's dtype. Differentiable once in image, displacement and affine; half types
        are computed in float32. Results do not depend on the number of threads.

    Equal to ``grid_sample(..., align_corners=True)`` of the normalised positions (Jaderberg et al. 2015,
    Spatial transformer networks; the displacement convention is VoxelMorph's).

    Memory beyond inputs and outputs: a few kilobytes a thread; for the gradient of the image one private
    buffer a thread, as large as the image slices along the first axis that a sixteenth of the output reaches.

    Raises:
        ValueError: a shape, dtype or option does not fit.
    """
    _check_options("warp", mode, padding_mode)
    _check_image("warp", "image", image)
    ndim = image.ndim - 2
    if displacement.ndim != image.ndim or displacement.shape[:2] != (image.shape[0], ndim):
        raise ValueError(
            f"warp: displacement must be ({image.shape[0]}, {ndim}, *out) with {ndim} axes in out for image "
            f"{tuple(image.shape)}, got {tuple(displacement.shape)}"
        )
    _check_floating("warp", "displacement", displacement, image)
    if affine is not None:
        if affine.shape != (image.shape[0], ndim, ndim + 1):
            raise ValueError(
                f"warp: affine must be {(image.shape[0], ndim, ndim + 1)} for image {tuple(image.shape)}, "
                f"got {tuple(affine.shape)}"
            )
        _check_floating("warp", "affine", affine, image)
    chosen = registry.choose("warp", image.device, backend)
    if chosen == "reference":
        return reference.warp(image, displacement, affine, mode, padding_mode)
    return _warp_forward(image, displacement, affine, mode, padding_mode, chosen)


def _check_options(op: str, mode: str, padding_mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"{op}: mode must be one of {MODES}, got {mode!r}")
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"{op}: padding_mode must be one of {PADDING_MODES}, got {padding_mode!r}")


def _check_image(op: str, name: str, image: Tensor) -> None:
    if image.ndim not in (4, 5):
        raise ValueError(f"{op}: {name} must be (B, C, H, W) or (B, C, D, H, W), got {tuple(image.shape)}")
    if not image.is_floating_point():
        raise ValueError(f"{op}: {name} must be floating point, got {image.dtype}")
    voxels = 1
    for size in image.shape[2:]:
        voxels *= size
    if voxels == 0:
        raise ValueError(f"{op}: {name} has no voxels: {tuple(image.shape)}")
    if voxels >= 2**31:
        raise ValueError(f"{op}: {name} has 2^31 or more voxels a channel: {tuple(image.shape)}; split it")


def _check_floating(op: str, name: str, tensor: Tensor, image: Tensor) -> None:
    if not tensor.is_floating_point():
        raise ValueError(f"{op}: {name} must be floating point, got {tensor.dtype}")
    if tensor.device != image.device:
        raise ValueError(f"{op}: {name} is on {tensor.device}, the image on {image.device}")
