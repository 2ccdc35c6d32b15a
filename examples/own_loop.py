"""The ops in a loop of one's own: a field of feature grids, fitted to two images by LNCC."""

import torch

from neuralreg import kernels
from neuralreg.fields import HashMLP


def fit(fixed, moving, steps=100, lr=1e-2):
    """fixed, moving (1, 1, D, H, W) in [0, 1] -> displacement (1, 3, D, H, W) in voxels."""
    grid = fixed.shape[2:]
    axes = [torch.linspace(-1, 1, n) for n in grid]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, 3)
    half = torch.tensor([(n - 1) / 2 for n in grid])  # voxels a unit of field coordinates
    field = HashMLP(levels=3, base=4, finest=12)
    optimiser = torch.optim.Adam(field.parameters(), lr=lr)
    for _ in range(steps):
        u = (field(points) * half).T.reshape(1, 3, *grid)
        loss = -kernels.lncc(fixed, kernels.warp(moving, u), window=7) + kernels.diffusion_loss(u)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return u.detach()
