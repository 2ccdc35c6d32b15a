"""Sampling of images at continuous positions: on torch's grids, and through displacement fields."""

from __future__ import annotations

import torch
from torch import Tensor

from . import sampling_ops as ops
from .backends import registry
from .backends.reference import sampling as reference

PADDING_MODES = ("zeros", "border", "reflection")
LABEL_TYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

# Whether the forward pass saves the derivative with respect to the coordinates where nothing else wants a
# gradient, so that the backward pass is a product. bench/kernels/sampling.py measures both: scattered points gain
# a third, as they miss the cache once instead of twice; a dense displacement gains less than a tenth, which is not
# worth holding another field.
SAVES = {"grid_sample": True, "warp": False}


def grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    *,
    backend: str | None = None,
) -> Tensor:
    """The numbers of ``torch.nn.functional.grid_sample``, gradients included, and second derivatives.

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
        (B, C, *out) in the dtype of ``input``. Differentiable twice in input and grid, without limit with
        backend="reference". Half types are computed in float32 and rounded once; a half image is read as it
        is. Results do not depend on the number of threads, the gradient of the input included; only on CUDA its
        sums depend on the order in which they come, unless torch's deterministic algorithms are on.

    Memory beyond inputs and outputs: copies of inputs that are not contiguous; results and gradients of half
    inputs once in float32, and for second derivatives the inputs too; a few kilobytes a thread. Where only the
    grid wants a gradient and C is 1, the forward pass keeps the derivative for the backward pass: as much as the
    grid. For the gradient of the input one private buffer a thread, as large as the slices along the first axis
    that a sixteenth of the points reaches; on CUDA none, or with deterministic algorithms 8 bytes an element.

    Raises:
        ValueError: a shape, dtype or option does not fit.
        NotImplementedError: a third derivative on a native backend.
    """
    _check_options("grid_sample", mode, ("bilinear", "nearest"), padding_mode)
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
    save = _saves("grid_sample", input, grid, None, mode)
    return ops.sample_forward(input, grid, None, True, mode, padding_mode, align_corners, save, chosen)[0]


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
        image: (B, C, *in); 2-D or 3-D, fewer than 2^31 voxels a channel. Floating point; for "nearest" and
            "label" also bool and integers, which are copied and never computed with.
        displacement: u (B, ndim, *out) in voxels of the output, channel k along tensor axis k. ``out`` may
            differ from ``in``.
        affine: A (B, ndim, ndim + 1), output voxel coordinates -> image voxel coordinates; None is the
            identity.
        mode: "bilinear" (linear in 3-D as well); "nearest" (halves go to the even voxel; gradient only to the
            image); or "label", an interpolated vote: every corner of the cell votes for its label with its
            weight, the largest sum wins, the smallest label where several are equal. No gradient for labels.
        padding_mode: what lies outside the centres of the outermost voxels: "zeros" (the image falls to 0
            within one voxel; label 0), "border" (nearest voxel) or "reflection" (mirrored at the centres).
            Clipped coordinates have gradient zero. NaN reads 0 with "zeros" and the first voxel otherwise.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        (B, C, *out) in the image's dtype. Differentiable twice in image, displacement and affine, without limit
        with backend="reference". Half types are computed in float32 and rounded once; a half image is read as
        it is. Results do not depend on the number of threads; on CUDA as for :func:`grid_sample`.

    Equal to ``grid_sample(..., align_corners=True)`` of the normalised positions (Jaderberg et al. 2015,
    Spatial transformer networks; the displacement convention is VoxelMorph's).

    Memory beyond inputs and outputs: copies of inputs that are not contiguous; results and gradients of half
    inputs once in float32, and for second derivatives the inputs too; a few kilobytes a thread. The backward
    pass reads the image again: nothing but the inputs is kept for it. For the gradient of the image one private
    buffer a thread, as large as the image slices along the first axis that a sixteenth of the output reaches; on
    CUDA none, or with deterministic algorithms 8 bytes an element.

    Raises:
        ValueError: a shape, dtype or option does not fit.
        NotImplementedError: a third derivative on a native backend.
    """
    _check_options("warp", mode, ("bilinear", "nearest", "label"), padding_mode)
    _check_image("warp", "image", image, labels=mode != "bilinear")
    _check_map("warp", image, displacement, affine)
    chosen = registry.choose("warp", image.device, backend)
    if mode == "label" or not image.is_floating_point():
        image, displacement = image.detach(), displacement.detach()
        affine = None if affine is None else affine.detach()
        if chosen == "reference":
            return reference.warp_labels(image, displacement, affine, mode, padding_mode)
        return ops.labels_forward(image, displacement, affine, mode, padding_mode, chosen)
    if chosen == "reference":
        return reference.warp(image, displacement, affine, mode, padding_mode)
    save = _saves("warp", image, displacement, affine, mode)
    return ops.sample_forward(image, displacement, affine, False, mode, padding_mode, True, save, chosen)[0]


def warp_with_gradient(
    image: Tensor,
    displacement: Tensor,
    affine: Tensor | None = None,
    padding_mode: str = "zeros",
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``warp(image, displacement, affine)`` and its derivative with respect to the displacement, in one pass.

    Args:
        image, displacement, affine, padding_mode, backend: as for :func:`warp` with mode "bilinear".

    Returns:
        warped (B, C, *out) and gradient (B, C, ndim, *out), both in the image's dtype:
        gradient[:, :, k] = d warped / d displacement[:, k], per voxel. Both are differentiable once in image,
        displacement and affine (inside a cell the pure second derivatives are 0), without limit with
        backend="reference".

    Memory beyond inputs and outputs: as for :func:`warp`.

    Raises:
        ValueError: a shape, dtype or option does not fit.
        NotImplementedError: a second derivative on a native backend.
    """
    _check_options("warp_with_gradient", "bilinear", ("bilinear",), padding_mode)
    _check_image("warp_with_gradient", "image", image)
    _check_map("warp_with_gradient", image, displacement, affine)
    chosen = registry.choose("warp_with_gradient", image.device, backend)
    if chosen == "reference":
        return reference.warp_with_gradient(image, displacement, affine, padding_mode)
    return ops.jet_forward(image, displacement, affine, padding_mode, chosen)


def _saves(op: str, image: Tensor, coordinates: Tensor, affine: Tensor | None, mode: str) -> bool:
    alone = coordinates.requires_grad and not (
        image.requires_grad or (affine is not None and affine.requires_grad)
    )
    return SAVES[op] and alone and torch.is_grad_enabled() and image.shape[1] == 1 and mode == "bilinear"


def _check_options(op: str, mode: str, modes: tuple[str, ...], padding_mode: str) -> None:
    if mode not in modes:
        raise ValueError(f"{op}: mode must be one of {modes}, got {mode!r}")
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"{op}: padding_mode must be one of {PADDING_MODES}, got {padding_mode!r}")


