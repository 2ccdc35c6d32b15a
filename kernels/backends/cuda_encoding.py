"""The CUDA backend's encodings. Half types are computed in float32 and converted back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import cuda, registry
from .cpu import address


def run(name: str, like: Tensor, *arguments: Any) -> None:
    """Launch the module's function for the dtype of ``like``, on its device and torch's stream there."""
    getattr(cuda._loaded(), name + cuda._SUFFIX[like.dtype])(*arguments, *cuda._where(like))


def aligned(*tensors: Tensor) -> list[Tensor]:
    """The tensors in their common type, at least float32, contiguous, where vector loads may begin."""
    return [t if t.data_ptr() % 16 == 0 else t.clone() for t in cuda._computing(*tensors)]


def scatter(grid: Any, x: Tensor, grad: Tensor, strides: tuple[int, int, int, int], into: Tensor) -> None:
    """Add the gradient of a grid's table or of a volume to ``into``.

    ``strides``: rows of a point in ``grad``, then what lies between two rows, features and points. With
    torch's deterministic algorithms the sum is one of 64-bit integers, whose buffer has eight bytes an element
    of ``into``.
    """
    fixed = largest = None
    if torch.are_deterministic_algorithms_enabled():
        fixed = torch.zeros(into.numel(), dtype=torch.int64, device=into.device)
        largest = fixed.new_empty(1)
    run(
        "grid_scatter",
        x,
        grid,
        x.shape[0],
        address(x),
        address(grad),
        *strides,
        address(into),
        address(fixed),
        address(largest),
    )


def hash_encode_forward(
    x: Tensor, table: Tensor, resolutions: list[int], table_size: int, smooth: bool
) -> Tensor:
    dtype = x.dtype
    x, table = aligned(x, table)
    grid = cuda._loaded().feature_grid(x.shape[1], resolutions, table.shape[1], table_size, smooth)
    encoded = x.new_empty(x.shape[0], len(resolutions) * table.shape[1])
    run("grid_encode", x, grid, x.shape[0], address(x), address(table), address(encoded))
    return encoded.to(dtype)


def hash_encode_backward(
    grad: Tensor,
    x: Tensor,
    table: Tensor,
    resolutions: list[int],
    table_size: int,
    smooth: bool,
    want_x: bool,
    want_table: bool,
) -> tuple[Tensor, Tensor]:
    dtype = x.dtype
    x, table, grad = aligned(x, table, grad)
    grid = cuda._loaded().feature_grid(x.shape[1], resolutions, table.shape[1], table_size, smooth)
    strides = (1, 0, 1, grad.shape[1])
    grad_x, grad_table = x.new_empty(0), x.new_empty(0)
    if want_table:
        grad_table = torch.zeros_like(table)
        scatter(grid, x, grad, strides, grad_table)
    if want_x:
        grad_x = torch.empty_like(x)
        arguments = (address(x), address(table), address(grad), *strides, address(grad_x), False)
        run("grid_gradient_x", x, grid, x.shape[0], *arguments)
    return grad_x.to(dtype), grad_table.to(dtype)


def fourier_encode_forward(x: Tensor, matrix: Tensor, scale: float) -> Tensor:
    dtype = x.dtype
    x, matrix = cuda._computing(x, matrix)
    shape = cuda._loaded().FourierShape(*matrix.shape, scale)
    encoded = x.new_empty(x.shape[0], 2 * matrix.shape[1])
    run("fourier_encode_forward", x, shape, x.shape[0], address(x), address(matrix), address(encoded))
    return encoded.to(dtype)


def fourier_encode_backward(
    grad: Tensor, x: Tensor, matrix: Tensor, scale: float, want_x: bool, want_matrix: bool
) -> tuple[Tensor, Tensor]:
    dtype = x.dtype
    x, matrix, grad = cuda._computing(x, matrix, grad)
    shape = cuda._loaded().FourierShape(*matrix.shape, scale)
    grad_x = torch.empty_like(x) if want_x else None
    grad_matrix = torch.empty_like(matrix) if want_matrix else None
    size = cuda._loaded().fourier_encode_scratch(shape, x.shape[0], x.element_size()) if want_matrix else 0
    scratch = x.new_empty(size, dtype=torch.uint8)
    arguments = (address(x), address(matrix), address(grad), address(grad_x), address(grad_matrix))
    run("fourier_encode_backward", x, shape, x.shape[0], *arguments, address(scratch))
    none = x.new_empty(0)
    return (
        (none if grad_x is None else grad_x).to(dtype),
        (none.clone() if grad_matrix is None else grad_matrix).to(dtype),
    )


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "hash_encode": hash_encode_forward,
    "hash_encode_forward": hash_encode_forward,
    "hash_encode_backward": hash_encode_backward,
    "fourier_encode": fourier_encode_forward,
    "fourier_encode_forward": fourier_encode_forward,
    "fourier_encode_backward": fourier_encode_backward,
}

if cuda.module is not None:
    for _op, _function in FUNCTIONS.items():
        registry.register(_op, "cuda", _function, verified=False)
