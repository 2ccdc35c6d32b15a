"""The steps of a flow and their adjoints, over a backend's warp, with a memory that does not grow with the steps."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .backends import registry

SCHEMES = ("squaring", "euler", "rk4")
CHECKPOINTS = 4  # intermediate fields that the backward pass holds


def forward(velocity: Tensor, steps: int, scheme: str, backend: str) -> Tensor:
    """What ``integrate`` documents."""
    v = velocity.to(torch.promote_types(velocity.dtype, torch.float32))
    u = _start(v, steps, scheme)
    for _ in range(steps):
        u = _step(u, v, steps, scheme, backend)
    return u.to(velocity.dtype)


def backward(grad: Tensor, velocity: Tensor, steps: int, scheme: str, backend: str) -> Tensor:
    """The gradient by the velocity.

    The fields before every step are wanted from the last to the first; some are kept, the others are computed
    again from the nearest one that is.
    """
    v = velocity.to(torch.promote_types(velocity.dtype, torch.float32))
    grad_u, grad_v = grad.to(v.dtype), torch.zeros_like(v)

    def advance(u: Tensor, count: int) -> Tensor:
        for _ in range(count):
            u = _step(u, v, steps, scheme, backend)
        return u

    def pull(u: Tensor, count: int, free: int) -> None:
        """Through ``count`` steps that begin at u; ``free`` more fields may be kept."""
        nonlocal grad_u
        while count > 0:
            split = _split(count, free)
            if split == 0:
                grad_u = _step_adjoint(grad_u, advance(u, count - 1), v, grad_v, steps, scheme, backend)
                count -= 1
            else:
                pull(advance(u, split), count - split, free - 1)
                count = split

    pull(_start(v, steps, scheme), steps, CHECKPOINTS)
    if scheme == "squaring":
        grad_v += grad_u / 2**steps
    return grad_v.to(velocity.dtype)


@functools.cache
def _work(count: int, free: int) -> int:
    """Least number of steps computed again on the way back through ``count`` steps."""
    if count <= 1:
        return 0
    if free == 0:
        return count * (count - 1) // 2
    return min(split + _work(count - split, free - 1) + _work(split, free) for split in range(1, count))


@functools.cache
def _split(count: int, free: int) -> int:
    """After how many steps to keep a field; 0 for not at all."""
    if count <= 1 or free == 0:
        return 0
    return min(range(1, count), key=lambda at: at + _work(count - at, free - 1) + _work(at, free))


def _start(v: Tensor, steps: int, scheme: str) -> Tensor:
    return v / 2**steps if scheme == "squaring" else torch.zeros_like(v)


def _read(field: Tensor, at: Tensor, backend: str) -> Tensor:
    """field(x + at), the border's values outside."""
    run = registry.implementation("sample_forward", backend)
    return run(field, at, None, False, "bilinear", "border", True, False)[0]


def _read_adjoint(grad: Tensor, field: Tensor, at: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Gradients by the field and by the place."""
    run = registry.implementation("sample_backward", backend)
    return run(grad, field, at, None, None, False, "bilinear", "border", True, True, True, False)[:2]


def _step(u: Tensor, v: Tensor, steps: int, scheme: str, backend: str) -> Tensor:
    if scheme == "squaring":
        return _read(u, u, backend).add_(u)
    h = 1 / steps
    if scheme == "euler":
        return _read(v, u, backend).mul_(h).add_(u)
    slopes = _slopes(u, v, h, backend)
    return sum((w * k for w, k in zip(_weights(h), slopes, strict=True)), start=u)


def _step_adjoint(
    grad: Tensor, u: Tensor, v: Tensor, grad_v: Tensor, steps: int, scheme: str, backend: str
) -> Tensor:
    """The gradient by the field before a step; what the velocity gets is added to ``grad_v``."""
    if scheme == "squaring":
        by_field, by_place = _read_adjoint(grad, u, u, backend)
        return by_field.add_(by_place).add_(grad)
    h = 1 / steps
    if scheme == "euler":
        by_velocity, by_place = _read_adjoint(h * grad, v, u, backend)
        grad_v += by_velocity
        return by_place.add_(grad)
    slopes, shifts = _slopes(u, v, h, backend), (0.0, h / 2, h / 2, h)
    grad_u, carried = grad.clone(), None
    for index in reversed(range(4)):
        by_slope = _weights(h)[index] * grad
        if carried is not None:
            by_slope += shifts[index + 1] * carried
        place = u + shifts[index] * slopes[index - 1] if index else u
        by_velocity, carried = _read_adjoint(by_slope, v, place, backend)
        grad_v += by_velocity
        grad_u += carried
    return grad_u


def _weights(h: float) -> tuple[float, ...]:
    return h / 6, h / 3, h / 3, h / 6


def _slopes(u: Tensor, v: Tensor, h: float, backend: str) -> list[Tensor]:
    """k1 ... k4 of Runge and Kutta's fourth-order step."""
    slopes = [_read(v, u, backend)]
    for shift in (h / 2, h / 2, h):
        slopes.append(_read(v, u + shift * slopes[-1], backend))
    return slopes
