"""NePhi: neural deformation fields for approximately diffeomorphic registration (Tian et al., ECCV 2024).

An encoder sees both images and predicts a global code and a coarse volume of local codes; two gated sine decoders turn
the codes into the map x + u(x) and its inverse. Both are compared with the images at sampled points, and the gradient
of what one makes of the other is held at the identity (gradient inverse consistency), which keeps them close to
diffeomorphic without a velocity or an integrator. Trained across pairs, a new pair is one prediction; a few steps on
its codes or decoders refine it. Without an encoder the codes are parameters, and one pair is fitted from nothing.

The paper's derivatives of derivatives become jets here: one op gives a map and its Jacobian, with a backward by hand.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from neuralreg.errors import InputError
from neuralreg.fields import GatedSiren
from neuralreg.fit import Progress, Stop, minimise
from neuralreg.methods.nephi_losses import draw_points, draw_sample, pair_losses
from neuralreg.methods.nephi_options import ARCHITECTURE, PRESETS, Options
from neuralreg.methods.nir import dense_displacement
from neuralreg.networks.encoder import Encoder, halved, local_block_of
from neuralreg.pair import Pair
from neuralreg.two_way import CodedMap, TwoWayField

__all__ = ["PRESETS", "NePhi", "Options", "dense_displacement", "fit", "make_trainee", "trainee_from"]


class NePhi(nn.Module):
    """Encoder and both decoders; ``encode`` gives the codes of pairs, ``maps`` those of one pair their maps."""

    def __init__(self, options: Options, shape: Sequence[int]) -> None:
        super().__init__()
        self.encoder = Encoder(
            shape,
            widths=options.widths,
            global_code=options.global_code,
            local_code=options.local_code,
            local_block=options.local_block,
            head=options.head,
            norm=options.norm,
            context=options.context,
        )
        self.there, self.back = (make_decoder(options, len(shape)) for _ in range(2))

    def encode(self, fixed: Tensor, moving: Tensor) -> list[tuple[Tensor | None, Tensor | None]]:
        """The codes of every pair of (B, 1, *shape) images."""
        codes, volumes = self.encoder(torch.cat([fixed, moving], 1))
        count = len(fixed)
        return list(
            zip(
                [None] * count if codes is None else codes,
                [None] * count if volumes is None else volumes,
                strict=True,
            )
        )

    def maps(self, latent: Tensor | None, volume: Tensor | None) -> tuple[CodedMap, CodedMap]:
        """The forward and the backward map of a pair's codes."""
        return CodedMap(self.there, latent, volume), CodedMap(self.back, latent, volume)


def make_decoder(options: Options, ndim: int) -> GatedSiren:
    """One decoder, at the identity whatever the codes."""
    return GatedSiren(
        ndim=ndim,
        frequencies=options.frequencies,
        sigma=options.sigma,
        hidden=options.hidden,
        first_omega=options.first_omega,
        omega=options.omega,
        latent=options.global_code,
        latent_volume=options.local_code,
    )


class NePhiTrainee:
    """What the training loop sees of NePhi: losses of a batch, dense maps, optimiser, description."""

    def __init__(self, options: Options, shape: Sequence[int], seed: int = 0) -> None:
        self.options, self.shape = options, tuple(shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module: nn.Module = NePhi(options, self.shape)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.module.parameters()).device

    def losses(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """Means over the batch's pairs, all asked at one draw of points."""
        module = self._nephi
        device = batch.fixed.device
        sample = draw_sample(self.options, self.shape, generator, device)
        points = draw_points(self.options, self.shape, generator, device)
        affine = torch.eye(len(self.shape), len(self.shape) + 1, device=device)
        found = []
        for index, codes in enumerate(module.encode(batch.fixed, batch.moving)):
            one = slice(index, index + 1)
            pair = Pair(batch.fixed[one], batch.moving[one], affine)
            found.append(pair_losses(module.maps(*codes), pair, sample, points, self.options))
        return {name: torch.stack([losses[name] for losses in found]).mean() for name in found[0]}

    @torch.no_grad()
    def displacement(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """(B, ndim, *shape) displacement in fixed voxels."""
        maps = [self._nephi.maps(*codes)[0] for codes in self._nephi.encode(fixed, moving)]
        return torch.stack([dense_displacement(one, self.shape) for one in maps])

    def optimiser(self) -> torch.optim.Optimizer:
        """Adam, one rate for all."""
        return torch.optim.Adam(self.module.parameters(), lr=self.options.lr, fused=True)

    def rate(self, done: float) -> float:
        """Linear from 1 to final_lr."""
        return 1 - (1 - self.options.final_lr) * min(max(done, 0.0), 1.0)

    def describe(self) -> dict[str, Any]:
        """Options, shape and parameters in plain types, for :func:`trainee_from`."""
        return {
            "method": "nephi",
            "options": asdict(self.options),
            "shape": list(self.shape),
            "state": self.module.state_dict(),
        }

    @property
    def _nephi(self) -> NePhi:
        assert isinstance(self.module, NePhi)
        return self.module


def make_trainee(options: Options, shape: Sequence[int], ndim: int, seed: int = 0) -> NePhiTrainee:
    """A fresh NePhi for images of ``shape``."""
    if ndim != len(shape):
        raise ValueError(f"shape {tuple(shape)} is not {ndim}-D")
    try:
        return NePhiTrainee(options, shape, seed)
    except ValueError as error:
        raise InputError(f"method nephi: {error}") from None


def trainee_from(description: dict[str, Any]) -> NePhiTrainee:
    """The trainee that ``describe`` described."""
    trainee = NePhiTrainee(Options(**description["options"]), description["shape"])
    trainee.module.load_state_dict(description["state"])
    return trainee
