"""Adam in Triton, as csrc/math/adam.h has it, and table_adam: only rows with a gradient move.

Not verified on a GPU. Betas and eps are compiled in. Memory beyond the arguments: none.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from . import registry
from .triton_lattice_access import computed_in, elements, in_triton, is_wide, read, write
from .triton_plan import on_device, parts, power_of_two

TILE = 16384 if registry.interpreted else 1024


def bits_of(value: float) -> int:
    """A float64 as a whole number: as a float Triton would round it to float32."""
    return int.from_bytes(struct.pack("<d", value), "little", signed=True)


def rule(betas: tuple[float, float], eps: float) -> dict[str, Any]:
    """What is compiled in: the complements, the logarithms of the betas, eps."""
    logarithms = [math.log(beta) if beta > 0 else -1e9 for beta in betas]
    return {
        "FIRST": 1 - betas[0],
        "SECOND": 1 - betas[1],
        "KEEP": betas[1],
        "LOG1": logarithms[0],
        "LOG2": logarithms[1],
        "EPS": float(eps),
    }


@triton.jit
def rates(lr_bits, t, LOG1: tl.constexpr, LOG2: tl.constexpr, ACC: tl.constexpr):
    """lr / (1 - beta1^t) and sqrt(1 - beta2^t), by way of float64."""
    lr = (tl.full((), 0, tl.int64) + lr_bits).to(tl.float64, bitcast=True)
    t = t.to(tl.float64)
    return (lr / (1.0 - tl.exp(t * LOG1))).to(ACC), tl.sqrt(1.0 - tl.exp(t * LOG2)).to(ACC)


@triton.jit
def moments(gradient, mean, square, FIRST: tl.constexpr, SECOND: tl.constexpr, KEEP: tl.constexpr):
    return mean + FIRST * (gradient - mean), KEEP * square + SECOND * gradient * gradient


@triton.jit
def table_adam_kernel(
    table, grad, mean, square, steps, lr_bits, rows, features,
    FIRST: tl.constexpr, SECOND: tl.constexpr, KEEP: tl.constexpr, LOG1: tl.constexpr, LOG2: tl.constexpr,
    EPS: tl.constexpr, BR: tl.constexpr, F2: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    row = elements(tl.program_id(0), BR, WIDE)
    feature = tl.arange(0, F2)[None, :]
    at = row[:, None] * features + feature
    exists = (row < rows)[:, None] & (feature < features)
    g = read(grad, at, exists, ACC)
    touched = tl.max((g != 0).to(tl.int32), 1) != 0  # NaN counts
    step = tl.load(steps + row, mask=touched, other=0) + 1
    rate, root = rates(lr_bits, step, LOG1, LOG2, ACC)
    moved = exists & touched[:, None]
    m, s = moments(g, read(mean, at, moved, ACC), read(square, at, moved, ACC), FIRST, SECOND, KEEP)
    change = rate[:, None] * m / (tl.sqrt(s) / root[:, None] + EPS)
    write(table, at, read(table, at, moved, ACC) - change, moved)
    write(mean, at, m, moved)
    write(square, at, s, moved)
    write(grad, at, tl.zeros(g.shape, ACC), moved)
    tl.store(steps + row, step, mask=touched)


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
    rows, features = table.shape
    if table.numel() == 0:
        return
    lanes = power_of_two(features)
    block = max(1, TILE // lanes)
    with on_device(table):
        table_adam_kernel[(parts(rows, block),)](
            *(table, grad, mean, square, steps, bits_of(lr), rows, features),
            **rule((beta1, beta2), eps),
            BR=block,
            F2=lanes,
            WIDE=is_wide(table.numel()),
            ACC=in_triton(computed_in(table)),
        )
