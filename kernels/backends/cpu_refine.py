"""cpu backend of the refinement of a dense displacement."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native, registry
from .cpu import address, function, threads
from .cpu_image import _lncc_shape, _sample_shape


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
    """In place; every tensor contiguous and of one dtype, as RefineState holds them."""
    energy = torch.zeros(len(displacement), dtype=torch.float64)
    step += 1
    sampling = _sample_shape(moving[:1], displacement.shape[2:], False, "bilinear", "zeros", True)
    similarity = _lncc_shape(fixed[:1], None, window, "same", True, 1e-5, "product", 0.0, 1e-6, False)
    rule = native.load_cpu().RefineRule(regularisation, lr, *betas, eps)
    function("refine_step", displacement.dtype)(
        sampling,
        similarity,
        rule,
        len(displacement),
        step.item(),
        *map(
            address, (fixed, moving, displacement, mean, square, largest if amsgrad else None, work, energy)
        ),
        threads(),
    )
    return energy


registry.register("refine", "cpu", refine_step)
