"""A compact TransMorph: a Swin encoder with a convolutional decoder (Chen et al., MedIA 2022).

Swin: Liu et al., Swin Transformer: Hierarchical vision transformer using shifted windows, ICCV 2021.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .layers import channels_last, convolution, start_near_zero, upsample


class TransMorph(nn.Module):
    """Two images in, a displacement out.

    Patches of 4 voxels an axis become tokens. Swin stages look at them in windows, each with half as many an axis. The
    decoder upsamples linearly and joins every stage, and convolutions of the images at half and full resolution.

    Args:
        ndim: axes of the images, 2 or 3.
        embedding: channels of the first stage; every further one has twice as many. 96 in the paper.
        depths: blocks of every stage; every second one has its windows shifted by half. (2, 2, 4, 2) in the paper.
        heads: of every stage's attention; they divide its channels. (4, 4, 8, 8) in the paper.
        window: tokens an axis that attend to each other; less where a stage has fewer.
        full_channels: of the convolutions at full resolution, 16 in the paper.

    Every shape is taken: images are padded at the end with zeros to whole patches, and padded tokens are never attended
    to. The last layer starts near zero. The default has about an eightieth of the paper's parameters, for CPUs.

    Raises:
        ValueError: sizes that do not fit.
    """

    def __init__(
        self,
        ndim: int = 3,
        embedding: int = 32,
        depths: Sequence[int] = (2, 2, 2),
        heads: Sequence[int] = (2, 4, 8),
        window: int = 4,
        full_channels: int = 16,
    ):
        super().__init__()
        if ndim not in (2, 3):
            raise ValueError(f"TransMorph: ndim must be 2 or 3, got {ndim}")
        if not depths or len(depths) != len(heads) or min(*depths, *heads, window, full_channels) < 1:
            raise ValueError(
                "TransMorph: needs a depth and a number of heads for every stage, all at least 1, and a window, got "
                f"{tuple(depths)}, {tuple(heads)} and {window}"
            )
        widths = [embedding * 2**stage for stage in range(len(depths))]
        if embedding < 2 or any(width % count for width, count in zip(widths, heads, strict=True)):
            raise ValueError(f"TransMorph: heads {tuple(heads)} must divide the stages' channels {widths}")
        self.embed = (nn.Conv2d if ndim == 2 else nn.Conv3d)(2, embedding, 4, 4)
        self.stages = nn.ModuleList(
            nn.ModuleList(
                SwinBlock(ndim, width, count, window, shifted=bool(index % 2)) for index in range(depth)
            )
            for width, depth, count in zip(widths, depths, heads, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.merges = nn.ModuleList(Merge(ndim, width) for width in widths[:-1])
        half = embedding // 2
        self.at_half = Block(ndim, 2, half)
        self.at_full = Block(ndim, 2, full_channels)
        skips = [*widths[-2::-1], half, full_channels]
        before = [*widths[::-1], half]
        self.up = nn.ModuleList(
            nn.Sequential(Block(ndim, channels + skip, skip), Block(ndim, skip, skip))
            for channels, skip in zip(before, skips, strict=True)
        )
        self.flow = convolution(ndim, full_channels, ndim)
        self.apply(_start)
        start_near_zero(self.flow)
        channels_last(self)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """moving and fixed (B, 1, *spatial) on one grid -> displacement (B, ndim, *spatial) in voxels of ``fixed``."""
        grid = moving.shape[2:]
        x = torch.cat([moving, fixed], 1)
        x = functional.pad(x, [side for n in reversed(grid) for side in (0, -n % 4)])
        pool = functional.avg_pool2d if len(grid) == 2 else functional.avg_pool3d
        skips = [self.at_full(x), self.at_half(pool(x, 2))]
        tokens = self.embed(x).movedim(1, -1)
        for index, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            if index:
                tokens = self.merges[index - 1](tokens)
            for block in stage:  # type: ignore[attr-defined]
                tokens = block(tokens)
            skips.append(norm(tokens).movedim(-1, 1))
        x = skips.pop()
        for join in self.up:
            skip = skips.pop()
            x = join(torch.cat([upsample(x, skip.shape[2:], "linear"), skip], 1))
        for axis, n in enumerate(grid, 2):
            x = x.narrow(axis, 0, n)
        return self.flow(x)


class Block(nn.Module):
    """Convolution, instance norm, leaky ReLU."""

    def __init__(self, ndim: int, channels: int, out: int):
        super().__init__()
        self.conv = convolution(ndim, channels, out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x[0, 0].numel() > 1:  # the statistics of one voxel say nothing
            x = functional.instance_norm(x)
        return functional.leaky_relu(x, 0.01)


class Merge(nn.Module):
    """Every 2^ndim neighbouring tokens (B, *grid, C) become one of 2 C channels; an odd grid is padded at its end."""

    def __init__(self, ndim: int, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(2**ndim * channels)
        self.reduce = nn.Linear(2**ndim * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        ndim = x.ndim - 2
        x = pad_tokens(x, [n % 2 for n in x.shape[1:-1]])
        parts = []
        for corner in itertools.product((0, 1), repeat=ndim):
            every_second = (slice(None), *(slice(first, None, 2) for first in corner))
            parts.append(x[every_second])
        return self.reduce(self.norm(torch.cat(parts, -1)))


class SwinBlock(nn.Module):
    """Attention in windows, then a perceptron of four times the width; each normalises its input and is added to it."""

    def __init__(self, ndim: int, channels: int, heads: int, window: int, shifted: bool):
        super().__init__()
        self.heads, self.window, self.shifted = heads, window, shifted
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.bias = nn.Parameter(0.02 * torch.randn(heads, *[2 * window - 1] * ndim))  # by relative position
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, *grid, C), same shape out."""
        x = x + self.attend(self.norm(x))
        return x + self.mlp(x)

    def attend(self, x: Tensor) -> Tensor:
        batch, grid = len(x), list(x.shape[1:-1])
        window = [min(self.window, n) for n in grid]
        shift = [w // 2 if self.shifted and n > w else 0 for n, w in zip(grid, window, strict=True)]
        padding = [-n % w for n, w in zip(grid, window, strict=True)]
        axes = list(range(1, x.ndim - 1))
        x = pad_tokens(x, padding)
        padded = list(x.shape[1:-1])
        windows = split(x.roll([-s for s in shift], axes), window)  # (B, windows, tokens, C)
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.heads, -1)).flatten(0, 1).movedim(1, 3).unbind(1)
        bias = self.relative_bias(window)[None]  # (1, heads, tokens, tokens)
        if any(shift) or any(padding):
            ids = split(regions(grid, padded, shift, x.device)[None, ..., None], window)[0, ..., 0]
            apart = ids[:, None, :, None] != ids[:, None, None, :]
            bias = bias.masked_fill(apart, float("-inf")).repeat(batch, 1, 1, 1)
        y = functional.scaled_dot_product_attention(q, k, v, bias.to(q.dtype))
        y = self.out(y.movedim(1, 2).flatten(2)).unflatten(0, (batch, -1))
        y = join(y, padded, window).roll(shift, axes)
        inside = (slice(None), *(slice(n) for n in grid))
        return y[inside]

    def relative_bias(self, window: list[int]) -> Tensor:
        """(heads, tokens, tokens): the bias of every two tokens of a window."""
        device = self.bias.device
        places = torch.stack(
            torch.meshgrid(*[torch.arange(w, device=device) for w in window], indexing="ij")
        ).flatten(1)
        offsets = places[:, :, None] - places[:, None, :] + self.window - 1
        index = (slice(None), *offsets)
        return self.bias[index]


