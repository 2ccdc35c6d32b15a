"""The loop that fits a field: Adam, a learning rate that falls linearly, and the ways in which a fit can end early."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuralreg.adam import Adam
from neuralreg.errors import NeuralregError

Progress = Callable[[int, int, float, str], None]
Step = Callable[[], dict[str, Tensor]]
REPORT_EVERY = 5
CHECK_EVERY = 10  # iterations between two looks at the loss for a plateau: each waits for the device
MEMORY = 0.9  # weight of the past in the smoothed loss, which jumps with every draw of points


@dataclass(frozen=True)
class Stop:
    """When a fit ends before its iterations are done.

    ``seconds`` of wall time, learning rate and stages following the time that has passed; None: no limit.
    ``patience``: iterations without a smaller smoothed loss, after which a stage ends with the best state that it
    saw; 0: never.
    """

    seconds: float | None = None
    patience: int = 0

    def part(self, share: float) -> Stop:
        """The same for one of several fits that share the time."""
        return self if self.seconds is None else Stop(self.seconds * share, self.patience)


def minimise(
    stages: Sequence[Step],
    parameters: list[dict[str, Any]],
    *,
    iterations: int,
    final_lr: float,
    shares: Sequence[float] | None = None,
    stop: Stop | None = None,
    progress: Progress | None = None,
    name: str = "fit",
    watch: Callable[[int], None] | None = None,
    gather: Callable[[list[Tensor]], None] | None = None,
) -> list[dict[str, Any]]:
    """Minimises ``step()["loss"]`` of one stage after the other; returns the history, a dict of floats an iteration.

    The stages share the iterations, or the time, as ``shares`` says, evenly without it. ``parameters`` are groups as
    torch's optimisers take them, each with its ``params`` and ``lr``. Learning rates fall linearly to ``final_lr``
    times their start. Losses stay on the device until the end, or until the progress is shown. ``watch`` is called with
    the number of every iteration that is done, from 1. ``gather`` completes the gradients of the parameters that it
    gets, of which other processes have parts.

    Raises:
        NeuralregError: the loss became NaN or infinite.
    """
    stop = stop or Stop()
    optimiser = Adam(parameters)
    start = [group["lr"] for group in optimiser.param_groups]
    leaves = [p for group in optimiser.param_groups for p in group["params"]]
    records: list[dict[str, Tensor]] = []
    clock = time.perf_counter()
    ends = torch.tensor(shares or [1.0] * len(stages), dtype=torch.float64).cumsum(0)
    skipped = 0.0  # share of the whole that stages left unused

    def spent() -> float:
        """Share of the whole that is behind us."""
        share = len(records) / iterations
        if stop.seconds is not None:
            share = max(share, (time.perf_counter() - clock) / stop.seconds)
        return share + skipped

    for step, end in zip(stages, (ends / ends[-1]).tolist(), strict=True):
        plateau = Plateau(leaves, stop.patience)
        while True:
            share = spent()
            if share >= end - 1e-9:
                break
            # the last iteration has the last rate
            fall = min(1.0, share * iterations / max(1, iterations - 1))
            for group, lr in zip(optimiser.param_groups, start, strict=True):
                group["lr"] = lr * (1 - (1 - final_lr) * fall)
            optimiser.zero_grad()
            losses = step()
            losses["loss"].backward()  # type: ignore[no-untyped-call]
            if gather:
                gather(leaves)
            optimiser.step()
            records.append({key: value.detach() for key, value in losses.items()})
            done = len(records)
            if progress and (done % REPORT_EVERY == 1 or done == iterations):
                progress(min(done, iterations), iterations, float(records[-1]["loss"]), name)
            if watch:
                watch(done)
            if plateau.reached(records[-1]["loss"]):
                skipped += max(0.0, end - spent())
                break
        plateau.restore()
    return history_of(records, name)


class Plateau:
    """Watches a loss that jumps; keeps the parameters of its smallest smoothed value."""

    def __init__(self, parameters: list[Tensor], patience: int) -> None:
        self.parameters, self.patience = parameters, patience
        self.seen, self.best_at, self.best = 0, 0, math.inf
        self.smooth: Tensor | None = None
        self.state: list[Tensor] = []

    def reached(self, loss: Tensor) -> bool:
        """Takes the next loss; whether ``patience`` iterations have brought nothing."""
        if not self.patience:
            return False
        self.seen += 1
        loss = loss.detach()
        self.smooth = loss if self.smooth is None else MEMORY * self.smooth + (1 - MEMORY) * loss
        if self.seen % CHECK_EVERY:
            return False
        now = float(self.smooth)
        if now < self.best:
            self.best, self.best_at = now, self.seen
            self.state = [p.detach().clone() for p in self.parameters]
        return self.seen - self.best_at >= self.patience

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the best state back, if one was kept and later ones were worse."""
        if self.state and self.best_at < self.seen:
            for parameter, best in zip(self.parameters, self.state, strict=True):
                parameter.copy_(best)


def history_of(records: list[dict[str, Tensor]], name: str) -> list[dict[str, Any]]:
    """The records as floats, fetched from the device at once."""
    if not records:
        return []
    names = list(records[0])
    table = torch.stack([torch.stack([record[key].float() for key in names]) for record in records]).tolist()
    history = [{"iteration": i, **dict(zip(names, row, strict=True))} for i, row in enumerate(table)]
    if not all(math.isfinite(value) for value in table[-1]):
        raise NeuralregError(
            f"the loss became {history[-1]['loss']} in {name}: lower the learning rate "
            "(--option lr=...) or check the intensities"
        )
    return history
