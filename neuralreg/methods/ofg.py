"""OFG: on-the-fly guidance for registration networks (Xin et al., MICCAI 2024, arXiv 2308.15216).

A network predicts a displacement; a differentiable optimiser refines a detached copy of it for a few steps; the refined
field supervises the prediction. Beside it stand the trainings that the paper compares with:

    unsupervised             energy(u): the similarity's negative plus the regulariser
    ofg                      mean((u - refined)^2) + smoothness, refined from the network's own, present prediction
    self-training            mean((u - taught)^2) + smoothness, taught by a network that was trained before
    optimised-self-training  the same, with what the teacher says refined as in ofg
    weakly-supervised        unsupervised plus soft Dice of the warped labels

The last two lines of the paper's Figure 3 are our reading of its "self-training" and "optimised self-training": pseudo
ground truth from a trained model that stays as it is, without and with the optimiser, against guidance that improves
together with the network. Inference is the network alone in every mode.
"""

from __future__ import annotations

import importlib
import math
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuralreg import kernels
from neuralreg.dense_field import DenseField
from neuralreg.errors import InputError
from neuralreg.fit import Progress
from neuralreg.losses import soft_dice
from neuralreg.methods.ofg_guidance import Energy, OnTheFlyGuidance
from neuralreg.methods.ofg_options import PRESETS, REFINEMENT, TAUGHT, Options
from neuralreg.networks import TransMorph, VoxelMorph, predict
from neuralreg.options import resolve
from neuralreg.pair import Pair, resampled
from neuralreg.reading import by
from neuralreg.training.data import Batch
from neuralreg.training.trainee import Trainee, load_trainee

__all__ = ["PRESETS", "Energy", "OnTheFlyGuidance", "Options", "make_network", "make_trainee", "trainee_from"]


