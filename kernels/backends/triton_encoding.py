"""triton backend of the encodings: hash grids, latent volumes and Fourier features as launches.

Not verified on a GPU. Gradients of tables and volumes are scattered by atomics, whose order is not fixed; with
``torch.use_deterministic_algorithms(True)`` whole numbers are summed instead, whose sum has no order: units of 2^-62
of what n points can add up to at most, so float32 loses nothing, and float64 keeps some 13 digits of the largest
entry at 10^6 points. A gradient that is not finite makes that whole table NaN there. Everything else is gathered.

Memory beyond inputs and outputs: the table's gradient in float32 where the table is a half type; in deterministic
mode 8 bytes an entry; ndim x frequencies numbers for each of at most PROGRAMS programs in ``fourier_encode``'s
backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from neuralreg.kernels.spec import HashGrid

from . import registry
from .triton_encoding_kernels import (
    fourier_backward_matrix,
    fourier_backward_x,
    fourier_forward,
    grid_backward,
    grid_forward,
)
from .triton_plan import on_device, parts, power_of_two

# Elements of a tile. The interpreter pays by the program, not by the element.
TILE = 4096 if registry.interpreted else 256
PROGRAMS = 4 if registry.interpreted else 256


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def in_triton(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


class Rows(NamedTuple):
    """Features of points: (1, n, width) values, or (1 + ndim, n, width) with tangents, from a column on."""

    tensor: Tensor
    column: int = 0

    @property
    def jet(self) -> bool:
        return self.tensor.shape[0] > 1

    @property
    def start(self) -> Tensor:
        return self.tensor[0, 0, self.column :]

    @property
    def strides(self) -> tuple[int, int]:
        """Of a point, and of a plane."""
        return self.tensor.stride(1), self.tensor.stride(0)

    def largest(self, width: int) -> Tensor:
        """The largest magnitude of every plane."""
        columns = self.tensor[..., self.column : self.column + width]
        return torch.linalg.vector_norm(columns, math.inf, (1, 2)).double()


class Levels(NamedTuple):
    """Grids over [-1, 1], read by the same kernels: the levels of a hash grid, or one volume (C, *size)."""

    levels: int
    features: int
    sizes: tuple[int, ...]
    starts: tuple[int, ...]
    dense: tuple[int, ...]
    table_size: int
    smooth: bool
    volume: tuple[int, int, int]
    strides: tuple[int, int]  # of an entry, of a feature
    finest: int

    @property
    def width(self) -> int:
        return self.levels * self.features

    def constants(self, x: Tensor, rows: Rows) -> dict[str, Any]:
        lanes = power_of_two(self.features)
        return {
            "SIZES": self.sizes,
            "STARTS": self.starts,
            "DENSE": self.dense,
            "TABLE_SIZE": self.table_size,
            "D": x.shape[1],
            "F": self.features,
            "F2": lanes,
            "JET": rows.jet,
            "SMOOTH": self.smooth,
            "BP": max(16, TILE // lanes),
            "ACC": in_triton(x.dtype),
        }


def levels_of(resolutions: list[int], features: int, table_size: int, smooth: bool, ndim: int) -> Levels:
    entries = [min(r**ndim, table_size) for r in resolutions]
    starts = tuple(sum(entries[:level]) for level in range(len(entries)))
    dense = tuple(int(r**ndim == e) for r, e in zip(resolutions, entries, strict=True))
    sizes, finest = tuple(resolutions), max(resolutions)
    return Levels(
        len(sizes), features, sizes, starts, dense, table_size, smooth, (1, 1, 1), (features, 1), finest
    )


def levels_of_grid(grid: HashGrid, ndim: int) -> Levels:
    smooth = grid.interpolation == "smoothstep"
    return levels_of(list(grid.resolutions), grid.features, 1 << grid.log2_table_size, smooth, ndim)


def levels_of_volume(volume: Tensor) -> Levels:
    """Of a contiguous volume."""
    channels, *size = volume.shape
    voxels = math.prod(size)
    s0, s1, s2 = *size, *[1] * (3 - len(size))
    return Levels(1, channels, (), (), (), 0, False, (s0, s1, s2), (1, voxels), max(size))


class Scatter:
    """Where the gradient of a table is collected, call by call."""

    def __init__(self, table: Tensor) -> None:
        self.fixed = torch.are_deterministic_algorithms_enabled()
        self.total = torch.zeros(table.shape, dtype=wide(table.dtype), device=table.device)

    def add(self, launch: Callable[[Tensor, Tensor], None], rows: Rows, levels: Levels) -> None:
        """``launch(target, scale)`` adds to the target, in units of 1 / scale where whole numbers are summed."""
        if not self.fixed:
            launch(self.total, self.total)
            return
        # The weights of a point sum to 1, the magnitudes of their slopes along an axis to less than 1.5 R.
        bound = rows.largest(levels.width)
        bound[1:] *= 1.5 * levels.finest
        bound = bound.sum() * rows.tensor.shape[1]
        scale = torch.where(bound.isfinite(), 2.0**62 / bound.clamp(min=1e-280), math.nan)
        units = torch.zeros(self.total.shape, dtype=torch.int64, device=self.total.device)
        launch(units, scale)
        self.total += (units.double() / scale).to(self.total.dtype)


def grid_values(x: Tensor, table: Tensor, out: Rows, levels: Levels) -> None:
    """Fills `out` at contiguous x (n, ndim) with the features of a contiguous table or volume."""
    constants = levels.constants(x, out)
    grid_forward[(parts(x.shape[0], constants["BP"]), levels.levels)](
        *(x, table, out.start, x.shape[0], *out.strides, *levels.volume, *levels.strides), **constants
    )


def grid_gradients(
    x: Tensor, table: Tensor, grad: Rows, levels: Levels, grad_x: Tensor | None, scatter: Scatter | None
) -> None:
    """Adds to grad_x (n, ndim), and to the table's gradient, from the gradient of the features."""
    constants = levels.constants(x, grad)
    group = 1 if grad_x is None else levels.levels
    to_x = x if grad_x is None else grad_x

    def launch(target: Tensor, scale: Tensor) -> None:
        grid_backward[(parts(x.shape[0], constants["BP"]), levels.levels // group)](
            *(x, table, grad.start, to_x, target, scale, x.shape[0], *grad.strides),
            *(*levels.volume, *levels.strides, group),
            WANT_X=grad_x is not None,
            WANT_TABLE=scatter is not None,
            FIXED=scatter is not None and scatter.fixed,
            **constants,
        )

    if scatter is None:
        launch(x, x)
    else:
        scatter.add(launch, grad, levels)


def fourier_constants(x: Tensor, matrix: Tensor, rows: Rows, scale: float) -> dict[str, Any]:
    lanes = min(64, power_of_two(matrix.shape[1]))
    return {
        "SCALE": scale,
        "D": x.shape[1],
        "JET": rows.jet,
        "BP": TILE // lanes,
        "BF": lanes,
        "ACC": in_triton(x.dtype),
    }


def fourier_values(x: Tensor, matrix: Tensor, scale: float, out: Rows) -> None:
    """Fills `out` with [sin(scale x B), cos(scale x B)]; x and B are contiguous."""
    constants = fourier_constants(x, matrix, out, scale)
    frequencies = matrix.shape[1]
    fourier_forward[(parts(x.shape[0], constants["BP"]), parts(frequencies, constants["BF"]))](
        *(x, matrix, out.start, x.shape[0], *out.strides, frequencies), **constants
    )


def fourier_gradients(
    x: Tensor, matrix: Tensor, scale: float, grad: Rows, grad_x: Tensor | None, grad_matrix: Tensor | None
) -> None:
    """Adds to grad_x (n, ndim) and grad_matrix (ndim, frequencies)."""
    constants = fourier_constants(x, matrix, grad, scale)
    n, (ndim, frequencies) = x.shape[0], matrix.shape
    blocks = parts(n, constants["BP"])
    if grad_x is not None:
        fourier_backward_x[(blocks,)](
            *(x, matrix, grad.start, grad_x, n, *grad.strides, frequencies), **constants
        )
    if grad_matrix is not None:
        programs = min(blocks, PROGRAMS)
        partial = torch.empty(programs, ndim, frequencies, dtype=grad_matrix.dtype, device=x.device)
        fourier_backward_matrix[(programs, parts(frequencies, constants["BF"]))](
            *(x, matrix, grad.start, partial, n, *grad.strides, frequencies), **constants
        )
        grad_matrix += partial.sum(0)


def hash_encode_forward(
    x: Tensor, table: Tensor, resolutions: list[int], table_size: int, smooth: bool
) -> Tensor:
    levels = levels_of(resolutions, table.shape[1], table_size, smooth, x.shape[1])
    out = torch.empty(x.shape[0], levels.width, dtype=x.dtype, device=x.device)
    if len(x):
        with on_device(x):
            grid_values(x.contiguous(), table.contiguous(), Rows(out[None]), levels)
    return out


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
    nothing = x.new_empty(0)
    with on_device(x):
        grad_x = torch.zeros(x.shape, dtype=wide(x.dtype), device=x.device) if want_x else None
        scatter = Scatter(table) if want_table else None
        if len(x) and (want_x or want_table):
            levels = levels_of(resolutions, table.shape[1], table_size, smooth, x.shape[1])
            rows = Rows(grad.contiguous()[None])
            grid_gradients(x.contiguous(), table.contiguous(), rows, levels, grad_x, scatter)
        to_x = nothing if grad_x is None else grad_x.to(x.dtype)
        return to_x, nothing if scatter is None else scatter.total.to(table.dtype)


def fourier_encode_forward(x: Tensor, matrix: Tensor, scale: float) -> Tensor:
    out = torch.empty(x.shape[0], 2 * matrix.shape[1], dtype=x.dtype, device=x.device)
    if out.numel():
        with on_device(x):
            fourier_values(x.contiguous(), matrix.contiguous(), scale, Rows(out[None]))
    return out


def fourier_encode_backward(
    grad: Tensor, x: Tensor, matrix: Tensor, scale: float, want_x: bool, want_matrix: bool
) -> tuple[Tensor, Tensor]:
    nothing = x.new_empty(0)
    with on_device(x):
        grad_x = torch.zeros(x.shape, dtype=wide(x.dtype), device=x.device) if want_x else None
        grad_matrix = torch.zeros(matrix.shape, dtype=wide(x.dtype), device=x.device) if want_matrix else None
        if len(x) and matrix.shape[1]:
            rows = Rows(grad.contiguous()[None])
            fourier_gradients(x.contiguous(), matrix.contiguous(), scale, rows, grad_x, grad_matrix)
        to_x = nothing if grad_x is None else grad_x.to(x.dtype)
        return to_x, nothing if grad_matrix is None else grad_matrix.to(matrix.dtype)
