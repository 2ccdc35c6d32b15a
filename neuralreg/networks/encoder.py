"""NePhi's encoder: from two images to a global code and a coarse volume of local codes.

Six strided convolutions halve the grid; a head on the coarsest block gives the global code, a branch on an early block
the local ones. Sizes follow the images' shape; nothing assumes the released 175^3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuralreg.errors import InputError

NORMS = ("group", "batch", "none")
GROUP = 8  # channels that GroupNorm normalises together, where they divide evenly
SLOPE = 0.2  # of the leaky rectifiers


class Encoder(nn.Module):
    """(B, 2, *shape) fixed and moving image -> z_g (B, global_code) and z_l (B, local_code, *lattice).

    ``widths``: channels of the strided blocks, one a block. ``local_block`` is the block that the local branch reads,
    from 0; -1 chooses the one whose lattice is nearest NePhi's 16 points an axis (:func:`local_block_of`). A code of
    width 0 has no branch, and its place in the result is None. ``context`` adds coarser blocks, brought up by linear
    interpolation, to what the local branch reads: without it a local code sees only its neighbourhood.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        widths: Sequence[int] = (8, 16, 32, 64, 128, 256),
        global_code: int = 32,
        local_code: int = 32,
        local_block: int = -1,
        head: int = 256,
        norm: str = "group",
        context: bool = False,
    ) -> None:
        super().__init__()
        ndim = len(shape)
        self.shape = tuple(shape)
        self.local_block = local_block_of(shape) if local_block < 0 else local_block
        if not 0 <= self.local_block < len(widths):
            raise ValueError(f"local_block must name one of {len(widths)} blocks, got {local_block}")
        channels = (2, *widths)
        self.blocks = nn.ModuleList(
            block(ndim, below, above, norm, stride=2) for below, above in itertools.pairwise(channels)
        )
        self.head: nn.Module | None = None
        if global_code:
            coarsest = math.prod(halved(shape, len(widths))) * widths[-1]
            self.head = nn.Sequential(
                nn.Linear(coarsest, head), nn.LeakyReLU(SLOPE), nn.Linear(head, global_code)
            )
        self.local: nn.Module | None = None
        self.down = nn.ModuleList()
        if local_code:
            width = widths[self.local_block]
            if context:  # from the coarsest block up: each level is brought to the width of the one below
                self.down.extend(
                    convolution(ndim, above, below, 1)
                    for below, above in zip(
                        widths[self.local_block : -1], widths[self.local_block + 1 :], strict=True
                    )
                )
            self.local = block(ndim, width, local_code, norm, stride=1)

    @property
    def lattice(self) -> tuple[int, ...]:
        """Shape of the volume of local codes."""
        return halved(self.shape, self.local_block + 1)

    def forward(self, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if tuple(images.shape[1:]) != (2, *self.shape):
            raise ValueError(f"the encoder takes (B, 2, {self.shape}) images, got {tuple(images.shape)}")
        levels = []
        for strided in self.blocks:
            images = strided(images)
            levels.append(images)
        code = None if self.head is None else self.head(images.flatten(1))
        if self.local is None:
            return code, None
        kept = levels[self.local_block :]
        found = kept[-1] if len(self.down) else kept[0]
        mode = "bilinear" if len(self.shape) == 2 else "trilinear"
        for level, down in zip(reversed(kept[:-1]), reversed(self.down), strict=False):
            up = functional.interpolate(down(found), size=level.shape[2:], mode=mode, align_corners=True)
            found = level + up
        return code, self.local(found)


def halved(shape: Sequence[int], times: int) -> tuple[int, ...]:
    """The shape behind so many convolutions of stride 2."""
    for _ in range(times):
        shape = [(n + 1) // 2 for n in shape]
    return tuple(shape)


def local_block_of(shape: Sequence[int]) -> int:
    """round(log2(longest axis)) - 5: block 2 at 175^3, whose lattice has 22 points an axis; never before the first."""
    return max(0, round(math.log2(max(shape))) - 5)


def convolution(ndim: int, below: int, above: int, size: int, stride: int = 1) -> nn.Module:
    """A zero-padded convolution in 2-D or 3-D."""
    kind = nn.Conv2d if ndim == 2 else nn.Conv3d
    return kind(below, above, size, stride, size // 2)


def block(ndim: int, below: int, above: int, norm: str, stride: int) -> nn.Module:
    """Convolution of edge 3, normalisation, leaky rectifier."""
    return nn.Sequential(
        convolution(ndim, below, above, 3, stride), normalisation(ndim, above, norm), nn.LeakyReLU(SLOPE)
    )


def normalisation(ndim: int, channels: int, norm: str) -> nn.Module:
    """One of NORMS. Batch statistics are those of all processes, which gloo cannot gather.

    Raises:
        InputError: batch normalisation in a process group over gloo.
    """
    if norm == "group":  # of one pair alone, so that neither the batch nor the processes matter
        return nn.GroupNorm(channels // GROUP if channels % GROUP == 0 else 1, channels)
    if norm == "batch":
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return nn.BatchNorm2d(channels) if ndim == 2 else nn.BatchNorm3d(channels)
        if torch.distributed.get_backend() == "gloo":
            raise InputError(
                "norm=batch needs the statistics of all processes, which gloo does not gather: take norm=group"
            )
        return nn.SyncBatchNorm(channels)
    if norm == "none":
        return nn.Identity()
    raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
