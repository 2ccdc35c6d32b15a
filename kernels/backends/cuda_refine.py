"""The CUDA backend's steps of Adam: on a dense displacement, and on the rows of a feature table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import cuda, registry
from .cpu import address
from .cuda_encoding import run


def refine_step(
    displacement: Tensor,
    fixed: Tensor,
    moving: Tensor,
    mean: Tensor,
    square: Tensor,
    largest: Tensor,
    step: Tensor,
    work: Tensor,
    window: list[int],
    regularisation: float,
    lr: float,
    betas: list[float],
    eps: float,
    amsgrad: bool,
) -> Tensor:
    """In place; every tensor contiguous and of one dtype, as RefineState holds them.

    The step is counted on the device, so that a CUDA graph can capture the call; the graph keeps ``lr``. Scratch
    beyond the state, of one item: a copy of the displacement and three images.
    """
    batch, channels = fixed.shape[:2]
    sizes = (list(fixed.shape[2:]), list(moving.shape[2:]))
    module = cuda._loaded()
    shape = module.RefineShape(batch, channels, *sizes, window, regularisation, lr, *betas, eps)
    energy = displacement.new_empty(batch, dtype=torch.float64)
    device, _ = cuda._where(displacement)
    size = module.refine_scratch(shape, displacement.element_size(), device)
    scratch = displacement.new_empty(size, dtype=torch.uint8)
    buffers = (mean, square, largest if amsgrad else None, step, work, energy, scratch)
    tensors = (fixed, moving, displacement, *buffers)
    run("refine_step", displacement, shape, *(address(tensor) for tensor in tensors))
    return energy


def table_adam(
    table: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    steps: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """In place; every tensor contiguous, as the public function has checked."""
    addresses = (address(tensor) for tensor in (table, grad, mean, square, steps))
    run("table_adam", table, *table.shape, lr, beta1, beta2, eps, *addresses)


FUNCTIONS: dict[str, Callable[..., Any]] = {"refine": refine_step, "table_adam": table_adam}

if cuda.module is not None:
    for _op, _function in FUNCTIONS.items():
        registry.register(_op, "cuda", _function, verified=False)
