"""triton backend of grid_sample, warp and warp_with_gradient.

Not verified on a GPU. The gradient of the image is scattered by atomics, whose order is not fixed; with
``torch.use_deterministic_algorithms(True)`` whole numbers are summed instead, whose sum has no order: units of 2^-62
of what all points together can add up to at most, so float32 loses nothing, and float64 keeps some 13 digits of the
largest voxel at 10^6 points. A gradient that arrives not finite makes the whole image's gradient NaN there.
Everything else is gathered and always the same.

Memory beyond inputs and outputs: copies of inputs that are not contiguous; the gradient of an image of a half type in
float32, and in deterministic mode 8 bytes a voxel; the affine's gradient in float64 for every block of TILE points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .triton_lattice_access import TILE, computed_in, in_triton, is_wide, three
from .triton_plan import on_device, parts
from .triton_sampling_kernels import sample_backward_kernel, sample_forward_kernel


class Walk(NamedTuple):
    """How programs go over the output points, and what the kernels have to know."""

    blocks: int
    items: int
    sizes: tuple[int, ...]
    constants: dict[str, Any]

    @property
    def grid(self) -> tuple[int]:
        return (self.blocks * self.items,)


def walk(
    image: Tensor,
    coordinates: Tensor,
    affine: Tensor | None,
    normalised: bool,
    padding_mode: str,
    align_corners: bool,
    tile: int | None = None,
) -> Walk:
    ndim = image.ndim - 2
    tile = TILE if tile is None else tile
    out = points_of(coordinates, normalised)
    points, (_, m1, m2) = math.prod(out), three(out)
    constants = {
        "D": ndim,
        "NORMALISED": normalised,
        "PADDING": padding_mode,
        "ALIGN": align_corners,
        "AFFINE": affine is not None,
        "BP": tile,
        "WIDE": is_wide(ndim * points),
    }
    blocks = parts(points, tile)
    sizes = (blocks, points, m1, m2, *three(image.shape[2:]), image.shape[1])
    return Walk(blocks, image.shape[0], sizes, constants)


def points_of(coordinates: Tensor, normalised: bool) -> torch.Size:
    return coordinates.shape[1:-1] if normalised else coordinates.shape[2:]


def fill_samples(
    image: Tensor,
    coordinates: Tensor,
    affine: Tensor | None,
    normalised: bool,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    out: Tensor,
    slopes: Tensor | None,
) -> None:
    """Fills `out` and `slopes`."""
    if out.numel() == 0:
        return
    image, coordinates = image.contiguous(), coordinates.contiguous()
    matrix = image if affine is None else affine.contiguous()
    plan = walk(image, coordinates, affine, normalised, padding_mode, align_corners)
    with on_device(image):
        sample_forward_kernel[plan.grid](
            *(image, coordinates, matrix, out, out if slopes is None else slopes, *plan.sizes),
            NEAREST=mode == "nearest",
            SLOPES=slopes is not None,
            ACC=in_triton(computed_in(image, coordinates)),
            **plan.constants,
        )


def sample_forward(
    image: Tensor,
    coordinates: Tensor,
    affine: Tensor | None,
    normalised: bool,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    shape = [*image.shape[:2], *points_of(coordinates, normalised)]
    out = torch.empty(shape, dtype=image.dtype, device=image.device)
    kept = coordinates.shape if save else (0,)
    saved = torch.empty(kept, dtype=computed_in(image, coordinates), device=image.device)
    options = (normalised, mode, padding_mode, align_corners)
    fill_samples(image, coordinates, affine, *options, out, saved if save else None)
    return out, saved


class Scatter:
    """Where the gradient of an image is collected; `bound` is the most that all points can add up to."""

    def __init__(self, image: Tensor, dtype: torch.dtype, bound: Callable[[], Tensor]) -> None:
        self.fixed = torch.are_deterministic_algorithms_enabled()
        kind = torch.int64 if self.fixed else dtype
        self.target = self.scale = torch.zeros(image.shape, dtype=kind, device=image.device)
        if self.fixed:
            most = bound()
            self.scale = torch.where(most.isfinite(), 2.0**62 / most.clamp(min=1e-280), math.nan)

    def result(self, dtype: torch.dtype) -> Tensor:
        return (self.target.double() / self.scale).to(dtype) if self.fixed else self.target.to(dtype)


def largest(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, math.inf).double()


def _gradients(
    grad: Tensor,
    grad_slopes: Tensor | None,
    image: Tensor,
    coordinates: Tensor,
    affine: Tensor | None,
    normalised: bool,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    want_image: bool,
    want_coordinates: bool,
    want_affine: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of image, coordinates and affine, empty where not wanted."""
    like = coordinates if affine is None else affine
    dtype, ndim = computed_in(image, coordinates), image.ndim - 2
    unmoved = mode == "nearest" or grad.numel() == 0  # then nobody writes the gradient of the coordinates
    with on_device(image):
        grad, image, coordinates = grad.contiguous(), image.contiguous(), coordinates.contiguous()
        slopes = grad if grad_slopes is None else grad_slopes.contiguous()
        matrix = image if affine is None else affine.contiguous()
        to_coordinates = (torch.zeros if unmoved else torch.empty)(
            coordinates.shape if want_coordinates else (0,), dtype=coordinates.dtype, device=image.device
        )
        plan = walk(image, coordinates, affine, normalised, padding_mode, align_corners)
        want_affine = want_affine and affine is not None
        entries = ndim * (ndim + 1) if want_affine and not unmoved else 0
        partial = torch.empty(plan.items, plan.blocks, entries, dtype=torch.float64, device=image.device)

        def bound() -> Tensor:
            """A point's corners have weights that sum to 1, and slopes of at most 1 along every axis."""
            if grad.numel() == 0:
                return torch.ones((), dtype=torch.float64, device=image.device)
            one = largest(grad)
            if grad_slopes is not None:
                turn = 1.0 if affine is None else ndim * largest(affine)
                one = one + ndim * turn * largest(slopes)
            return one * math.prod(points_of(coordinates, normalised))

        scatter = Scatter(image, dtype, bound) if want_image else None
        if grad.numel() and (scatter is not None or not unmoved):
            sample_backward_kernel[plan.grid](
                *(grad, slopes, image, coordinates, matrix, image if scatter is None else scatter.target),
                *(to_coordinates, partial, image if scatter is None else scatter.scale, *plan.sizes),
                NEAREST=mode == "nearest",
                SLOPES=grad_slopes is not None,
                WANT_IMAGE=scatter is not None,
                WANT_COORDINATES=want_coordinates,
                WANT_AFFINE=want_affine,
                FIXED=scatter is not None and scatter.fixed,
                ACC=in_triton(dtype),
                **plan.constants,
            )
        to_image = image.new_empty(0) if scatter is None else scatter.result(image.dtype)
        if not want_affine:
            return to_image, to_coordinates, like.new_empty(0)
        if unmoved:
            return to_image, to_coordinates, torch.zeros_like(like)
        return to_image, to_coordinates, partial.sum(1).view(like.shape).to(like.dtype)


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
) -> tuple[Tensor, Tensor, Tensor]:
    options = (normalised, mode, padding_mode, align_corners)
    if saved is None:
        wants = (want_image, want_coordinates, want_affine)
        return _gradients(grad, None, image, coordinates, affine, *options, *wants)
    # One channel: its derivative lies there as the coordinates do.
    upstream = grad.to(saved.dtype)
    upstream = upstream.squeeze(1).unsqueeze(-1) if normalised else upstream
    like = coordinates if affine is None else affine
    return image.new_empty(0), (saved * upstream).to(coordinates.dtype), like.new_empty(0)


def warp_with_gradient_forward(
    image: Tensor, displacement: Tensor, affine: Tensor | None, padding_mode: str
) -> tuple[Tensor, Tensor]:
    out = image.new_empty([*image.shape[:2], *displacement.shape[2:]])
    gradient = image.new_empty([*image.shape[:2], *displacement.shape[1:]])
    fill_samples(image, displacement, affine, False, "bilinear", padding_mode, True, out, gradient)
    return out, gradient


def warp_with_gradient_backward(
    grad: Tensor,
    grad_gradient: Tensor,
    image: Tensor,
    displacement: Tensor,
    affine: Tensor | None,
    padding_mode: str,
    want_image: bool,
    want_displacement: bool,
    want_affine: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    options = (False, "bilinear", padding_mode, True, want_image, want_displacement, want_affine)
    return _gradients(grad, grad_gradient, image, displacement, affine, *options)
