"""A small NePhi, its pairs and its maps: what the tests of the method share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from neuralreg.fields import GatedSiren
from neuralreg.methods.nephi import NePhiTrainee
from neuralreg.methods.nephi_options import Options
from neuralreg.two_way import CodedMap

SMALL = Options(
    widths=(4, 8, 8),
    global_code=4,
    local_code=3,
    local_block=0,
    head=8,
    frequencies=4,
    hidden=(16, 16),
    omega=10.0,
    point_share=0.2,
    regulariser_bounds=(20, 20),
    lr=2e-3,
    decoder_lr=2e-3,
    prior_weight=1e-3,
    regulariser_weight=1.0,
)


def discs(shape: tuple[int, ...], radius: float, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """A soft disc or ball, as image (1, 1, *shape), and its inside as labels."""
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in shape]
    grid = torch.stack(torch.meshgrid(axes, indexing="ij"))
    grid[0] -= shift
    inside = radius - grid.square().sum(0).sqrt()
    return torch.sigmoid(inside)[None, None], (inside > 0).long()


def batch_of(*pairs: tuple[Tensor, Tensor]) -> Any:
    return SimpleNamespace(fixed=torch.cat([f for f, _ in pairs]), moving=torch.cat([m for _, m in pairs]))


def random_maps(ndim: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[CodedMap, CodedMap]:
    """Two maps away from the identity that share codes."""
    torch.manual_seed(seed)
    decoders = []
    for _ in range(2):
        decoder = GatedSiren(
            ndim=ndim, frequencies=4, hidden=(8, 8), omega=5.0, latent=3, latent_volume=2, start_at_zero=False
        )
        with torch.no_grad():
            for last in decoder.output_layer:
                last.mul_(0.3)
        decoders.append(decoder.to(dtype))
    latent = torch.randn(3, dtype=dtype)
    volume = torch.randn(2, *[5, 4, 3][:ndim], dtype=dtype)
    return CodedMap(decoders[0], latent, volume), CodedMap(decoders[1], latent, volume)


def waken(trainee: NePhiTrainee, std: float) -> None:
    """Gives both decoders random last layers: fresh ones are the identity."""
    with torch.no_grad():
        for decoder in (trainee.module.there, trainee.module.back):
            decoder.output_layer[0].normal_(std=std)
