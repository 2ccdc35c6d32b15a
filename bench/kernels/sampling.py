"""warp with gradient to the displacement, against grid_sample with an identity grid."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from neuralreg import kernels
from neuralreg.bench.harness import Case, gradient_step, sizes, smooth_pair


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """A smooth displacement of a few voxels at every size."""
    for size in sizes(quick):
        image, _ = smooth_pair(size, device)
        coarse = torch.randn(1, 3, 6, 6, 6, generator=torch.Generator().manual_seed(1)) * 3
        displacement = F.interpolate(coarse, size=size, mode="trilinear", align_corners=True).to(device)
        arguments = (displacement, image)

        def ours(u: Tensor, x: Tensor, backend: str | None = None) -> Tensor:
            return kernels.warp(x, u, backend=backend).square().mean()

        def truth(arguments: tuple[Tensor, ...] = arguments) -> tuple[Tensor, ...]:
            exact = tuple(a.double() for a in arguments)
            return gradient_step(lambda u, x: ours(u, x, "reference"), exact, (0,))()

        contenders = {
            "neuralreg": gradient_step(ours, arguments, (0,)),
            "torch grid_sample": gradient_step(gridded, arguments, (0,)),
        }
        # Displacement, image and value; then displacement, image and upstream again, and the gradient.
        floor = 4.0 * image.numel() * ((3 + 1 + 1) + (3 + 1 + 1 + 3))
        yield Case("warp", f"{'x'.join(map(str, size))}, gradient to u", contenders, truth, 1e-2, floor)


def gridded(displacement: Tensor, image: Tensor) -> Tensor:
    """The usual form: an identity grid, normalised, channels last and reversed."""
    size = displacement.shape[2:]
    axes = [torch.arange(n, device=image.device, dtype=image.dtype) for n in size]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij")) + displacement[0]
    grid = torch.stack([2 * points[k] / (n - 1) - 1 for k, n in enumerate(size)][::-1], dim=-1)[None]
    return F.grid_sample(image, grid, align_corners=True).square().mean()
