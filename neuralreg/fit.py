"""The loop that fits a field: Adam, a learning rate that falls linearly, a history without a synchronisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from neuralreg.errors import NeuralregError

Progress = Callable[[int, int, float, str], None]
REPORT_EVERY = 5


def minimise(
    step: Callable[[int], dict[str, Tensor]],
    parameters: list[dict[str, Any]],
    *,
    iterations: int,
    final_lr: float,
    progress: Progress | None = None,
    stage: str = "fit",
) -> list[dict[str, Any]]:
    """Minimises ``step(iteration)["loss"]`` and returns the history, one dict of floats an iteration.

    ``parameters`` are groups as torch's optimisers take them, each with its ``params`` and ``lr``. Learning rates fall
    linearly to ``final_lr`` times their start. Losses stay on the device until the end, or
    until the progress is shown.

    Raises:
        NeuralregError: the loss became NaN or infinite.
    """
    optimiser = torch.optim.Adam(parameters, fused=True)
    start = [group["lr"] for group in optimiser.param_groups]
    records: list[dict[str, Tensor]] = []
    for iteration in range(iterations):
        share = iteration / max(1, iterations - 1)
        for group, lr in zip(optimiser.param_groups, start, strict=True):
            group["lr"] = lr * (1 - (1 - final_lr) * share)
        optimiser.zero_grad(set_to_none=True)
        losses = step(iteration)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        records.append({name: value.detach() for name, value in losses.items()})
        if progress and (iteration % REPORT_EVERY == 0 or iteration + 1 == iterations):
            progress(iteration + 1, iterations, float(records[-1]["loss"]), stage)
    if not records:
        return []
    names = list(records[0])
    table = torch.stack(
        [torch.stack([record[name].float() for name in names]) for record in records]
    ).tolist()
    history = [{"iteration": i, **dict(zip(names, row, strict=True))} for i, row in enumerate(table)]
    if not all(torch.isfinite(torch.tensor(table[-1]))):
        raise NeuralregError(
            f"the loss became {history[-1]['loss']} in {stage}: lower the learning rate "
            "(--option lr=...) or check the intensities"
        )
    return history
