"""jacobian_loss and diffusion_loss, forward and backward, against differences in torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from neuralreg import kernels
from neuralreg.bench.harness import Case, gradient_step, sizes

THRESHOLD = 0.4


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """A displacement that folds here and there, at every size."""
    for size in sizes(quick):
        coarse = torch.randn(1, 3, 12, 12, 12, generator=torch.Generator().manual_seed(1)) * 6
        u = F.interpolate(coarse, size=size, mode="trilinear", align_corners=True).to(device)
        name = "x".join(map(str, size))
        floor = 4.0 * u.numel() * 3  # read forward, read and write backward
        yield Case(
            "jacobian_loss",
            name,
            {
                "neuralreg": gradient_step(_jacobian, (u,), (0,)),
                "torch": gradient_step(determinants, (u,), (0,)),
            },
            lambda u=u: gradient_step(lambda v: _jacobian(v, "reference"), (u.double(),), (0,))(),
            1e-3,
            floor,
        )
        yield Case(
            "diffusion_loss",
            name,
            {
                "neuralreg": gradient_step(_diffusion, (u,), (0,)),
                "torch": gradient_step(differences, (u,), (0,)),
            },
            lambda u=u: gradient_step(lambda v: _diffusion(v, "reference"), (u.double(),), (0,))(),
            1e-3,
            floor,
        )


def _jacobian(u: Tensor, backend: str | None = None) -> Tensor:
    return kernels.jacobian_loss(u, threshold=THRESHOLD, backend=backend)


def _diffusion(u: Tensor, backend: str | None = None) -> Tensor:
    return kernels.diffusion_loss(u, backend=backend)


def determinants(u: Tensor) -> Tensor:
    """Forward differences, the last one of an axis twice; determinant by hand; relu(threshold - det)."""
    derivatives = []
    for axis in (2, 3, 4):
        inner = u.diff(dim=axis)
        derivatives.append(torch.cat([inner, inner.narrow(axis, -1, 1)], axis).unbind(1))
    a, b, c = derivatives
    a, b, c = (a[0] + 1, a[1], a[2]), (b[0], b[1] + 1, b[2]), (c[0], c[1], c[2] + 1)
    det = (
        a[0] * (b[1] * c[2] - b[2] * c[1])
        - a[1] * (b[0] * c[2] - b[2] * c[0])
        + a[2] * (b[0] * c[1] - b[1] * c[0])
    )
    return (THRESHOLD - det).relu().mean()


def differences(u: Tensor) -> Tensor:
    """Mean squared forward difference along every axis."""
    return sum(u.diff(dim=axis).square().mean() for axis in (2, 3, 4)) / 3
