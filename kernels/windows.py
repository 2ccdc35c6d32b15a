"""What ops on local windows share: their arguments, checked, and the shape of the maps of two images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

PADDINGS = ("same", "valid")
REDUCTIONS = ("mean", "none")

# With recompute=None what the backward pass needs is saved up to this size, and computed again above it.
SAVED_BYTES = 512 * 2**20


def map_shape(images: Tensor, window: list[int], padding: str) -> list[int]:
    """Shape of the map of windows over images (B, C, *spatial)."""
    sizes = list(images.shape[2:])
    if padding == "valid":
        sizes = [size - w + 1 for size, w in zip(sizes, window, strict=True)]
    return [*images.shape[:2], *sizes]


def windows_of(op: str, image: Tensor, name: str, window: int | Sequence[int]) -> list[int]:
    """The window as one number an axis, after checking it and that ``image``, called ``name``, is an image.

    Raises:
        ValueError: its shape or dtype, or the window, does not fit; the line begins with ``op``.
    """
    ndim = image.ndim - 2
    if ndim not in (2, 3):
        raise ValueError(f"{op}: {name} must be (B, C, H, W) or (B, C, D, H, W), got {tuple(image.shape)}")
    if not image.is_floating_point():
        raise ValueError(f"{op}: {name} must be floating point, got {image.dtype}")
    windows = [window] * ndim if isinstance(window, int) else [int(w) for w in window]
    if len(windows) != ndim or min(windows) < 1:
        raise ValueError(f"{op}: window must be one or {ndim} numbers from 1, got {window}")
    return windows


def check_windows(
    op: str, fixed: Tensor, warped: Tensor, window: int | Sequence[int], padding: str, reduction: str
) -> list[int]:
    """The window as one number an axis, after checking it and the images.

    Raises:
        ValueError: a shape, dtype or option does not fit; the line begins with ``op``.
    """
    windows = windows_of(op, fixed, "fixed", window)
    if warped.shape != fixed.shape:
        raise ValueError(
            f"{op}: the images must share one shape, got {tuple(fixed.shape)} and {tuple(warped.shape)}"
        )
    if warped.dtype != fixed.dtype or warped.device != fixed.device:
        raise ValueError(
            f"{op}: the images must share dtype and device, got {fixed.dtype} on {fixed.device} and "
            f"{warped.dtype} on {warped.device}"
        )
    for name, value, known in (("padding", padding, PADDINGS), ("reduction", reduction, REDUCTIONS)):
        if value not in known:
            raise ValueError(f"{op}: {name} must be one of {known}, got {value!r}")
    if padding == "valid" and any(w > n for w, n in zip(windows, fixed.shape[2:], strict=True)):
        raise ValueError(
            f"{op}: a window of {tuple(windows)} voxels is larger than the volume {tuple(fixed.shape[2:])}; "
            "take a smaller window or padding 'same'"
        )
    return windows
