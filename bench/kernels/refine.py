"""OFG's inner loop: one step in the middle of a refinement, and a short refinement with all its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from neuralreg import kernels
from neuralreg.bench.harness import Case, Setup, Step, smooth_pair
from neuralreg.bench.kernels.jacobian import differences
from neuralreg.bench.kernels.lncc import cumulative

WINDOW, LR, STEPS = 9, 0.1, 3
Loop = Callable[[], tuple[Tensor, Tensor]]  # makes a step; energy before it, first moment after it


def cases(setup: Setup) -> Iterator[Case]:
    """A start of a few voxels at every size; the whole refinement at one of them."""
    for size in setup.volumes():
        yield step_case(size, setup)
    yield whole_case(setup.main, setup)


def problem(size: tuple[int, ...], setup: Setup) -> tuple[Tensor, Tensor, Tensor]:
    """Displacement, fixed, moving.

    The displacement draws towards the centre, so that nothing is read outside: in windows of zeros the cumulative
    sums of the torch form leave noise, and its gradient means nothing. Positions keep clear of lattice planes,
    where gradients jump and no two precisions agree.
    """
    coarse = torch.randn(1, 3, 6, 6, 6, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)
    wavy = F.interpolate(coarse, size=size, mode="trilinear", align_corners=True)
    axes = [torch.linspace(1, -1, n) * (0.04 * n + 3) for n in size]
    inwards = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    displacement = ((wavy + inwards) * 16).round() / 16 + 1 / 32
    start = displacement.to(setup.device, setup.dtype)
    return (start, *smooth_pair(size, setup.device, setup.dtype))


def step_case(size: tuple[int, ...], setup: Setup) -> Case:
    """The first moment after the first step is a multiple of the exact gradient: what errors are taken of."""
    inputs = problem(size, setup)

    def truth() -> tuple[Tensor, ...]:
        u, fixed, moving = (x.double() for x in inputs)
        return ours(u, fixed, moving, "reference")()

    contenders: dict[str, Step] = {"neuralreg": ours(*inputs), "torch": plain(*inputs)}
    # The images once; displacement and three moments, read and written.
    floor = 4.0 * inputs[1].numel() * (2 + 2 * 4 * 3)
    return Case("refine_step", "x".join(map(str, size)), contenders, truth, 1e-2, floor)


def whole_case(size: tuple[int, ...], setup: Setup) -> Case:
    """A few steps from nothing, every buffer included; the energies on the way."""
    inputs = problem(size, setup)

    def run(loop: Callable[..., Loop], *arguments: Tensor | str) -> tuple[Tensor, ...]:
        step = loop(*arguments)
        return (torch.stack([step()[0] for _ in range(STEPS)]),)

    contenders: dict[str, Step] = {
        "neuralreg": lambda: run(ours, *inputs),
        "torch": lambda: run(plain, *inputs),
    }
    floor = 4.0 * inputs[1].numel() * (2 + 2 * 4 * 3) * STEPS
    return Case(
        "refine",
        f"{'x'.join(map(str, size))}, {STEPS} steps",
        contenders,
        lambda: run(ours, *(x.double() for x in inputs), "reference"),
        1e-3,
        floor,
    )


def ours(displacement: Tensor, fixed: Tensor, moving: Tensor, backend: str | None = None) -> Loop:
    state = kernels.refine_state(displacement, fixed, moving, LR, WINDOW, backend=backend)

    def step() -> tuple[Tensor, Tensor]:
        return kernels.refine_step(state)[0], state.mean

    return step


def plain(displacement: Tensor, fixed: Tensor, moving: Tensor) -> Loop:
    """grid_sample, LNCC by cumulative sums, sliced differences, torch's fused Adam; the identity grid is kept."""
    u = displacement.clone().requires_grad_()
    optimiser = torch.optim.Adam([u], lr=LR, amsgrad=True, fused=True)
    size = fixed.shape[2:]
    axes = [torch.linspace(-1, 1, n, device=fixed.device, dtype=fixed.dtype) for n in size]
    identity = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)[None]
    scale = fixed.new_tensor([2 / (n - 1) for n in size]).view(1, -1, 1, 1, 1)

    def step() -> tuple[Tensor, Tensor]:
        optimiser.zero_grad(set_to_none=True)
        grid = identity + (u * scale).movedim(1, -1).flip(-1)
        warped = F.grid_sample(moving, grid, align_corners=True)
        energy = differences(u) - cumulative(fixed, warped, WINDOW)
        energy.backward()
        optimiser.step()
        return energy.detach(), optimiser.state[u]["exp_avg"]

    return step
