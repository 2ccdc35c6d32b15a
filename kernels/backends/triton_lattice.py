"""triton backend of the differences between lattice neighbours.

Not verified on a GPU. Spacings and thresholds are compiled in. Gradients gather and results are always the same.
Memory beyond inputs and outputs: copies of inputs that are not contiguous, and 8 or 16 bytes for every TILE voxels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .triton_lattice_access import TILE, computed_in, in_triton, is_wide, three
from .triton_lattice_kernels import (
    jacobian_backward_kernel,
    jacobian_forward_kernel,
    matrices_backward_kernel,
    matrices_forward_kernel,
)
from .triton_lattice_smoothness import (
    bending_backward_kernel,
    bending_forward_kernel,
    diffusion_backward_kernel,
    diffusion_forward_kernel,
)
from .triton_plan import on_device, parts


def _tile(tensor: Tensor, elements: int) -> dict[str, Any]:
    return {"TILE": TILE, "WIDE": is_wide(elements), "ACC": in_triton(computed_in(tensor))}


def _inverse(spacing: list[float], power: int = 1) -> list[float]:
    return [1.0] * (3 - len(spacing)) + [1 / step**power for step in spacing]


def _sums(programs: int, like: Tensor) -> tuple[Tensor, Tensor]:
    empty = torch.empty(2, programs, dtype=torch.float64, device=like.device)
    return empty[0], empty[1].view(torch.int64)


def _mean(sums: Tensor, folds: Tensor, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    return (sums.sum() / max(count, 1)).to(computed_in(like)), folds.sum()


def _jacobian_options(
    u: Tensor, spacing: list[float], scheme: str, penalty: str, threshold: float
) -> dict[str, Any]:
    s0, s1, s2 = _inverse(spacing)
    options = {"S0": s0, "S1": s1, "S2": s2, "D": u.ndim - 2, "SCHEME": scheme}
    return options | {"PENALTY": penalty, "THRESHOLD": float(threshold)} | _tile(u, u.numel())


def _jacobian_forward(
    u: Tensor, out: Tensor | None, spacing: list[float], scheme: str, penalty: str, threshold: float
) -> tuple[Tensor, Tensor]:
    """Fills `out`, or returns sums and folds."""
    total = u.shape[0] * math.prod(u.shape[2:])
    programs = parts(total, TILE)
    with on_device(u):
        u = u.contiguous()
        sums, folds = _sums(programs if out is None else 0, u)
        if total:
            jacobian_forward_kernel[(programs,)](
                *(u, sums if out is None else out, sums, folds, total, *three(u.shape[2:])),
                **_jacobian_options(u, spacing, scheme, penalty, threshold),
            )
    return sums, folds


def _jacobian_backward(
    grad: Tensor, u: Tensor, spacing: list[float], scheme: str, penalty: str, threshold: float
) -> Tensor:
    out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    total = u.shape[0] * math.prod(u.shape[2:])
    if total:
        with on_device(u):
            u, grad = u.contiguous(), grad.contiguous()
            jacobian_backward_kernel[(parts(total, TILE),)](
                *(u, grad, out, total, *three(u.shape[2:])),
                **_jacobian_options(u, spacing, scheme, penalty, threshold),
            )
    return out


def jacobian_determinant_forward(displacement: Tensor, spacing: list[float], scheme: str) -> Tensor:
    out = displacement.new_empty([displacement.shape[0], *displacement.shape[2:]])
    _jacobian_forward(displacement, out, spacing, scheme, "none", 0.0)
    return out


def jacobian_determinant_backward(
    grad: Tensor, displacement: Tensor, spacing: list[float], scheme: str
) -> Tensor:
    return _jacobian_backward(grad, displacement, spacing, scheme, "none", 0.0)


def jacobian_loss_forward(
    displacement: Tensor, spacing: list[float], scheme: str, penalty: str, threshold: float
) -> tuple[Tensor, Tensor]:
    sums, folds = _jacobian_forward(displacement, None, spacing, scheme, penalty, threshold)
    count = displacement.shape[0] * math.prod(displacement.shape[2:])
    return _mean(sums, folds, count, displacement)


def jacobian_loss_backward(
    grad: Tensor, displacement: Tensor, spacing: list[float], scheme: str, penalty: str, threshold: float
) -> Tensor:
    return _jacobian_backward(grad, displacement, spacing, scheme, penalty, threshold)


def _matrix_options(jacobians: Tensor, penalty: str, threshold: float) -> dict[str, Any]:
    options = {"D": jacobians.shape[-1], "PENALTY": penalty, "THRESHOLD": float(threshold)}
    return options | _tile(jacobians, jacobians.numel())


def jacobian_penalty_forward(jacobians: Tensor, penalty: str, threshold: float) -> tuple[Tensor, Tensor]:
    count = len(jacobians)
    programs = parts(count, TILE)
    with on_device(jacobians):
        jacobians = jacobians.contiguous()
        sums, folds = _sums(programs, jacobians)
        if count:
            options = _matrix_options(jacobians, penalty, threshold)
            matrices_forward_kernel[(programs,)](jacobians, sums, folds, count, **options)
        return _mean(sums, folds, count, jacobians)


def jacobian_penalty_backward(grad: Tensor, jacobians: Tensor, penalty: str, threshold: float) -> Tensor:
    out = torch.empty(jacobians.shape, dtype=jacobians.dtype, device=jacobians.device)
    if len(jacobians):
        with on_device(jacobians):
            options = _matrix_options(jacobians, penalty, threshold)
            programs = parts(len(jacobians), TILE)
            matrices_backward_kernel[(programs,)](
                jacobians.contiguous(), grad, out, len(jacobians), **options
            )
    return out


def diffusion_weights(
    sizes: list[int], fields: int, spacing: list[float]
) -> tuple[list[int], dict[str, float]]:
    """Numbers of differences along z, y and x, and the factors of their weights."""
    n, axes = three(sizes), len(sizes)
    counts = [fields * math.prod(n) // size * (size - 1) if size else 0 for size in n]
    return counts, {f"W{k}": s / axes for k, s in enumerate(_inverse(spacing, 2))}


def _bending_weights(
    sizes: list[int], fields: int, spacing: list[float]
) -> tuple[list[int], dict[str, float]]:
    """Numbers of pure and of mixed differences, and the factors of their weights; a mixed one counts twice."""
    n, s = three(sizes), _inverse(spacing, 2)
    counts, factors = [], {}
    for k in range(3):
        a, b = (k + 1) % 3, (k + 2) % 3
        counts.append(fields * n[a] * n[b] * max(n[k] - 2, 0))
        factors[f"P{k}"] = s[k] * s[k]
        factors[f"M{k}"] = 2 * s[a] * s[b]
    for k in range(3):
        a, b = (k + 1) % 3, (k + 2) % 3
        counts.append(fields * n[k] * max(n[a] - 1, 0) * max(n[b] - 1, 0))
    return counts, factors


_SMOOTHNESS = {
    "diffusion": (diffusion_weights, diffusion_forward_kernel, diffusion_backward_kernel),
    "bending": (_bending_weights, bending_forward_kernel, bending_backward_kernel),
}


def _smoothness_forward(name: str, u: Tensor, spacing: list[float]) -> Tensor:
    weights, kernel, _ = _SMOOTHNESS[name]
    counts, factors = weights(list(u.shape[2:]), u.shape[0] * u.shape[1], spacing)
    programs = parts(u.numel(), TILE)
    with on_device(u):
        sums, _ = _sums(programs, u)
        if u.numel():
            kernel[(programs,)](
                *(u.contiguous(), sums, u.numel(), *three(u.shape[2:]), *counts),
                **factors,
                **_tile(u, u.numel()),
            )
        return sums.sum().to(computed_in(u))


def _smoothness_backward(name: str, grad: Tensor, u: Tensor, spacing: list[float]) -> Tensor:
    weights, _, kernel = _SMOOTHNESS[name]
    counts, factors = weights(list(u.shape[2:]), u.shape[0] * u.shape[1], spacing)
    out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    if u.numel():
        with on_device(u):
            kernel[(parts(u.numel(), TILE),)](
                *(u.contiguous(), grad, out, u.numel(), *three(u.shape[2:]), *counts),
                **factors,
                **_tile(u, u.numel()),
            )
    return out


def diffusion_loss_forward(displacement: Tensor, spacing: list[float]) -> Tensor:
    return _smoothness_forward("diffusion", displacement, spacing)


def diffusion_loss_backward(grad: Tensor, displacement: Tensor, spacing: list[float]) -> Tensor:
    return _smoothness_backward("diffusion", grad, displacement, spacing)


def bending_loss_forward(displacement: Tensor, spacing: list[float]) -> Tensor:
    return _smoothness_forward("bending", displacement, spacing)


def bending_loss_backward(grad: Tensor, displacement: Tensor, spacing: list[float]) -> Tensor:
    return _smoothness_backward("bending", grad, displacement, spacing)
