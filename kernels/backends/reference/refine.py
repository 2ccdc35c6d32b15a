"""One step of Adam on a dense displacement for similarity and smoothness, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from .lncc import lncc
from .sampling import warp_with_gradient
from .smoothness import diffusion_loss


def energy(displacement: Tensor, fixed: Tensor, moving: Tensor, window: list[int], weight: float) -> Tensor:
    """-lncc(fixed, moving warped by the displacement) + weight * diffusion, of a batch as one."""
    # not warp: torch.func, which compiles, does not go through an autograd.Function
    warped, _ = warp_with_gradient(moving, displacement)
    return weight * diffusion_loss(displacement) - lncc(fixed, warped, window)


def refine_step(
    displacement: Tensor,
    fixed: Tensor,
    moving: Tensor,
    mean: Tensor,
    square: Tensor,
    largest: Tensor,
    step: Tensor,
    work: Tensor,
    window: list[int],
    regularisation: float,
    lr: float,
    betas: list[float],
    eps: float,
    amsgrad: bool,
) -> Tensor:
    """Changes displacement, Adam's moments and the step count in place; returns the energy (B,) before.

    Every item of the batch has an energy of its own and is refined by itself. ``work`` is not needed here.
    """

    def total(u: Tensor) -> tuple[Tensor, Tensor]:
        items = [
            energy(u[b : b + 1], fixed[b : b + 1], moving[b : b + 1], window, regularisation)
            for b in range(len(u))
        ]
        found = torch.stack(items) if items else u.sum((1, *range(2, u.ndim)))
        return found.sum(), found.detach().double()

    gradient, before = torch.func.grad(total, has_aux=True)(displacement.detach())
    step += 1
    mean.lerp_(gradient, 1 - betas[0])
    square.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    if amsgrad:
        torch.maximum(largest, square, out=largest)
    t = step.double()
    root = (1 - betas[1] ** t).sqrt().to(mean.dtype)
    rate = (lr / (1 - betas[0] ** t)).to(mean.dtype)
    displacement.sub_(rate * mean / ((largest if amsgrad else square).sqrt() / root + eps))
    return before
