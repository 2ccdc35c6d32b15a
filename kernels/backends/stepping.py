"""Flows of a stationary velocity field over a backend's value and jet kernels, forward and backward.

An explicit scheme whose stage s starts from ``p_s = x + h a_s k_(s-1)`` with ``k_s = v(p_s)`` and ends the step at
``x + h sum_s b_s k_s``: Euler, and the classical Runge-Kutta. A jet carries ``X = dx/dx_0`` along: ``P_s = X + h a_s
K_(s-1)`` with ``K_s = J_v(p_s) P_s``. The backwards are the adjoints of these lines, last stage first.

A backend brings its kernels as callables: the velocity's value or jet, and their backwards, which return the gradient
to the points and then those to the tensors (empty tensors for what nobody wants). Everything has the points' dtype.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from neuralreg.kernels.spec import Flow

Velocity = Callable[[Tensor], Tensor]  # p -> v
VelocityJet = Callable[[Tensor], tuple[Tensor, Tensor]]  # p -> v, J_v
Pullback = Callable[[Tensor, Tensor], list[Tensor]]  # gradient of v, p -> gradients to p and the tensors
JetPullback = Callable[[Tensor, Tensor, Tensor], list[Tensor]]  # gradients of v and J_v, p -> the same

_TABLEAU = {  # a_s, b_s
    "euler": ((0.0,), (1.0,)),
    "rk4": ((0.0, 1 / 2, 1 / 2, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


def forward(velocity: Velocity, x: Tensor, flow: Flow) -> Tensor:
    """The displacement of the flow's end from x (N, ndim). Memory beyond it: a step's positions, each of x's size."""
    _, moved = deque(_steps(velocity, x, flow), maxlen=1).pop()
    return moved


def backward(velocity: Velocity, pullback: Pullback, grad: Tensor, x: Tensor, flow: Flow) -> list[Tensor]:
    """The gradients of ``forward`` to x and to the tensors behind ``velocity``, for ``grad`` of its value.

    The positions of all stages are computed again and kept: steps x stages tensors of x's size.
    """
    h, (a, b) = flow.time / flow.steps, _TABLEAU[flow.scheme]
    steps = [positions for positions, _ in _steps(velocity, x, flow)]
    change, total = torch.zeros_like(x), _Sum()  # the gradient to a position is grad + change
    while steps:
        positions, upstream = steps.pop(), grad + change
        later = torch.zeros_like(x)  # h a_(s+1) times the gradient to the position after
        for s in reversed(range(len(positions))):
            to_position, *rest = pullback(h * b[s] * upstream + later, positions.pop())
            total.add(rest)
            change = change + to_position
            later = h * a[s] * to_position
    return [change, *total.of]


def jet_forward(jet: VelocityJet, x: Tensor, flow: Flow) -> tuple[Tensor, Tensor]:
    """``forward`` and its Jacobian (N, ndim, ndim). Memory beyond them: a step's stages, as in ``jet_backward``."""
    _, moved, bent = deque(_jet_steps(jet, x, flow), maxlen=1).pop()
    return moved, bent


def jet_backward(
    jet: VelocityJet, pullback: JetPullback, grad: Tensor, grad_jacobian: Tensor, x: Tensor, flow: Flow
) -> list[Tensor]:
    """The gradients of ``jet_forward`` to x and to the tensors behind ``jet``, for those of its two results.

    Every stage is computed again and keeps its position, tangents and velocity's Jacobian: ndim + 2 ndim^2 numbers a
    point.
    """
    h, (a, b) = flow.time / flow.steps, _TABLEAU[flow.scheme]
    steps = [stages for stages, _, _ in _jet_steps(jet, x, flow)]
    change, total = torch.zeros_like(x), _Sum()
    to_tangents = grad_jacobian
    while steps:
        stages, upstream, upstream_tangents = steps.pop(), grad + change, to_tangents
        later, later_tangents = torch.zeros_like(x), torch.zeros_like(grad_jacobian)
        for s in reversed(range(len(stages))):
            position, tangents, slope = stages.pop()
            to_product = h * b[s] * upstream_tangents + later_tangents
            to_position, *rest = pullback(
                h * b[s] * upstream + later, to_product @ tangents.transpose(1, 2), position
            )
            more = slope.transpose(1, 2) @ to_product
            total.add(rest)
            change, to_tangents = change + to_position, to_tangents + more
            later, later_tangents = h * a[s] * to_position, h * a[s] * more
    return [change, *total.of]


def _steps(velocity: Velocity, x: Tensor, flow: Flow) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Every step's stage positions, and the displacement at its end."""
    h, (a, b) = flow.time / flow.steps, _TABLEAU[flow.scheme]
    moved = torch.zeros_like(x)
    for _ in range(flow.steps):
        positions: list[Tensor] = []
        start, k = x + moved, x
        for stage, weight in zip(a, b, strict=True):
            positions.append(start + h * stage * k if stage else start)
            k = velocity(positions[-1])
            moved = moved + h * weight * k
        yield positions, moved


def _jet_steps(
    jet: VelocityJet, x: Tensor, flow: Flow
) -> Iterator[tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor, Tensor]]:
    """Every step's stages (position, tangents, Jacobian of the velocity), the displacement at its end and its own."""
    h, (a, b) = flow.time / flow.steps, _TABLEAU[flow.scheme]
    unit = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    moved, bent = torch.zeros_like(x), torch.zeros_like(unit).expand(len(x), -1, -1)
    for _ in range(flow.steps):
        stages: list[tuple[Tensor, Tensor, Tensor]] = []
        start, start_tangents = x + moved, unit + bent
        k, product = x, bent
        for stage, weight in zip(a, b, strict=True):
            position = start + h * stage * k if stage else start
            tangents = start_tangents + h * stage * product if stage else start_tangents
            k, slope = jet(position)
            product = slope @ tangents
            stages.append((position, tangents, slope))
            moved, bent = moved + h * weight * k, bent + h * weight * product
        yield stages, moved, bent


class _Sum:
    """Sums lists of gradients, one place after the other."""

    def __init__(self) -> None:
        self.of: list[Tensor] = []

    def add(self, more: list[Tensor]) -> None:
        if not self.of:
            self.of = more
        else:
            for sum_, term in zip(self.of, more, strict=True):
                sum_ += term
