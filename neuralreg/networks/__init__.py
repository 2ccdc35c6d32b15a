"""Networks that predict a displacement from two images, and how networks of others are called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .transmorph import TransMorph
from .voxelmorph import VoxelMorph

__all__ = ["CALLS", "TransMorph", "VoxelMorph", "predict"]

CALLS = ("pair", "stacked")


def predict(network: nn.Module, fixed: Tensor, moving: Tensor, call: str = "pair") -> Tensor:
    """The displacement (B, ndim, *spatial) in fixed voxels that a network predicts.

    call: "pair" for ``network(moving, fixed)``, as VoxelMorph and the networks here are called; "stacked" for
    ``network(torch.cat([moving, fixed], 1))``, as TransMorph is. What comes back is the displacement, or a pair (warped
    image, displacement), as both of them return; channel k points along tensor axis k, in voxels, added to the
    identity.

    Raises:
        ValueError: an unknown call, or something else came back; the line says what.
    """
    if call not in CALLS:
        raise ValueError(f"call must be one of {', '.join(CALLS)}, got {call!r}")
    output: Any = network(moving, fixed) if call == "pair" else network(torch.cat([moving, fixed], 1))
    if isinstance(output, (tuple, list)) and len(output) == 2:
        output = output[1]
    wanted = (len(fixed), fixed.ndim - 2, *fixed.shape[2:])
    if not isinstance(output, Tensor) or tuple(output.shape) != wanted:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"{type(network).__name__} must return a displacement {wanted}, or a pair (warped, displacement); "
            f"got {found}"
        )
    return output
