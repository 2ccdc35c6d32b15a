"""Where a program stands on a lattice, and how it reads and writes there.

A plane is a volume of one slice: kernels name axes z, y and x, and two dimensions have a z of size 1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import registry

# Elements of a tile. The interpreter pays by the program, not by the element.
TILE = 16384 if registry.interpreted else 128


def computed_in(*tensors: Tensor) -> torch.dtype:
    """The common type of tensors, at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def in_triton(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def three(sizes: list[int] | torch.Size) -> list[int]:
    """Sizes along z, y and x."""
    return [1] * (3 - len(sizes)) + list(sizes)


def is_wide(elements: int) -> bool:
    """Whether offsets need 64 bits; a tile may look past the end."""
    return elements >= 2**31 - 2**16


@triton.jit
def whole(n):
    """A size as a number of the kernel: sizes of 1 arrive as constants."""
    return tl.full((), 0, tl.int32) + n


@triton.jit
def elements(block, TILE: tl.constexpr, WIDE: tl.constexpr):
    """Numbers of the elements in a block, in 64 bits where 32 do not hold them."""
    if WIDE:
        block = block.to(tl.int64)
    return block * TILE + tl.arange(0, TILE)


@triton.jit
def read(pointer, offsets, exists, ACC: tl.constexpr):
    """Values in the type that is computed in, 0 where they do not exist. By way of float32, which holds every half
    type."""
    values = tl.load(pointer + offsets, mask=exists, other=0.0)
    if values.dtype != tl.float64:
        values = values.to(tl.float32)
    return values.to(ACC)


@triton.jit
def number(pointer, ACC: tl.constexpr):
    """A single value in the type that is computed in."""
    value = tl.load(pointer)
    if value.dtype != tl.float64:
        value = value.to(tl.float32)
    return value.to(ACC)


@triton.jit
def write(pointer, offsets, values, exists):
    """Stores values in the pointer's type."""
    if pointer.dtype.element_ty != tl.float64:
        values = values.to(tl.float32)
    tl.store(pointer + offsets, values.to(pointer.dtype.element_ty), mask=exists)
