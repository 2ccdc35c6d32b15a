"""VoxelMorph's U-Net (Balakrishnan et al., IEEE TMI 2019; diffeomorphic: Dalca et al., MedIA 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuralreg import kernels

from .layers import channels_last, convolution, start_near_zero, upsample


class VoxelMorph(nn.Module):
    """Two images in, a displacement out: convolutions of stride 2 down, nearest-neighbour upsampling with skips up.

    Args:
        ndim: axes of the images, 2 or 3.
        encoder: channels of the stages down, each of which halves the grid.
        decoder: channels of the stages up, as many as there are in ``encoder``, then of the convolutions at full
            resolution. The default is the setting of TransMorph's and OFG's comparisons: 274,387 parameters in 3-D.
        diffeomorphic: the last layer predicts a velocity in voxels, which scaling and squaring integrates
            (``kernels.integrate``).
        squarings: of the integration.

    Every shape is taken as it is: an odd grid of n voxels becomes (n + 1) / 2, and on the way up the surplus voxel is
    cut. Grids that are divisible by 2^len(encoder) are treated as VoxelMorph treats them. The last layer starts near
    zero, so that the first prediction is about the identity.

    Raises:
        ValueError: channels or axes that do not fit.
    """

    def __init__(
        self,
        ndim: int = 3,
        encoder: Sequence[int] = (8, 32, 32, 32),
        decoder: Sequence[int] = (32, 32, 32, 32, 32, 8, 8),
        diffeomorphic: bool = False,
        squarings: int = 7,
    ):
        super().__init__()
        if ndim not in (2, 3):
            raise ValueError(f"VoxelMorph: ndim must be 2 or 3, got {ndim}")
        if not encoder or len(decoder) < len(encoder) or min(*encoder, *decoder) < 1 or squarings < 0:
            raise ValueError(
                "VoxelMorph: needs encoder channels, at least as many decoder channels, and squarings >= 0, got "
                f"{tuple(encoder)}, {tuple(decoder)} and {squarings}"
            )
        self.diffeomorphic, self.squarings = diffeomorphic, squarings
        skips = [2, *encoder]
        self.down = nn.ModuleList(convolution(ndim, skips[i], out, stride=2) for i, out in enumerate(encoder))
        channels = encoder[-1]
        self.up = nn.ModuleList()
        for index, out in enumerate(decoder[: len(encoder)]):
            self.up.append(convolution(ndim, channels, out))
            channels = out + skips[-2 - index]
        self.full = nn.ModuleList()
        for out in decoder[len(encoder) :]:
            self.full.append(convolution(ndim, channels, out))
            channels = out
        self.flow = convolution(ndim, channels, ndim)
        start_near_zero(self.flow)
        channels_last(self)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """moving and fixed (B, 1, *spatial) on one grid -> displacement (B, ndim, *spatial) in voxels of ``fixed``."""
        x = torch.cat([moving, fixed], 1)
        skips = [x]
        for layer in self.down:
            x = functional.leaky_relu(layer(x), 0.2)
            skips.append(x)
        skips.pop()
        for layer in self.up:
            skip = skips.pop()
            x = upsample(functional.leaky_relu(layer(x), 0.2), skip.shape[2:], "nearest")
            x = torch.cat([x, skip], 1)
        for layer in self.full:
            x = functional.leaky_relu(layer(x), 0.2)
        flow = self.flow(x)
        return kernels.integrate(flow, self.squarings) if self.diffeomorphic else flow
