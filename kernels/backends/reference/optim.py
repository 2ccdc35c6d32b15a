"""Optimiser steps of feature tables, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def table_adam(
    table: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    steps: Tensor,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """One step of Adam (Kingma and Ba, 2015) on the rows of ``table`` with a gradient; clears ``grad``."""
    first, second = betas
    rows = (grad != 0).any(1)
    g = grad[rows]
    steps[rows] += 1
    count = steps[rows].to(table.dtype)[:, None]
    mean[rows] = first * mean[rows] + (1 - first) * g
    square[rows] = second * square[rows] + (1 - second) * g * g
    size = (square[rows] / (1 - torch.pow(second, count))).sqrt()
    table[rows] -= lr / (1 - torch.pow(first, count)) * mean[rows] / (size + eps)
    grad.zero_()
