"""What the networks share: convolutions and upsampling in two and three dimensions, a last layer near zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def convolution(ndim: int, channels: int, out: int, size: int = 3, stride: int = 1) -> nn.Module:
    """A convolution that keeps the grid, or with stride 2 makes n voxels (n + 1) // 2."""
    kind = nn.Conv2d if ndim == 2 else nn.Conv3d
    return kind(channels, out, size, stride, size // 2)


def upsample(x: Tensor, size: Sequence[int], how: str) -> Tensor:
    """Twice as many voxels along every axis, cut at the end to ``size``. how: "nearest" or "linear"."""
    if how == "linear":
        mode = "bilinear" if x.ndim == 4 else "trilinear"
        x = functional.interpolate(x, scale_factor=2, mode=mode, align_corners=False)
    else:
        x = functional.interpolate(x, scale_factor=2, mode="nearest")
    for axis, n in enumerate(size, 2):
        x = x.narrow(axis, 0, n)
    return x


def start_near_zero(layer: nn.Module) -> None:
    """Lets a last layer predict displacements near zero at first: normal weights of 1e-5, no bias."""
    nn.init.normal_(layer.weight, std=1e-5)  # type: ignore[arg-type]
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


def channels_last(network: nn.Module) -> None:
    """Weights, and with them the images on their way through, with a voxel's channels side by side.

    A training step of VoxelMorph on a CPU takes two thirds of the time then.
    """
    for parameter in network.parameters():
        if parameter.ndim in (4, 5):
            last = torch.channels_last if parameter.ndim == 4 else torch.channels_last_3d
            parameter.data = parameter.data.contiguous(memory_format=last)
