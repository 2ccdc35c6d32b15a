"""Refinement of a dense displacement by Adam on the field itself: the inner loop of OFG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .backends import registry
from .backends.reference import refine as reference
from .lattice import check_displacement
from .windows import check_windows


@dataclass
class RefineState:
    """A refinement under way; `refine_state` makes one, `refine_step` moves it on.

    Attributes:
        displacement: (B, ndim, *spatial), what is refined, changed in place.
        fixed, moving: the images.
        mean, square, largest: Adam's first and second moment and, with amsgrad, the latter's maximum so far;
            like the displacement (largest is empty without amsgrad).
        step: number of steps made, int64 (1,).
        work: (2, 1, C, *spatial), the warped image of an item and the gradient by it; holds nothing between steps.
        window, regularisation, betas, eps, amsgrad: as in :func:`refine`; they stay.
        lr: may be changed between steps.
        backend: who computes.
    """

    displacement: Tensor
    fixed: Tensor
    moving: Tensor
    mean: Tensor
    square: Tensor
    largest: Tensor
    step: Tensor
    work: Tensor
    window: list[int]
    regularisation: float
    lr: float
    betas: list[float]
    eps: float
    amsgrad: bool
    backend: str


@torch.library.custom_op(
    "neuralreg::refine_step", mutates_args=("displacement", "mean", "square", "largest", "step", "work")
)
def _step(
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
    backend: str,
) -> Tensor:
    run = registry.implementation("refine", backend)
    buffers = (mean, square, largest, step, work)
    return run(displacement, fixed, moving, *buffers, window, regularisation, lr, betas, eps, amsgrad)


@_step.register_fake
def _(
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
    backend: str,
) -> Tensor:
    return displacement.new_empty(len(displacement), dtype=torch.float64)


def refine_state(
    displacement: Tensor,
    fixed: Tensor,
    moving: Tensor,
    lr: float = 0.1,
    window: int | Sequence[int] = 9,
    regularisation: float = 1.0,
    amsgrad: bool = True,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    *,
    backend: str | None = None,
) -> RefineState:
    """A refinement that has made no step yet, with all its buffers.

    The displacement is copied; contiguous images of its dtype are used as they are. Arguments, memory and
    errors as in :func:`refine`.
    """
    check_displacement("refine", displacement)
    ndim, dtype = displacement.shape[1], displacement.dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"refine: displacement must be float32 or float64, got {dtype}")
    for name, image in (("fixed", fixed), ("moving", moving)):
        if image.ndim != ndim + 2 or image.shape[:2] != fixed.shape[:2] or len(image) != len(displacement):
            raise ValueError(
                f"refine: {name} must be (B, C, *spatial) for the displacement {tuple(displacement.shape)}, "
                f"got {tuple(image.shape)}; fixed is {tuple(fixed.shape)}"
            )
        if image.dtype != dtype or image.device != displacement.device:
            raise ValueError(
                f"refine: {name} is {image.dtype} on {image.device}, "
                f"the displacement {dtype} on {displacement.device}"
            )
    if fixed.shape[2:] != displacement.shape[2:]:
        raise ValueError(
            f"refine: fixed and displacement must share their grid, got {tuple(fixed.shape[2:])} "
            f"and {tuple(displacement.shape[2:])}"
        )
    if moving.shape[2:].numel() >= 2**31:
        raise ValueError(f"refine: moving has 2^31 or more voxels a channel: {tuple(moving.shape)}")
    if moving.numel() == 0 and displacement.numel() > 0:
        raise ValueError(f"refine: moving is empty: {tuple(moving.shape)}")
    windows = check_windows("refine", fixed, fixed, window, "same", "mean")
    if not (lr >= 0 and regularisation >= 0 and eps >= 0 and all(0 <= beta < 1 for beta in betas)):
        raise ValueError(
            "refine: lr, regularisation and eps must be at least 0 and betas in [0, 1), got "
            f"lr={lr}, regularisation={regularisation}, eps={eps}, betas={tuple(betas)}"
        )
    u = displacement.detach().clone(memory_format=torch.contiguous_format)
    return RefineState(
        displacement=u,
        fixed=fixed.detach().contiguous(),
        moving=moving.detach().contiguous(),
        mean=torch.zeros_like(u),
        square=torch.zeros_like(u),
        largest=torch.zeros_like(u) if amsgrad else u.new_empty(0),
        step=torch.zeros(1, dtype=torch.int64, device=u.device),
        work=u.new_empty([2, 1, *fixed.shape[1:]]),
        window=windows,
        regularisation=float(regularisation),
        lr=float(lr),
        betas=[float(beta) for beta in betas],
        eps=float(eps),
        amsgrad=amsgrad,
        backend=registry.choose("refine", displacement.device, backend),
    )


def refine_step(state: RefineState) -> Tensor:
    """One step of :func:`refine`, in place.

    Returns:
        The energy (B,) of every item's displacement before the step, float64.

    The cuda backend counts the step on the device, so that a CUDA graph can capture the call; the graph keeps the
    ``lr`` of its capture.

    Memory beyond the state, given back: on the cpu backend two planes of the displacement a thread, and the slabs
    of :func:`lncc`'s gradient; on cuda, of one item, a copy of the displacement and three images.
    """
    options = (state.window, state.regularisation, state.lr, state.betas, state.eps, state.amsgrad)
    tensors = (
        *(state.displacement, state.fixed, state.moving),
        *(state.mean, state.square, state.largest, state.step, state.work),
    )
    if state.backend == "reference":
        return reference.refine_step(*tensors, *options)
    return _step(*tensors, *options, state.backend)


def refine(
    displacement: Tensor,
    fixed: Tensor,
    moving: Tensor,
    steps: int = 10,
    lr: float = 0.1,
    window: int | Sequence[int] = 9,
    regularisation: float = 1.0,
    amsgrad: bool = True,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    *,
    backend: str | None = None,
) -> Tensor:
    """A displacement after steps of Adam on the field itself (OFG, Jia et al. 2024, the inner loop).

    Every item of the batch is refined by itself, for the energy::

        -lncc(fixed, warp(moving, u), window) + regularisation * diffusion_loss(u)

    with the defaults of :func:`lncc`, :func:`warp` (linear, zeros outside) and :func:`diffusion_loss` (voxel
    units), its exact gradient, and Adam as ``torch.optim.Adam`` computes it. The mean over an item's voxels makes
    gradients small, so that ``eps`` counts where the images hardly differ; a batch does not change that.

    Args:
        displacement: u (B, ndim, H, W) or (B, ndim, D, H, W) in voxels of ``fixed``, float32 or float64; not
            changed.
        fixed: (B, C, *spatial), same dtype and grid.
        moving: (B, C, *any), same dtype; fewer than 2^31 voxels a channel.
        steps: number of steps, at least 0.
        lr: learning rate: about the voxels that a step can move.
        window: of the similarity, voxels along every axis, or one number an axis.
        regularisation: weight of the diffusion, at least 0.
        amsgrad: divide by the largest second moment so far instead of the present one (Reddi et al. 2018).
        betas, eps: of Adam.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        The refined displacement, like the one that came in. Carries no gradient. Results do not depend on the
        number of threads.

    Memory beyond inputs and output: the moments, three fields (two without amsgrad), and two images of one
    item, however many steps; see :func:`refine_step`.

    Raises:
        ValueError: a shape, dtype or option does not fit.
    """
    if steps < 0:
        raise ValueError(f"refine: steps must be at least 0, got {steps}")
    options = (lr, window, regularisation, amsgrad, betas, eps)
    state = refine_state(displacement, fixed, moving, *options, backend=backend)
    for _ in range(steps):
        refine_step(state)
    return state.displacement
