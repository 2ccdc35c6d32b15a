"""cpu backend of the differences between lattice neighbours. Half types are computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native, registry
from .cpu import address, function, output, threads

_SCHEME = {"forward": 0, "backward": 1, "central": 2}
_PENALTY = {"relu": 0, "unit": 1}


def _wide(tensor: Tensor) -> Tensor:
    """Contiguous, at least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).contiguous()


def _lattice_shape(u: Tensor, spacing: list[float], scheme: str = "forward") -> object:
    return native.load_cpu().LatticeShape(u.shape[0], u.shape[1], list(u.shape[2:]), spacing, _SCHEME[scheme])


def jacobian_determinant_forward(displacement: Tensor, spacing: list[float], scheme: str) -> Tensor:
    u = _wide(displacement)
    out = output([u.shape[0], *u.shape[2:]], u.dtype)
    run = function("jacobian_determinant_forward", u.dtype)
    run(_lattice_shape(u, spacing, scheme), address(u), address(out), threads())
    return out.to(displacement.dtype)


def jacobian_determinant_backward(
    grad: Tensor, displacement: Tensor, spacing: list[float], scheme: str
) -> Tensor:
    u = _wide(displacement)
    upstream = grad.to(u.dtype).contiguous()
    grad_u = output(u.shape, u.dtype)
    run = function("jacobian_determinant_backward", u.dtype)
    run(_lattice_shape(u, spacing, scheme), address(upstream), address(u), address(grad_u), threads())
    return grad_u.to(displacement.dtype)


def jacobian_loss_forward(
    displacement: Tensor, spacing: list[float], scheme: str, penalty: str, threshold: float
) -> tuple[Tensor, Tensor]:
    u = _wide(displacement)
    run = function("jacobian_loss_forward", u.dtype)
    shape = _lattice_shape(u, spacing, scheme)
    value, folds = run(shape, _PENALTY[penalty], threshold, address(u), threads())
    return u.new_tensor(value), torch.tensor(folds)


def jacobian_loss_backward(
    grad: Tensor, displacement: Tensor, spacing: list[float], scheme: str, penalty: str, threshold: float
) -> Tensor:
    u = _wide(displacement)
    grad_u = output(u.shape, u.dtype)
    run = function("jacobian_loss_backward", u.dtype)
    shape = _lattice_shape(u, spacing, scheme)
    run(shape, _PENALTY[penalty], threshold, grad.item(), address(u), address(grad_u), threads())
    return grad_u.to(displacement.dtype)


def jacobian_penalty_forward(jacobians: Tensor, penalty: str, threshold: float) -> tuple[Tensor, Tensor]:
    j = _wide(jacobians)
    run = function("jacobian_penalty_forward", j.dtype)
    value, folds = run(j.shape[-1], len(j), _PENALTY[penalty], threshold, address(j), threads())
    return j.new_tensor(value), torch.tensor(folds)


def jacobian_penalty_backward(grad: Tensor, jacobians: Tensor, penalty: str, threshold: float) -> Tensor:
    j = _wide(jacobians)
    grad_j = output(j.shape, j.dtype)
    run = function("jacobian_penalty_backward", j.dtype)
    scale = grad.item()
    run(j.shape[-1], len(j), _PENALTY[penalty], threshold, scale, address(j), address(grad_j), threads())
    return grad_j.to(jacobians.dtype)


def _mean_forward(name: str, displacement: Tensor, spacing: list[float]) -> Tensor:
    u = _wide(displacement)
    value = function(name, u.dtype)(_lattice_shape(u, spacing), address(u), threads())
    return u.new_tensor(value)


def _mean_backward(name: str, grad: Tensor, displacement: Tensor, spacing: list[float]) -> Tensor:
    u = _wide(displacement)
    grad_u = output(u.shape, u.dtype)
    shape = _lattice_shape(u, spacing)
    function(name, u.dtype)(shape, grad.item(), address(u), address(grad_u), threads())
    return grad_u.to(displacement.dtype)


def diffusion_loss_forward(displacement: Tensor, spacing: list[float]) -> Tensor:
    return _mean_forward("diffusion_loss_forward", displacement, spacing)


def diffusion_loss_backward(grad: Tensor, displacement: Tensor, spacing: list[float]) -> Tensor:
    return _mean_backward("diffusion_loss_backward", grad, displacement, spacing)


def bending_loss_forward(displacement: Tensor, spacing: list[float]) -> Tensor:
    return _mean_forward("bending_loss_forward", displacement, spacing)


def bending_loss_backward(grad: Tensor, displacement: Tensor, spacing: list[float]) -> Tensor:
    return _mean_backward("bending_loss_backward", grad, displacement, spacing)


for _op in (
    jacobian_determinant_forward,
    jacobian_determinant_backward,
    jacobian_loss_forward,
    jacobian_loss_backward,
    jacobian_penalty_forward,
    jacobian_penalty_backward,
    diffusion_loss_forward,
    diffusion_loss_backward,
    bending_loss_forward,
    bending_loss_backward,
):
    registry.register(_op.__name__, "cpu", _op)
for _public in (
    *("jacobian_determinant", "jacobian_loss", "jacobian_penalty"),
    *("diffusion_loss", "bending_loss"),
):
    registry.register(_public, "cpu", globals()[_public + "_forward"])
