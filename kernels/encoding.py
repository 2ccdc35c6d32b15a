"""Encodings of coordinates: multi-resolution feature grids and Fourier features."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from .backends import registry
from .backends.reference import encoding as reference
from .ops import op
from .spec import HashGrid


@op("hash_encode_forward")
def _hash_forward(
    x: Tensor, table: Tensor, resolutions: list[int], table_size: int, smooth: bool, backend: str
) -> Tensor:
    return registry.implementation("hash_encode_forward", backend)(x, table, resolutions, table_size, smooth)


@_hash_forward.register_fake
def _(
    x: Tensor, table: Tensor, resolutions: list[int], table_size: int, smooth: bool, backend: str
) -> Tensor:
    return x.new_empty(x.shape[0], len(resolutions) * table.shape[1])


@op("hash_encode_backward")
def _hash_backward(
    grad: Tensor,
    x: Tensor,
    table: Tensor,
    resolutions: list[int],
    table_size: int,
    smooth: bool,
    want_x: bool,
    want_table: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    run = registry.implementation("hash_encode_backward", backend)
    return run(grad, x, table, resolutions, table_size, smooth, want_x, want_table)


@_hash_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    table: Tensor,
    resolutions: list[int],
    table_size: int,
    smooth: bool,
    want_x: bool,
    want_table: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if want_x else (0,)), x.new_empty(table.shape if want_table else (0,))


def _hash_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, table, ctx.resolutions, ctx.table_size, ctx.smooth, ctx.backend = inputs
    ctx.save_for_backward(x, table)


def _hash_grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, table = ctx.saved_tensors
    want_x, want_table = ctx.needs_input_grad[:2]
    grad_x, grad_table = _hash_backward(
        grad, x, table, ctx.resolutions, ctx.table_size, ctx.smooth, want_x, want_table, ctx.backend
    )
    return grad_x if want_x else None, grad_table if want_table else None, None, None, None, None


_hash_forward.register_autograd(_hash_grad, setup_context=_hash_setup)


def hash_encode(x: Tensor, table: Tensor, spec: HashGrid, *, backend: str | None = None) -> Tensor:
    """Multi-resolution grid encoding with linear or smoothstep interpolation (Mueller et al. 2022, Instant NGP).

    Args:
        x: (N, ndim) coordinates in [-1, 1], component k along tensor axis k; outside they are clamped (and have no
            gradient there). NaN counts as -1.
        table: (entries, features), the levels one after the other; see :class:`HashGrid` for their sizes. Dense levels
            are row-major with axis 0 slowest.
        spec: the grid.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        (N, levels * features), level-major. Differentiable once in x and table.

    Memory beyond inputs and outputs: a few kilobytes a thread.

    Raises:
        ValueError: a shape or dtype does not fit the spec.
    """
    check_points(x, "hash_encode")
    entries = sum(spec.entries(x.shape[1]))
    if table.shape != (entries, spec.features):
        raise ValueError(
            f"hash_encode: table must be {(entries, spec.features)} for this spec in {x.shape[1]}-D, "
            f"got {tuple(table.shape)}"
        )
    check_same_kind("hash_encode", x=x, table=table)
    chosen = registry.choose("hash_encode", x.device, backend)
    if chosen == "reference":
        return reference.hash_encode(x, table, spec)
    smooth = spec.interpolation == "smoothstep"
    return _hash_forward(x, table, list(spec.resolutions), 1 << spec.log2_table_size, smooth, chosen)


@op("fourier_encode_forward")
def _fourier_forward(x: Tensor, matrix: Tensor, scale: float, backend: str) -> Tensor:
    return registry.implementation("fourier_encode_forward", backend)(x, matrix, scale)


@_fourier_forward.register_fake
def _(x: Tensor, matrix: Tensor, scale: float, backend: str) -> Tensor:
    return x.new_empty(x.shape[0], 2 * matrix.shape[1])


@op("fourier_encode_backward")
def _fourier_backward(
    grad: Tensor, x: Tensor, matrix: Tensor, scale: float, want_x: bool, want_matrix: bool, backend: str
) -> tuple[Tensor, Tensor]:
    run = registry.implementation("fourier_encode_backward", backend)
    return run(grad, x, matrix, scale, want_x, want_matrix)


@_fourier_backward.register_fake
def _(
    grad: Tensor, x: Tensor, matrix: Tensor, scale: float, want_x: bool, want_matrix: bool, backend: str
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if want_x else (0,)), x.new_empty(matrix.shape if want_matrix else (0,))


def _fourier_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, matrix, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(x, matrix)


def _fourier_grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, matrix = ctx.saved_tensors
    want_x, want_matrix = ctx.needs_input_grad[:2]
    grad_x, grad_matrix = _fourier_backward(grad, x, matrix, ctx.scale, want_x, want_matrix, ctx.backend)
    return grad_x if want_x else None, grad_matrix if want_matrix else None, None, None


_fourier_forward.register_autograd(_fourier_grad, setup_context=_fourier_setup)


def fourier_encode(x: Tensor, B: Tensor, scale: float = math.pi, *, backend: str | None = None) -> Tensor:
    """Fourier features ``[sin(scale x B), cos(scale x B)]`` (Tancik et al. 2020; NIR uses pi, NePhi 2 pi).

    Args:
        x: (N, ndim) coordinates.
        B: (ndim, frequencies).
        scale: factor of the phase.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        (N, 2 * frequencies): all sines, then all cosines. Differentiable once in x and B.

    Memory beyond inputs and outputs: a few kilobytes a thread.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    check_points(x, "fourier_encode")
    if B.ndim != 2 or B.shape[0] != x.shape[1]:
        raise ValueError(f"fourier_encode: B must be ({x.shape[1]}, frequencies), got {tuple(B.shape)}")
    check_same_kind("fourier_encode", x=x, B=B)
    chosen = registry.choose("fourier_encode", x.device, backend)
    if chosen == "reference":
        return reference.fourier_encode(x, B, scale)
    return _fourier_forward(x, B, scale, chosen)


def check_points(x: Tensor, op: str) -> None:
    """Coordinates are (N, 2) or (N, 3) and floating."""
    if x.ndim != 2 or x.shape[1] not in (2, 3):
        raise ValueError(f"{op}: x must be (N, 2) or (N, 3), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{op}: x must be floating point, got {x.dtype}")


def check_same_kind(op: str, **tensors: Tensor) -> None:
    """All tensors share one dtype and one device."""
    (first_name, first), *rest = tensors.items()
    for name, tensor in rest:
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise ValueError(
                f"{op}: {name} ({tensor.dtype}, {tensor.device}) and {first_name} ({first.dtype}, {first.device}) "
                "must share dtype and device"
            )
