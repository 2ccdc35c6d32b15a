"""compose and integrate, forward and backward, and invert, against grid_sample with an identity grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from neuralreg import kernels
from neuralreg.bench.harness import Case, Setup, Step, gradient_step

STEPS, ROUNDS = 7, 10


def cases(setup: Setup) -> Iterator[Case]:
    """Smooth fields of a few voxels at every size but the largest."""
    for size in setup.volumes()[:2]:
        coarse = torch.randn(2, 3, 6, 6, 6, generator=torch.Generator().manual_seed(1)) * 1.5
        fields = F.interpolate(coarse, size=size, mode="trilinear", align_corners=True)
        u, v = fields.to(setup.device, setup.dtype).split(1)
        off_lattice = (
            v * 16
        ).round() / 16 + 1 / 32  # on lattice planes gradients jump, and precisions disagree
        # Both fields read and the result written; then both and the upstream read, both gradients written.
        yield case("compose", "", (u, off_lattice), composed, plainly_composed, 8)
        yield case("integrate", f", {STEPS} squarings", (u,), integrated, plainly_integrated, 4)
        yield inverse_case(u)


def case(
    op: str,
    detail: str,
    inputs: tuple[Tensor, ...],
    ours: Callable[..., Tensor],
    peer: Callable[..., Tensor],
    fields: int,
) -> Case:
    """``fields``: how many have to move."""
    every = tuple(range(len(inputs)))

    def truth() -> tuple[Tensor, ...]:
        return gradient_step(
            lambda *x: ours(*x, backend="reference"), tuple(x.double() for x in inputs), every
        )()

    contenders = {
        "neuralreg": gradient_step(ours, inputs, every),
        "torch": gradient_step(peer, inputs, every),
    }
    work = "x".join(map(str, inputs[0].shape[2:])) + detail
    return Case(op, work, contenders, truth, 1e-2, 4.0 * inputs[0].numel() * fields)


def inverse_case(u: Tensor) -> Case:
    """A fixed number of steps, without gradients."""

    def ours(u: Tensor, backend: str | None = None) -> tuple[Tensor, ...]:
        return (kernels.invert(u, ROUNDS, 0.0, backend=backend)[0],)

    contenders: dict[str, Step] = {"neuralreg": lambda: ours(u), "torch": lambda: (plainly_inverted(u),)}
    work = "x".join(map(str, u.shape[2:])) + f", {ROUNDS} steps"
    floor = 4.0 * u.numel() * 3 * ROUNDS
    return Case("invert", work, contenders, lambda: ours(u.double(), "reference"), 1e-3, floor)


def composed(u: Tensor, v: Tensor, backend: str | None = None) -> Tensor:
    return kernels.compose(u, v, backend=backend).square().mean()


def integrated(v: Tensor, backend: str | None = None) -> Tensor:
    return kernels.integrate(v, STEPS, backend=backend).square().mean()


def plainly_composed(u: Tensor, v: Tensor) -> Tensor:
    return (v + read(u, v)).square().mean()


def plainly_integrated(v: Tensor) -> Tensor:
    u = v / 2**STEPS
    for _ in range(STEPS):
        u = u + read(u, u)
    return u.square().mean()


def plainly_inverted(u: Tensor) -> Tensor:
    v = -u
    for _ in range(ROUNDS):
        v = -read(u, v)
    return v


def read(u: Tensor, v: Tensor) -> Tensor:
    """u at the positions that v displaces, on a normalised grid with channels last and reversed."""
    size = v.shape[2:]
    axes = [torch.linspace(-1, 1, n, device=v.device, dtype=v.dtype) for n in size]
    identity = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)[None]
    scale = v.new_tensor([2 / (n - 1) for n in size]).view(1, -1, 1, 1, 1)
    grid = identity + (v * scale).movedim(1, -1).flip(-1)
    return F.grid_sample(u, grid, padding_mode="border", align_corners=True)
