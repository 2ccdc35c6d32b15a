"""What the ops on dense fields share: checks of their arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SCHEMES = ("forward", "backward", "central")


def check_displacement(
    op: str,
    displacement: Tensor,
    spacing: Sequence[float] | None = None,
    scheme: str = "forward",
    vectors: bool = True,
    name: str = "displacement",
) -> list[float]:
    """The spacing as a list of numbers, after checking everything; ``vectors``: one channel an axis.

    Raises:
        ValueError: something does not fit; the message names the op.
    """
    ndim = displacement.ndim - 2
    if ndim not in (2, 3) or (vectors and displacement.shape[1] != ndim):
        channels = "ndim" if vectors else "C"
        raise ValueError(
            f"{op}: {name} must be a displacement (B, {channels}, H, W) or (B, {channels}, D, H, W), "
            f"got {tuple(displacement.shape)}"
        )
    if not displacement.is_floating_point():
        raise ValueError(f"{op}: {name} must be floating point, got {displacement.dtype}")
    if scheme not in SCHEMES:
        raise ValueError(f"{op}: scheme must be one of {SCHEMES}, got {scheme!r}")
    if spacing is None:
        return [1.0] * ndim
    steps = [float(step) for step in spacing]
    if len(steps) != ndim or not all(0 < step < float("inf") for step in steps):
        raise ValueError(f"{op}: spacing must be {ndim} positive numbers, got {tuple(steps)}")
    return steps


def scalar(like: Tensor) -> Tensor:
    """An empty scalar in the dtype of a loss: that of ``like``, at least float32."""
    return like.new_empty((), dtype=torch.promote_types(like.dtype, torch.float32))
