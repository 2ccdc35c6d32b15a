"""How good a trainee is on pairs that it has not learnt from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from neuralreg import kernels, metrics
from neuralreg.distributed import Ranks
from neuralreg.errors import NeuralregError
from neuralreg.training.data import Pairs, seed_of
from neuralreg.training.trainee import Trainee


@dataclass(frozen=True)
class Score:
    """Means over the validation pairs: ``dice`` over all labels but 0 (moved by nearest neighbour) of the pairs with
    label maps, ``loss`` of those without, None where there are none; ``folds_percent``, voxels with det <= 0 (central).
    """

    dice: float | None
    loss: float | None
    folds_percent: float

    def better(self, other: Score | None) -> bool:
        """By Dice, by loss where there are no labels."""
        if other is None:
            return True
        if self.dice is not None and other.dice is not None:
            return self.dice > other.dice
        return self.loss is not None and other.loss is not None and self.loss < other.loss

    def words(self) -> str:
        parts = [
            f"{name} {value:.4f}"
            for name, value in (("Dice", self.dice), ("loss", self.loss))
            if value is not None
        ]
        return f"{', '.join(parts) or 'no labels to compare'}, folds {self.folds_percent:.3f} %"


def validate(
    trainee: Trainee, pairs: Pairs, ranks: Ranks, seed: int, watch: Callable[[int, int], Any] | None = None
) -> Score:
    """Scores the trainee pair by pair, the pairs divided over the ranks; the module comes back in training mode.

    Raises:
        NeuralregError: a displacement that is not finite.
    """
    trainee.module.eval()
    dice: list[float] = []
    losses: list[float] = []
    folds: list[float] = []
    mine = ranks.mine(len(pairs))
    try:
        for done, place in enumerate(mine):
            batch = to_device(pairs.batch([place]), ranks.device)
            with torch.no_grad():
                displacement = trainee.displacement(batch.fixed, batch.moving)
            if not bool(torch.isfinite(displacement).all()):
                raise NeuralregError(
                    f"the displacement of validation pair {' <- '.join(pairs.names()[place])} is not finite: lower the "
                    "learning rate (--option lr=...)"
                )
            folds.append(metrics.folds_percent(displacement[0]))
            if batch.fixed_labels is not None and batch.moving_labels is not None:
                warped = kernels.warp(batch.moving_labels, displacement, mode="nearest")
                dice.append(metrics.mean_dice(metrics.dice(warped[0, 0], batch.fixed_labels[0, 0])))
            else:  # a trainee may need gradients inside its losses, so they are not switched off
                generator = torch.Generator().manual_seed(seed_of(seed, place, "validate"))
                losses.append(float(trainee.losses(batch, generator)["loss"].detach()))
            if watch:
                watch(done + 1, len(mine))
    finally:
        trainee.module.train()
    known = [score for score in dice if score == score]
    sums = ranks.sums([sum(known), len(known), sum(losses), len(losses), sum(folds), len(folds)])
    means = [total / count if count else None for total, count in zip(sums[::2], sums[1::2], strict=True)]
    return Score(means[0], means[1], float(np.nan) if means[2] is None else means[2])


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor on the device."""
    moved = {
        name: None if value is None else value.to(device, non_blocking=True)
        for name, value in vars(batch).items()
    }
    return type(batch)(**moved)
