"""On-the-fly guidance around a network of your own: any module that returns a displacement in voxels."""

import torch
from torch import nn

from neuralreg.methods.ofg import OnTheFlyGuidance


class MyNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(2, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 5, padding=2), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(16, 2, 5, padding=2))

    def forward(self, moving, fixed):
        return self.layers(
            torch.cat([moving, fixed], 1)
        )  # (B, 2, H, W): rows and columns to add to the identity


def train(network, pairs, steps, guidance=OnTheFlyGuidance(steps=10, window=9)):
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3, amsgrad=True)
    for step in range(steps):
        fixed, moving = pairs[step % len(pairs)]  # each (B, 1, H, W) with intensities in [0, 1]
        loss, _refined = guidance(fixed, moving, network(moving, fixed), done=step / steps)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network
