"""One optimiser step of every method on a volume, made by the methods themselves: what iterations are measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from neuralreg.adam import Adam
from neuralreg.bench.harness import smooth_pair
from neuralreg.errors import InputError
from neuralreg.methods import ncf, nephi, nir, ofg
from neuralreg.pair import Pair
from neuralreg.training.data import Batch

METHODS: dict[str, Any] = {"nir": nir, "ncf": ncf, "nephi": nephi, "ofg": ofg}
NEARLY_ZERO, SMALL = 1e-4, 0.01


@dataclass
class Step:
    """``loss`` draws points and goes forward; a call is a whole step. ``module`` holds all that is learned."""

    loss: Callable[[], Tensor]
    optimiser: Any  # as torch's, with step, zero_grad and param_groups
    module: nn.Module

    def __call__(self) -> tuple[Tensor, ...]:
        self.optimiser.zero_grad()
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return (loss.detach(),)

    def loss_and_gradients(self) -> tuple[Tensor, ...]:
        """The loss and all gradients as one vector, without a step: what errors are taken of."""
        self.optimiser.zero_grad()
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        grads = [
            p.grad for group in self.optimiser.param_groups for p in group["params"] if p.grad is not None
        ]
        return loss.detach(), torch.cat([gradient.flatten() for gradient in grads])


@dataclass(frozen=True)
class Work:
    """A step by name: ``method``, ``preset``, ``stage`` (fit, train, refine; of a hybrid fit its last field)."""

    method: str
    preset: str
    stage: str = "fit"

    def __str__(self) -> str:
        return f"{self.method} {self.preset}" + ("" if self.stage == "fit" else f", {self.stage}")

    def make(
        self,
        shape: tuple[int, ...],
        device: torch.device,
        *,
        points: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Step:
        """The step on a smooth pair of ``shape``, at the finest scale; ``points``: as many an iteration as asked.

        Raises:
            InputError: the preset does not fit the volume, or points cannot be chosen.
        """
        fixed, moving = smooth_pair(shape, device, dtype)
        options = METHODS[self.method].PRESETS[self.preset]
        if points is not None:
            options = self._with_points(options, points)
        pair = Pair(fixed, moving, torch.eye(3, 4, device=device, dtype=dtype))
        if self.stage == "fit":
            with captured(METHODS[self.method]) as kept:
                module, _ = METHODS[self.method].fit(pair, options, seed=0)
            return _of(kept, module)
        trainee = METHODS[self.method].make_trainee(options, shape, 3, 0)
        trainee.module.to(device, dtype)
        if self.stage == "refine":
            with captured(nephi) as kept:
                module, _ = nephi.fit_trained(trainee, pair, options, refine=1)
            return _of(kept, module)
        generator = torch.Generator().manual_seed(0)
        batch = Batch(fixed, moving)
        trainee.module.train()
        return away(
            Step(lambda: trainee.losses(batch, generator)["loss"], trainee.optimiser(), trainee.module)
        )

    def _with_points(self, options: Any, points: int) -> Any:
        if self.method == "ofg":
            raise InputError(f"{self}: a network sees whole images")
        if self.method == "nephi":
            return replace(options, max_points=points, point_share=1.0, strides=(0,))
        return replace(options, max_points=points, stride=0)


def _of(kept: list[tuple[Any, Any]], module: nn.Module) -> Step:
    steps, groups = kept[-1]
    return away(Step(lambda: steps[-1]()["loss"], Adam(groups), module))


@torch.no_grad()
def away(step: Step) -> Step:
    """Off the identity, where every look-up falls on a plane between cells: gradients jump there, and no two precisions
    agree. Layers that start at zero, or nearly, get small numbers, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    for parameter in step.module.parameters():
        if parameter.numel() and float(parameter.abs().max()) < NEARLY_ZERO:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.copy_(SMALL * noise)
    return step


@contextmanager
def captured(method: Any) -> Iterator[list[tuple[Any, Any]]]:
    """Fits of the method end before they begin: their steps and groups of parameters are kept instead."""
    kept: list[tuple[Any, Any]] = []

    def keep(steps: Any, groups: Any, **rest: Any) -> list[dict[str, Any]]:
        kept.append((steps, groups))
        return []

    with mock.patch.object(method, "minimise", keep):
        yield kept


@contextmanager
def in_float64() -> Iterator[None]:
    """Code that asks for float32 gets float64, with the numbers that float32 draws: for truths of whole steps."""

    def drawn(*arguments: Any, **options: Any) -> Tensor:
        return rand(*arguments, **{**options, "dtype": torch.float32}).double()

    rand, before = torch.rand, torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with (
            mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
            mock.patch.object(torch, "rand", drawn),
        ):
            yield
    finally:
        torch.set_default_dtype(before)
