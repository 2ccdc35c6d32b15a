"""The smallest method that learns, for tests of the training: two convolutions that predict a displacement."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neuralreg import kernels
from neuralreg.training.data import Batch


@dataclass(frozen=True)
class Options:
    channels: int = 4
    lr: float = 1e-2
    points: int = 64
    spoil_at: float = 2.0  # share of the training after which the loss becomes NaN

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1, got {self.channels}")


PRESETS = {"fast": Options(), "wide": Options(channels=8)}


class Tiny:
    """Mean squared difference on random voxels after the warp, and a little smoothness."""

    def __init__(self, options: Options, shape: tuple[int, ...], seed: int = 0) -> None:
        self.options, self.shape = options, tuple(shape)
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[len(self.shape)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module = nn.Sequential(
                conv(2, options.channels, 3, padding=1),
                nn.Tanh(),
                conv(options.channels, len(shape), 3, padding=1),
            )
        self.done = 0.0

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        u = self.module(torch.cat([batch.fixed, batch.moving], 1))
        difference = (kernels.warp(batch.moving, u) - batch.fixed).flatten(1)
        points = torch.randint(difference.shape[1], (self.options.points,), generator=generator)
        similarity = difference[:, points.to(u.device)].square().mean()
        smoothness = kernels.diffusion_loss(u)
        loss = similarity + 0.01 * smoothness
        if self.done >= self.options.spoil_at:
            loss = loss * float("nan")
        return {"loss": loss, "similarity": similarity, "smoothness": smoothness}

    def displacement(self, fixed: Tensor, moving: Tensor) -> Tensor:
        with torch.no_grad():
            return self.module(torch.cat([fixed, moving], 1))

    def optimiser(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.module.parameters(), lr=self.options.lr)

    def rate(self, done: float) -> float:
        self.done = done
        return 1 - 0.9 * done

    def describe(self) -> dict[str, Any]:
        options, state = asdict(self.options), self.module.state_dict()
        return {"method": "tiny", "options": options, "shape": list(self.shape), "state": state}


def make_trainee(options: Options, shape: tuple[int, ...], ndim: int, seed: int) -> Tiny:
    assert len(shape) == ndim
    return Tiny(options, shape, seed)


def trainee_from(description: dict[str, Any]) -> Tiny:
    trainee = Tiny(Options(**description["options"]), tuple(description["shape"]))
    trainee.module.load_state_dict(description["state"])
    return trainee