class OfgTrainee:
    """A network with the losses of its mode: what the training loop, validation and registration need.

    Attributes:
        module: the network; ``module(moving, fixed)`` unless options.call says otherwise.
        options, shape: what it was made of; images must have that shape.
    """

    def __init__(self, options: Options, shape: tuple[int, ...], module: nn.Module):
        self.options, self.shape, self.module = options, tuple(shape), module
        self._done = 0.0
        self._teacher: Trainee | None = None

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """ "loss" and its parts, means over the batch's pairs, with ``two_way`` over both directions of each.

        Draws nothing from ``generator``. The inner learning rate follows the ``done`` that ``rate`` was last told.
        """
        images = (batch.fixed, batch.moving)
        if self.options.two_way:
            images = (torch.cat(images), torch.cat(images[::-1]))
        displacement = predict(self.module, *images, call=self.options.call)
        mode = self.options.mode
        if mode in ("unsupervised", "weakly-supervised"):
            parts = self._compare(*images, displacement)
            if mode == "weakly-supervised":
                parts["dice"] = soft_dice(*self._labels(batch), displacement)
                parts["loss"] = parts["loss"] + self.options.dice_weight * (1 - parts["dice"])
            return parts
        guidance = self.options.guidance
        if mode == "ofg":
            target = guidance.refine(*images, displacement, self._done)
        else:
            target = self.teacher.displacement(*images)
            if mode == "optimised-self-training":
                target = guidance.refine(*images, target, self._done)
        distance = functional.mse_loss(displacement, target)
        rough = kernels.diffusion_loss(displacement)
        return {
            "loss": distance + self.options.smoothness * rough,
            "distance": distance,
            "regulariser": rough,
        }

    def _compare(self, fixed: Tensor, moving: Tensor, displacement: Tensor) -> dict[str, Tensor]:
        alike, rough = self.options.energy.parts(fixed, moving, displacement)
        return {
            "loss": self.options.regularisation * rough - alike,
            "similarity": alike,
            "regulariser": rough,
        }

    def _labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.fixed_labels is None or batch.moving_labels is None:
            raise InputError("mode weakly-supervised needs labels of every subject")
        labels = (batch.fixed_labels, batch.moving_labels)
        return (torch.cat(labels), torch.cat(labels[::-1])) if self.options.two_way else labels

    @property
    def teacher(self) -> Trainee:
        """What supervises self-training, read when it is first asked for."""
        if self._teacher is None:
            teacher = load_trainee(self.options.teacher)
            shape = tuple(teacher.describe()["shape"])
            if shape != self.shape:
                raise InputError(
                    f"teacher {self.options.teacher} was trained on the grid {by(shape)}, this one is {by(self.shape)}"
                )
            teacher.module.to(next(self.module.parameters()).device).eval()
            self._teacher = teacher
        return self._teacher

    @torch.no_grad()
    def displacement(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """(B, ndim, *spatial) in fixed voxels, of images (B, 1, *spatial) in [0, 1]; in evaluation mode."""
        training = self.module.training
        self.module.eval()
        try:
            return predict(self.module, fixed, moving, call=self.options.call)
        finally:
            self.module.train(training)

    def optimiser(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.module.parameters(), lr=self.options.lr, amsgrad=True)

    def rate(self, done: float) -> float:
        """(1 - done)^power; the inner loop of the next losses is told the same share."""
        self._done = min(max(done, 0.0), 1.0)
        return (1 - self._done) ** self.options.power

    def describe(self) -> dict[str, Any]:
        """What ``trainee_from`` makes the same trainee of; loads with weights_only."""
        return {
            "method": "ofg",
            "options": asdict(self.options),
            "shape": list(self.shape),
            "state": self.module.state_dict(),
        }


def make_trainee(options: Options, shape: tuple[int, ...], ndim: int, seed: int) -> OfgTrainee:
    """A fresh network with the losses of its mode, started from ``seed``.

    Raises:
        InputError: the network cannot be made, or the teacher cannot be read.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trainee = OfgTrainee(options, shape, make_network(options, tuple(shape), ndim))
    if options.mode in TAUGHT:
        _ = trainee.teacher  # bad weights show here, not in the first step
    return trainee


def trainee_from(description: dict[str, Any]) -> OfgTrainee:
    """The trainee of :meth:`OfgTrainee.describe`. A network module:Class is imported by its name.

    Raises:
        InputError: an option or the network does not exist here.
        RuntimeError: the state does not fit the network.
    """
    options = resolve(PRESETS, "paper", description["options"], "ofg")
    shape = tuple(description["shape"])
    trainee = OfgTrainee(options, shape, make_network(options, shape, len(shape)))
    trainee.module.load_state_dict(description["state"])
    return trainee


def fit_trained(
    trainee: OfgTrainee,
    pair: Pair,
    options: Options,
    *,
    refine: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
    seconds: float | None = None,
) -> tuple[DenseField, list[dict[str, Any]]]:
    """The network's prediction for a pair, refined by so many steps of the inner optimiser on the pair's own grid.

    ``options`` are the trainee's, but for how it is refined (REFINEMENT). Images of another shape than the network was
    trained on are resampled to it, outer voxel centres onto outer voxel centres, and the prediction is resampled back.
    ``seconds`` limits the refinement; ``seed`` is of nothing here.
    """
    changed = [
        name
        for name, value in vars(options).items()
        if name not in REFINEMENT and value != getattr(trainee.options, name)
    ]
    if changed:
        raise InputError(f"method ofg: {', '.join(changed)} cannot change: the weights were trained with it")
    if pair.fixed_mask is not None or pair.moving_mask is not None:
        raise InputError("method ofg sees whole images: leave the masks out")
    if pair.ndim != len(trainee.shape):
        raise InputError(f"the weights are for {len(trainee.shape)}-D images, these are {pair.ndim}-D")
    pair = pair.on_fixed_grid()
    trainee.module.to(pair.fixed.device)
    prediction = predicted(trainee, pair)
    displacement = prediction
    history: list[dict[str, Any]] = []
    if refine:
        guidance = replace(options.guidance, steps=refine)
        clock = time.perf_counter()
        for displacement in guidance.walk(pair.fixed, pair.moving, prediction):
            alike, rough = (float(x) for x in options.energy.parts(pair.fixed, pair.moving, displacement))
            loss = options.regularisation * rough - alike
            values = {"loss": loss, "similarity": alike, "regulariser": rough, "scale": 1.0}
            history.append({"iteration": len(history) + 1, **values})
            if progress:
                progress(len(history), refine, loss, "refine")
            if seconds is not None and time.perf_counter() - clock > seconds:
                break
    return DenseField(displacement[0]), history


def predicted(trainee: OfgTrainee, pair: Pair) -> Tensor:
    """(1, ndim, *grid) in voxels of the pair's fixed grid."""
    images = [resampled(image, trainee.shape) for image in (pair.fixed, pair.moving)]
    u = trainee.displacement(*images)
    if tuple(u.shape[2:]) == pair.grid:
        return u
    mode = "bilinear" if pair.ndim == 2 else "trilinear"
    scale = [(n - 1) / max(1, m - 1) for n, m in zip(pair.grid, trainee.shape, strict=True)]
    u = functional.interpolate(u, size=pair.grid, mode=mode, align_corners=True)
    return u * u.new_tensor(scale).view(-1, *[1] * pair.ndim)


def dense_displacement(field: DenseField, grid: tuple[int, ...], progress: Progress | None = None) -> Tensor:
    """(ndim, *grid) in voxels: the field is that already."""
    return field.displacement.detach()


def with_at_most(options: Options, grid: tuple[int, ...], most: int) -> Options:
    """The options as they are: a network sees whole images.

    Raises:
        InputError: the images are larger than that.
    """
    if math.prod(grid) > most:
        raise InputError(
            f"the memory leaves room for {most} voxels, method ofg needs all {math.prod(grid)} at once; "
            "allow more memory"
        )
    return options


def make_network(options: Options, shape: tuple[int, ...], ndim: int) -> nn.Module:
    """The network that the options name, freshly started.

    Raises:
        InputError: no such module or class, or sizes that do not fit.
    """
    try:
        if options.network == "voxelmorph":
            return VoxelMorph(ndim, options.encoder, options.decoder, options.diffeomorphic)
        if options.network == "transmorph":
            return TransMorph(
                ndim, options.embedding, options.depths, options.heads, options.attention_window
            )
    except ValueError as error:
        raise InputError(str(error)) from None
    return find_class(options.network)(shape)


def find_class(name: str) -> Any:
    """What a name module:Class means; modules of the current folder count."""
    module, _, kind = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), kind)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"network {name}: {error}") from None