def _check_image(op: str, name: str, image: Tensor, labels: bool = False) -> None:
    if image.ndim not in (4, 5):
        raise ValueError(f"{op}: {name} must be (B, C, H, W) or (B, C, D, H, W), got {tuple(image.shape)}")
    if not image.is_floating_point() and not (labels and image.dtype in LABEL_TYPES):
        what = "floating point, bool or an integer up to int64" if labels else "floating point"
        raise ValueError(f"{op}: {name} must be {what}, got {image.dtype}")
    voxels = 1
    for size in image.shape[2:]:
        voxels *= size
    if voxels == 0:
        raise ValueError(f"{op}: {name} has no voxels: {tuple(image.shape)}")
    if voxels >= 2**31:
        raise ValueError(f"{op}: {name} has 2^31 or more voxels a channel: {tuple(image.shape)}; split it")


def _check_map(op: str, image: Tensor, displacement: Tensor, affine: Tensor | None) -> None:
    ndim = image.ndim - 2
    if displacement.ndim != image.ndim or displacement.shape[:2] != (image.shape[0], ndim):
        raise ValueError(
            f"{op}: displacement must be ({image.shape[0]}, {ndim}, *out) with {ndim} axes in out for image "
            f"{tuple(image.shape)}, got {tuple(displacement.shape)}"
        )
    _check_floating(op, "displacement", displacement, image)
    if affine is not None:
        if affine.shape != (image.shape[0], ndim, ndim + 1):
            raise ValueError(
                f"{op}: affine must be {(image.shape[0], ndim, ndim + 1)} for image {tuple(image.shape)}, "
                f"got {tuple(affine.shape)}"
            )
        _check_floating(op, "affine", affine, image)


def _check_floating(op: str, name: str, tensor: Tensor, image: Tensor) -> None:
    if not tensor.is_floating_point():
        raise ValueError(f"{op}: {name} must be floating point, got {tensor.dtype}")
    if tensor.device != image.device:
        raise ValueError(f"{op}: {name} is on {tensor.device}, the image on {image.device}")
