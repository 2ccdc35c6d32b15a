"""Adam for feature tables: what no point came near is neither read nor moved."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .backends import registry
from .backends.reference import optim as reference


@torch.library.custom_op("neuralreg::table_adam", mutates_args=("table", "grad", "mean", "square", "steps"))
def _table_adam(
    table: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    steps: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    backend: str,
) -> None:
    run = registry.implementation("table_adam", backend)
    run(table, grad, mean, square, steps, lr, beta1, beta2, eps)


@_table_adam.register_fake
def _(
    table: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    steps: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    backend: str,
) -> None:
    return None


def table_adam(
    table: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    steps: Tensor,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-15,
    backend: str | None = None,
) -> None:
    """One step of Adam (Kingma and Ba, 2015) in place, on the rows of a feature table that have a gradient.

    Rows whose gradient is all 0 keep value and moments: theirs is not the Adam of a dense parameter, whose moments
    decay with every step. Each row counts its own steps, so that the bias correction is right for a row that is
    touched for the first time late. The gradient is cleared in the same pass. Defaults as Instant NGP (Mueller et al.
    2022) trains its tables.

    Args:
        table: (entries, features), moved in place.
        grad: its gradient, cleared.
        mean, square: the moments, like the table, 0 before the first step.
        steps: (entries,) int32, 0 before the first step.
        lr, betas, eps: of Adam; ``eps`` stands outside the root.
        backend: "cpu", "reference", ...; None chooses.

    Memory beyond the arguments, cpu backend: none.

    Raises:
        ValueError: a shape, dtype or layout does not fit.
    """
    for name, tensor in (("grad", grad), ("mean", mean), ("square", square)):
        if tensor.shape != table.shape or tensor.dtype != table.dtype or tensor.device != table.device:
            raise ValueError(f"table_adam: {name} must be like table, {tuple(table.shape)} {table.dtype}")
    if table.ndim != 2 or steps.shape != table.shape[:1] or steps.dtype != torch.int32:
        raise ValueError(
            f"table_adam: table must be (entries, features) and steps (entries,) int32, got {tuple(table.shape)}, "
            f"{tuple(steps.shape)} {steps.dtype}"
        )
    if not all(t.is_contiguous() for t in (table, grad, mean, square, steps)):
        raise ValueError("table_adam: tensors that are changed in place must be contiguous")
    chosen = registry.choose("table_adam", table.device, backend)
    with torch.no_grad():
        if chosen == "reference":
            reference.table_adam(table, grad, mean, square, steps, lr, betas, eps)
        else:
            _table_adam(table, grad, mean, square, steps, lr, *betas, eps, chosen)


class TableAdam(torch.optim.Optimizer):
    """:func:`table_adam` as an optimiser over tables; ``step`` clears the gradients as it goes.

    Leave out ``zero_grad``, or call it with ``set_to_none=False``: a gradient that is kept saves its allocation.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-15,
    ) -> None:
        if lr < 0 or not 0 <= betas[0] < 1 or not 0 <= betas[1] < 1 or eps < 0:
            raise ValueError(f"TableAdam: needs lr >= 0, 0 <= betas < 1, eps >= 0, got {lr}, {betas}, {eps}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                state = self.state[table]
                if not state:
                    state["mean"], state["square"] = torch.zeros_like(table), torch.zeros_like(table)
                    state["steps"] = torch.zeros(len(table), dtype=torch.int32, device=table.device)
                table_adam(
                    table,
                    table.grad,
                    state["mean"],
                    state["square"],
                    state["steps"],
                    lr=group["lr"],
                    betas=group["betas"],
                    eps=group["eps"],
                )
        return loss
