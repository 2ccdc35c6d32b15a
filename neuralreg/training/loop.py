"""The loop that trains: draw pairs, average gradients, step, validate now and then, and be able to stop anywhere."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neuralreg.device import settings
from neuralreg.distributed import Ranks, ranks
from neuralreg.errors import InputError, NeuralregError
from neuralreg.fit import Progress
from neuralreg.training import checkpoint
from neuralreg.training.budget import Clock, Every, Limits, Rhythm
from neuralreg.training.checkpoint import State
from neuralreg.training.data import Batch, Pairs, seed_of
from neuralreg.training.log import Log, require_tensorboard
from neuralreg.training.trainee import Trainee, save_trainee
from neuralreg.training.validate import Score, to_device, validate

Augment = Callable[[Batch, int, int, list[int]], Batch]


@dataclass(frozen=True)
class Trained:
    """How a training ended: ``step`` steps in all, the best validation and its step, and the run's folder."""

    out: Path
    step: int
    seconds: float
    cpu_seconds: float
    best: Score | None
    best_step: int | None


def train(
    trainee: Trainee,
    pairs: Pairs,
    validation: Pairs | None,
    out: Path | str,
    *,
    steps: int | None = None,
    batch: int = 1,
    time_budget: float | None = None,
    cpu_budget: float | None = None,
    seed: int = 0,
    validate_every: Every | None = None,
    checkpoint_every: Every | None = None,
    augment: Augment | None = None,
    labels: bool = False,
    resume: bool = False,
    tensorboard: bool = False,
    deterministic: bool = False,
    device: torch.device | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
    config: dict[str, Any] | None = None,
) -> Trained:
    """Trains until the first of ``steps``, ``time_budget`` (wall seconds) and ``cpu_budget`` (seconds of all ranks).

    Writes into the folder ``out``, which is made where its parent exists: ``best.pt`` (the best validation: largest
    Dice, smallest loss where there are no labels; the last weights without validation), ``last.pt``, ``checkpoint.pt``,
    ``config.json``, ``log.jsonl`` (a line a step) and ``validation.jsonl``.

    Args:
        batch: pairs a step, over all ranks together; gradients are averaged over them.
        seed: of the pairs, the points and the augmentation; each step's depend on (seed, step) alone, so that neither
            a resume nor the number of ranks changes them.
        validate_every, checkpoint_every: rhythms; by default twenty validations, and a checkpoint every 300 seconds.
            A validation writes a checkpoint, too.
        augment: called with (batch, seed, step, places of the pairs in the global batch) on the trainee's device.
        labels: give the trainee the pairs' label maps, too; 16 bytes a voxel of every pair, on the device.
        resume: go on from ``out``'s checkpoint. In deterministic mode the losses are those of a run that was never
            interrupted, to the last bit.
        device: CPU by default; under torchrun each rank takes the GPU of its local rank.
        threads: CPU threads; None keeps torch's setting.
        progress: called with (step, steps expected in all, loss, "train"), and with (pair, pairs, nan, "validate").
        tell: called with one line a validation.
        config: plain settings to keep in ``config.json`` and, but for "environment" and "data", to compare on resume.

    SIGINT and SIGTERM end the training after the step in progress, with checkpoint and weights written, as
    KeyboardInterrupt and SystemExit(143).

    Raises:
        InputError: something about the input, before anything is written.
        NeuralregError: a loss, or a gradient, that is not finite; files are those of the last checkpoint.
    """
    limits = Limits(steps, time_budget, cpu_budget)
    if batch < 1:
        raise InputError(f"batch must be at least 1, got {batch}")
    if seed < 0:
        raise InputError(f"seed must be 0 or more, got {seed}")
    if tensorboard:
        require_tensorboard()
    out = Path(out)
    whole = {
        **(config or {}),
        "seed": seed,
        "batch": batch,
        "augmentation": augment is not None,
        "limits": {"steps": steps, "time_budget": time_budget, "cpu_budget": cpu_budget},
    }
    with (
        ranks(device or torch.device("cpu")) as group,
        _signals() as caught,
        settings(threads, deterministic),
        torch.random.fork_rng([group.device] if group.device.type == "cuda" else []),
    ):
        if batch < group.world:
            raise InputError(f"batch {batch} is smaller than the number of processes, {group.world}")
        checkpoint.open_run(out, whole, resume)
        loop = _Loop(trainee, pairs, validation, out, limits, batch, seed, group, augment, labels)
        loop.begin(whole, resume, tensorboard)
        rhythms = validate_every or Every(), checkpoint_every or Every(seconds=300.0)
        loop.run(*rhythms, caught, progress, tell or _nothing)
    if caught:
        raise KeyboardInterrupt if caught[0] == signal.SIGINT else SystemExit(143)
    state = loop.state
    return Trained(out, state.step, state.seconds, state.cpu_seconds, state.best, state.best_step)


