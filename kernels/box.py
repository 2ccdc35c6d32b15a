"""Means over boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .backends import registry
from .backends.reference import box as reference
from .ops import op
from .windows import windows_of


@op("box_mean_forward")
def _forward(image: Tensor, window: list[int], adjoint: bool, backend: str) -> Tensor:
    """The means, or with ``adjoint`` an image's gradient from that of its means: each is the other's derivative."""
    return registry.implementation("box_mean_forward", backend)(image, window, adjoint)


@_forward.register_fake
def _(image: Tensor, window: list[int], adjoint: bool, backend: str) -> Tensor:
    return image.new_empty(image.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *ctx.options = inputs


def _grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    window, adjoint, backend = ctx.options
    return _forward(grad, window, not adjoint, backend), None, None, None


_forward.register_autograd(_grad, setup_context=_setup)


def box_mean(image: Tensor, window: int | Sequence[int] = 5, *, backend: str | None = None) -> Tensor:
    """Mean over the box around every voxel, of the voxels inside the image.

    Along an axis of N voxels the box of voxel i holds max(0, i - (w - 1) // 2) ... min(N - 1, i + w // 2): an even box
    has its additional voxel behind, as LNCC's, and what lies outside does not count. A constant keeps its value.

    Args:
        image: (B, C, H, W) or (B, C, D, H, W), floating point, any strides. Channels count like batch items.
        window: voxels along every axis, or one number an axis; odd or even, from 1. The cost hardly depends on it.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        (B, C, *spatial) in the image's dtype, differentiable as often as wanted (it is linear). Sums are float64, so
        that large offsets are harmless; on the cpu backend a sum below 2^-42 of the largest in its strip of rows counts
        as zero, being within the rounding of running sums. A box that holds a value that is not finite has no finite
        mean, and no other box is touched. Results do not depend on the number of threads.

    Memory beyond inputs and outputs: about a megabyte a thread; contiguous copies where strides are others.

    Raises:
        ValueError: the image's shape or dtype, or the window, does not fit.
    """
    windows = windows_of("box_mean", image, "image", window)
    chosen = registry.choose("box_mean", image.device, backend)
    if chosen == "reference":
        return reference.box_mean(image, windows)
    return _forward(image, windows, False, chosen)