def pad_tokens(x: Tensor, more: list[int]) -> Tensor:
    """Zeros behind the end of every axis of (B, *grid, C)."""
    if not any(more):
        return x
    return functional.pad(x, [0, 0, *(side for n in reversed(more) for side in (0, n))])


def split(x: Tensor, window: list[int]) -> Tensor:
    """(B, *grid, C) -> (B, windows, tokens, C)."""
    ndim = len(window)
    for axis, w in enumerate(window):
        x = x.unflatten(1 + 2 * axis, (-1, w))
    order = [0, *range(1, 2 * ndim, 2), *range(2, 2 * ndim + 1, 2), 2 * ndim + 1]
    return x.permute(order).flatten(ndim + 1, 2 * ndim).flatten(1, ndim)


def join(x: Tensor, grid: list[int], window: list[int]) -> Tensor:
    """The inverse of `split`."""
    ndim = len(window)
    counts = [n // w for n, w in zip(grid, window, strict=True)]
    x = x.unflatten(2, window).unflatten(1, counts)
    order = [0, *(axis for k in range(ndim) for axis in (1 + k, 1 + ndim + k)), 2 * ndim + 1]
    return x.permute(order).reshape(len(x), *grid, -1)


def regions(grid: list[int], padded: list[int], shift: list[int], device: torch.device) -> Tensor:
    """(*padded): a number for the tokens, after the roll, that may attend to each other; padded ones are -1."""
    ids = torch.zeros([], dtype=torch.int64, device=device)
    inside = torch.ones([], dtype=torch.bool, device=device)
    for axis, (n, full, s) in enumerate(zip(grid, padded, shift, strict=True)):
        shape = [-1 if k == axis else 1 for k in range(len(grid))]
        rolled = torch.arange(full, device=device).roll(-s)
        wrapped = (
            (torch.arange(full, device=device) >= full - s)
            if s
            else torch.zeros_like(rolled, dtype=torch.bool)
        )
        ids = 2 * ids + wrapped.long().view(shape)
        inside = inside & (rolled < n).view(shape)
    return ids.where(inside, -1)


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
