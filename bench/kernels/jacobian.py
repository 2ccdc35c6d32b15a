"""Penalties on a dense displacement, forward and backward, against differences in torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from neuralreg import kernels
from neuralreg.bench.harness import Case, Setup, gradient_step

THRESHOLD = 0.4


def cases(setup: Setup) -> Iterator[Case]:
    """A displacement that folds here and there, at every size."""
    for size in setup.volumes():
        coarse = torch.randn(1, 3, 12, 12, 12, generator=torch.Generator().manual_seed(1)) * 6
        u = F.interpolate(coarse, size=size, mode="trilinear", align_corners=True).to(
            setup.device, setup.dtype
        )
        yield case("jacobian_loss", u, _jacobian, determinants)
        yield case("diffusion_loss", u, _diffusion, differences)
        yield case("bending_loss", u, _bending, second_differences)
    yield matrices(1000 if setup.quick else 100_000, setup)


def case(op: str, u: Tensor, ours: Callable[..., Tensor], peer: Callable[..., Tensor]) -> Case:
    def truth() -> tuple[Tensor, ...]:
        return gradient_step(lambda v: ours(v, "reference"), (u.double(),), (0,))()

    contenders = {"neuralreg": gradient_step(ours, (u,), (0,)), "torch": gradient_step(peer, (u,), (0,))}
    floor = 4.0 * u.numel() * 3  # read forward, read and write backward
    return Case(op, "x".join(map(str, u.shape[2:])), contenders, truth, 1e-3, floor)


def matrices(n: int, setup: Setup) -> Case:
    """The penalty on Jacobians that are there already: a read forward, a read and a write backward."""
    j = 0.5 * torch.randn(n, 3, 3, generator=torch.Generator().manual_seed(1)).to(setup.device, setup.dtype)

    def ours(x: Tensor, backend: str | None = None) -> Tensor:
        return kernels.jacobian_penalty(x, threshold=THRESHOLD, backend=backend)

    def by_hand(x: Tensor) -> Tensor:
        return _penalty(
            [row.unbind(1) for row in (x + torch.eye(3, device=x.device, dtype=x.dtype)).unbind(1)]
        )

    def truth() -> tuple[Tensor, ...]:
        return gradient_step(lambda x: ours(x, "reference"), (j.double(),), (0,))()

    contenders = {"neuralreg": gradient_step(ours, (j,), (0,)), "torch": gradient_step(by_hand, (j,), (0,))}
    return Case("jacobian_penalty", f"{n} matrices", contenders, truth, 1e-3, 4.0 * j.numel() * 3)


def _jacobian(u: Tensor, backend: str | None = None) -> Tensor:
    return kernels.jacobian_loss(u, threshold=THRESHOLD, backend=backend)


def _diffusion(u: Tensor, backend: str | None = None) -> Tensor:
    return kernels.diffusion_loss(u, backend=backend)


def _bending(u: Tensor, backend: str | None = None) -> Tensor:
    return kernels.bending_loss(u, backend=backend)


def determinants(u: Tensor) -> Tensor:
    """Forward differences, the last one of an axis twice; determinant by hand; relu(threshold - det)."""
    derivatives = []
    for axis in (2, 3, 4):
        inner = u.diff(dim=axis)
        derivatives.append(torch.cat([inner, inner.narrow(axis, -1, 1)], axis).unbind(1))
    a, b, c = derivatives
    a, b, c = (a[0] + 1, a[1], a[2]), (b[0], b[1] + 1, b[2]), (c[0], c[1], c[2] + 1)
    return _penalty([a, b, c])


def _penalty(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    a, b, c = rows
    det = (
        a[0] * (b[1] * c[2] - b[2] * c[1])
        - a[1] * (b[0] * c[2] - b[2] * c[0])
        + a[2] * (b[0] * c[1] - b[1] * c[0])
    )
    return (THRESHOLD - det).relu().mean()


def differences(u: Tensor) -> Tensor:
    """Mean squared forward difference along every axis."""
    return torch.stack([u.diff(dim=axis).square().mean() for axis in (2, 3, 4)]).mean()


def second_differences(u: Tensor) -> Tensor:
    """Mean squared second differences, every first difference taken once."""
    total = u.new_zeros(())
    for axis in (2, 3, 4):
        first = u.diff(dim=axis)
        total = total + first.diff(dim=axis).square().mean()
        for other in range(axis + 1, 5):
            total = total + 2 * first.diff(dim=other).square().mean()
    return total