class _Loop:
    """One training: what it works on, and how far it is."""

    def __init__(
        self,
        trainee: Trainee,
        pairs: Pairs,
        validation: Pairs | None,
        out: Path,
        limits: Limits,
        batch: int,
        seed: int,
        group: Ranks,
        augment: Augment | None,
        labels: bool,
    ) -> None:
        self.trainee, self.pairs, self.validation = trainee, pairs, validation
        self.out, self.limits, self.batch, self.seed = out, limits, batch, seed
        self.group, self.augment, self.labels = group, augment, labels
        self.state, self.done = State(), 0.0
        self.log: Log | None = None

    def begin(self, config: dict[str, Any], resume: bool, tensorboard: bool) -> None:
        """Restores or starts the run; from here on files are written, by rank 0."""
        module = self.trainee.module.to(self.group.device).train()
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimiser = self.trainee.optimiser()
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        if resume:
            self.state = checkpoint.load_checkpoint(self.out, self.trainee, self.optimiser)
        self.group.same_start(module)
        self.group.wait()  # every rank has looked at the folder before the first one writes to it
        if self.group.first:
            self.out.mkdir(exist_ok=True)
            checkpoint.remove_leftovers(self.out)
            checkpoint.write_config(self.out, config)
            self.log = Log(self.out, self.state.step, self.state.scored_step or 0, tensorboard)
        self.clock = Clock(self.state.seconds, self.state.cpu_seconds if self.group.first else 0.0)
        self._look([])

    def run(
        self,
        validate_every: Every,
        checkpoint_every: Every,
        caught: list[int],
        progress: Progress | None,
        tell: Callable[[str], None],
    ) -> None:
        """Steps until a limit or a signal, then writes; the log is closed whatever happens."""
        state = self.state
        scoring = Rhythm(validate_every, self.done, state.seconds)
        saving = Rhythm(checkpoint_every, self.done, state.seconds)
        try:
            stopped = self._look(caught)
            while self.done < 1 and not stopped:
                record = self._step()
                stopped = self._look(caught)
                self._tell(record, progress)
                at = state.step, self.done, state.seconds
                if not stopped and scoring.due(*at) and self.done < 1:
                    self._score(progress, tell)
                elif saving.due(*at):
                    self._save()
            if not stopped and state.scored_step != state.step:
                self._score(progress, tell)
            else:
                self._save()
            self._look(caught)
        finally:
            if self.log is not None:
                self.log.close()

    def _step(self) -> dict[str, float]:
        """One step of the optimiser; returns the losses (means over the global batch), gradient norm and rate."""
        step = self.state.step + 1
        rate = self.trainee.rate(self.done)
        for group, lr in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = lr * rate
        drawn = self.pairs.draw(self.seed, step, self.batch)
        mine = list(self.group.mine(self.batch))
        part = to_device(self.pairs.batch([drawn[k] for k in mine], self.labels), self.group.device)
        if self.augment:
            part = self.augment(part, self.seed, step, mine)
        # what draws from torch's own generators, such as dropout, repeats itself after a resume
        torch.manual_seed(seed_of(self.seed, step, "torch", self.group.rank))
        generator = torch.Generator().manual_seed(seed_of(self.seed, step, "points"))
        self.optimiser.zero_grad(set_to_none=True)
        losses = self.trainee.losses(part, generator)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        names = list(losses)
        values = torch.stack([losses[name].detach().float() for name in names])
        weight = len(mine) / self.batch
        values = self.group.average(self.parameters, values, weight)
        norms = [p.grad.norm().float() for p in self.parameters if p.grad is not None]
        gradient = torch.stack(norms).norm() if norms else torch.zeros([], device=self.group.device)
        *numbers, norm = torch.cat([values, gradient[None]]).tolist()
        record = dict(zip(names, numbers, strict=True))
        _check(step, record, norm)
        self.optimiser.step()
        self.group.average_buffers(self.trainee.module, weight)
        self.state.step = step
        return {**record, "gradient_norm": norm, "rate": rate}

    def _tell(self, record: dict[str, float], progress: Progress | None) -> None:
        state = self.state
        if progress:
            expected = max(state.step, round(state.step / max(self.done, 1e-9)))
            progress(state.step, expected, record["loss"], "train")
        if self.log is not None:
            times = {"seconds": round(state.seconds, 3), "cpu_seconds": round(state.cpu_seconds, 3)}
            self.log.step({"step": state.step, **record, **times})

    def _look(self, caught: list[int]) -> bool:
        """Reads the clock, the same on all ranks, and tells whether any of them was asked to stop."""
        seconds, cpu_seconds = self.clock.read()
        mine = [seconds if self.group.first else 0.0, cpu_seconds, float(len(caught))]
        self.state.seconds, self.state.cpu_seconds, stopped = self.group.sums(mine)
        self.done = self.limits.done(self.state.step, self.state.seconds, self.state.cpu_seconds)
        if stopped and not caught:  # another rank was told; this one ends in the same way
            caught.append(signal.SIGTERM)
        return stopped > 0

    def _score(self, progress: Progress | None, tell: Callable[[str], None]) -> None:
        state = self.state
        better = True
        if self.validation is not None:
            last = float("nan")
            watch = None if progress is None else lambda done, total: progress(done, total, last, "validate")
            score = validate(self.trainee, self.validation, self.group, self.seed, watch)
            better = score.better(state.best)
            if better:
                state.best, state.best_step = score, state.step
            if self.log is not None:
                self.log.validation(
                    {"step": state.step, **vars(score), "seconds": round(self.clock.read()[0], 3)}
                )
            tell(f"step {state.step}: {score.words()}{' (best)' if better else ''}")
        state.scored_step = state.step
        if better and self.group.first:
            save_trainee(self.trainee, self.out / checkpoint.BEST)
        self._save()

    def _save(self) -> None:
        if not self.group.first:
            return
        if not (self.out / checkpoint.BEST).exists():
            save_trainee(self.trainee, self.out / checkpoint.BEST)
        checkpoint.save_checkpoint(self.out, self.trainee, self.optimiser, self.state)


def _check(step: int, losses: dict[str, float], gradient: float) -> None:
    if all(math.isfinite(value) for value in losses.values()) and math.isfinite(gradient):
        return
    told = ", ".join(f"{name} {value:g}" for name, value in losses.items())
    raise NeuralregError(
        f"step {step}: the loss or its gradient is not finite ({told}, gradient {gradient:g}): lower the learning rate "
        "(--option lr=...) or check the intensities"
    )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that collects SIGINT and SIGTERM meanwhile; a second SIGINT interrupts at once."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, frame: Any) -> None:
        if number == signal.SIGINT and signal.SIGINT in caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _nothing(line: str) -> None:
    pass
