"""What NePhi is compared with in memory: a voxel network and a dense field, in plain torch.

The network is a U-Net in the manner of GradICON (Tian et al., CVPR 2023), asked in both directions, with LNCC over all
voxels and inverse consistency of gradients by finite differences on a jittered grid.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

DELTA = 1e-3


class VoxelUNet(nn.Module):
    """(B, 2, *sp) images -> (B, ndim, *sp) displacement in coordinates of [-1, 1]; axes that 2^(levels - 1) divides."""

    def __init__(self, ndim: int = 3, widths: tuple[int, ...] = (16, 32, 64, 128, 256)) -> None:
        super().__init__()
        kind = nn.Conv2d if ndim == 2 else nn.Conv3d
        self.mode = "bilinear" if ndim == 2 else "trilinear"
        self.first = kind(2, widths[0], 3, padding=1)
        steps = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(kind(a, b, 3, 2, 1) for a, b in steps)
        self.up = nn.ModuleList(kind(a + b, a, 3, padding=1) for a, b in reversed(steps))
        self.last = kind(widths[0], ndim, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.leaky_relu(self.first(images))
        levels = [x]
        for down in self.down:
            x = functional.leaky_relu(down(x))
            levels.append(x)
        levels.pop()
        for up in self.up:
            x = functional.interpolate(x, size=levels[-1].shape[2:], mode=self.mode, align_corners=False)
            x = functional.leaky_relu(up(torch.cat([x, levels.pop()], 1)))
        return self.last(x)


def identity(shape: tuple[int, ...]) -> Tensor:
    """(1, ndim, *shape) coordinates of [-1, 1] at the voxels, component k along axis k."""
    axes = [torch.linspace(-1, 1, n) for n in shape]
    return torch.stack(torch.meshgrid(axes, indexing="ij"))[None]


def read(image: Tensor, where: Tensor, padding: str = "zeros") -> Tensor:
    """An image (B, C, *sp) at coordinates (B, ndim, *any)."""
    grid = where.movedim(1, -1).flip(-1)
    return functional.grid_sample(image, grid, padding_mode=padding, align_corners=True)


def dense_lncc(fixed: Tensor, warped: Tensor, window: int = 9, eps: float = 1e-5) -> Tensor:
    """Mean squared local correlation over all voxels (VoxelMorph's formula)."""
    pool = functional.avg_pool2d if fixed.ndim == 4 else functional.avg_pool3d

    def mean(x: Tensor) -> Tensor:
        return pool(x, window, 1, window // 2)

    a, b = mean(fixed), mean(warped)
    cross = mean(fixed * warped) - a * b
    return (cross * cross / ((mean(fixed * fixed) - a * a) * (mean(warped * warped) - b * b) + eps)).mean()


def inverse_consistency(u: Tensor, v: Tensor) -> Tensor:
    """GradICON's term: differences of phi(psi(x)) - x over DELTA, mean squared, x jittered about the voxels."""
    shape = tuple(u.shape[2:])
    x = identity(shape).to(u)
    spacing = u.new_tensor([2 / (n - 1) for n in shape]).view(1, -1, *[1] * len(shape))
    x = x + torch.rand_like(x) * spacing

    def error(x: Tensor) -> Tensor:
        moved = x + read(v, x, "border")
        return moved + read(u, moved, "border") - x

    here = error(x)
    total = u.new_zeros(())
    for axis in range(len(shape)):
        step = torch.zeros_like(spacing)
        step[0, axis] = DELTA
        total = total + ((error(x + step) - here) / DELTA).square().mean()
    return total


def two_way_loss(u: Tensor, v: Tensor, fixed: Tensor, moving: Tensor, weight: float = 1.5) -> Tensor:
    """LNCC in both directions and ``weight`` times the consistency of u with v."""
    x = identity(tuple(fixed.shape[2:])).to(fixed)
    alike = dense_lncc(fixed, read(moving, x + u)) + dense_lncc(moving, read(fixed, x + v))
    return weight * inverse_consistency(u, v) - alike


def network_step(network: VoxelUNet, fixed: Tensor, moving: Tensor) -> Tensor:
    """The loss of one pair, both directions."""
    u = network(torch.cat([fixed, moving], 1))
    v = network(torch.cat([moving, fixed], 1))
    return two_way_loss(u, v, fixed, moving)
