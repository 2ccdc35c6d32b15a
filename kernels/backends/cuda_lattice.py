"""The CUDA backend's differences between lattice neighbours. Half types are computed in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import cuda, registry
from .cpu import address
from .cuda_encoding import run

_SCHEME = {"forward": 0, "backward": 1, "central": 2}
_PENALTY = {"relu": 0, "unit": 1}


def _shape(u: Tensor, spacing: list[float], scheme: str = "forward") -> Any:
    return cuda._loaded().LatticeShape(u.shape[0], u.shape[1], list(u.shape[2:]), spacing, _SCHEME[scheme])


def _scratch(like: Tensor, size: int) -> Tensor:
    return like.new_empty(size, dtype=torch.uint8)


def jacobian_determinant_forward(displacement: Tensor, spacing: list[float], scheme: str) -> Tensor:
    (u,) = cuda._computing(displacement)
    determinant = u.new_empty(u.shape[0], *u.shape[2:])
    run("jacobian_determinant_forward", u, _shape(u, spacing, scheme), address(u), address(determinant))
    return determinant.to(displacement.dtype)


def jacobian_determinant_backward(
    grad: Tensor, displacement: Tensor, spacing: list[float], scheme: str
) -> Tensor:
    (u,) = cuda._computing(displacement)
    upstream, grad_u = grad.to(u.dtype).contiguous(), torch.empty_like(u)
    addresses = (address(upstream), address(u), address(grad_u))
    run("jacobian_determinant_backward", u, _shape(u, spacing, scheme), *addresses)
    return grad_u.to(displacement.dtype)


def jacobian_loss_forward(
    displacement: Tensor, spacing: list[float], scheme: str, penalty: str, threshold: float
) -> tuple[Tensor, Tensor]:
    (u,) = cuda._computing(displacement)
    shape = _shape(u, spacing, scheme)
    value, folds = u.new_empty(()), u.new_empty((), dtype=torch.int64)
    scratch = _scratch(u, cuda._loaded().lattice_scratch(shape))
    addresses = (address(u), address(value), address(folds), address(scratch))
    run("jacobian_loss_forward", u, shape, _PENALTY[penalty], threshold, *addresses)
    return value, folds


def jacobian_loss_backward(
    grad: Tensor, displacement: Tensor, spacing: list[float], scheme: str, penalty: str, threshold: float
) -> Tensor:
    (u,) = cuda._computing(displacement)
    upstream, grad_u = grad.to(u.dtype), torch.empty_like(u)
    addresses = (address(upstream), address(u), address(grad_u))
    shape = _shape(u, spacing, scheme)
    run("jacobian_loss_backward", u, shape, _PENALTY[penalty], threshold, *addresses)
    return grad_u.to(displacement.dtype)


def jacobian_penalty_forward(jacobians: Tensor, penalty: str, threshold: float) -> tuple[Tensor, Tensor]:
    (j,) = cuda._computing(jacobians)
    value, folds = j.new_empty(()), j.new_empty((), dtype=torch.int64)
    scratch = _scratch(j, cuda._loaded().jacobian_penalty_scratch(len(j)))
    addresses = (address(j), address(value), address(folds), address(scratch))
    run("jacobian_penalty_forward", j, j.shape[-1], len(j), _PENALTY[penalty], threshold, *addresses)
    return value, folds


def jacobian_penalty_backward(grad: Tensor, jacobians: Tensor, penalty: str, threshold: float) -> Tensor:
    (j,) = cuda._computing(jacobians)
    upstream, grad_j = grad.to(j.dtype), torch.empty_like(j)
    addresses = (address(upstream), address(j), address(grad_j))
    run("jacobian_penalty_backward", j, j.shape[-1], len(j), _PENALTY[penalty], threshold, *addresses)
    return grad_j.to(jacobians.dtype)


def _mean_forward(name: str, displacement: Tensor, spacing: list[float]) -> Tensor:
    (u,) = cuda._computing(displacement)
    shape, value = _shape(u, spacing), u.new_empty(())
    scratch = _scratch(u, cuda._loaded().lattice_scratch(shape))
    run(name, u, shape, address(u), address(value), address(scratch))
    return value


def _mean_backward(name: str, grad: Tensor, displacement: Tensor, spacing: list[float]) -> Tensor:
    (u,) = cuda._computing(displacement)
    upstream, grad_u = grad.to(u.dtype), torch.empty_like(u)
    run(name, u, _shape(u, spacing), address(upstream), address(u), address(grad_u))
    return grad_u.to(displacement.dtype)


def diffusion_loss_forward(displacement: Tensor, spacing: list[float]) -> Tensor:
    return _mean_forward("diffusion_loss_forward", displacement, spacing)


def diffusion_loss_backward(grad: Tensor, displacement: Tensor, spacing: list[float]) -> Tensor:
    return _mean_backward("diffusion_loss_backward", grad, displacement, spacing)


def bending_loss_forward(displacement: Tensor, spacing: list[float]) -> Tensor:
    return _mean_forward("bending_loss_forward", displacement, spacing)


def bending_loss_backward(grad: Tensor, displacement: Tensor, spacing: list[float]) -> Tensor:
    return _mean_backward("bending_loss_backward", grad, displacement, spacing)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "jacobian_determinant": jacobian_determinant_forward,
    "jacobian_determinant_forward": jacobian_determinant_forward,
    "jacobian_determinant_backward": jacobian_determinant_backward,
    "jacobian_loss": jacobian_loss_forward,
    "jacobian_loss_forward": jacobian_loss_forward,
    "jacobian_loss_backward": jacobian_loss_backward,
    "jacobian_penalty": jacobian_penalty_forward,
    "jacobian_penalty_forward": jacobian_penalty_forward,
    "jacobian_penalty_backward": jacobian_penalty_backward,
    "diffusion_loss": diffusion_loss_forward,
    "diffusion_loss_forward": diffusion_loss_forward,
    "diffusion_loss_backward": diffusion_loss_backward,
    "bending_loss": bending_loss_forward,
    "bending_loss_forward": bending_loss_forward,
    "bending_loss_backward": bending_loss_backward,
}

if cuda.module is not None:
    for _op, _function in FUNCTIONS.items():
        registry.register(_op, "cuda", _function, verified=False)
