"""A displacement that is known at the voxels of a grid, as a field: what a network that predicts dense maps leaves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from neuralreg import kernels
from neuralreg.fields import FORMAT


class DenseField(nn.Module):
    """``field(x)`` reads a displacement (ndim, *grid), in voxels, at coordinates x (N, ndim) of [-1, 1] over the grid.

    Linear between voxels, the border's values outside; the result (N, ndim) is in coordinates as every field's. The
    displacement is the one parameter.

    Raises:
        ValueError: not a displacement.
    """

    def __init__(self, displacement: Tensor) -> None:
        super().__init__()
        if displacement.ndim not in (3, 4) or len(displacement) != displacement.ndim - 1:
            raise ValueError(
                f"DenseField: needs a displacement (ndim, *grid), got {tuple(displacement.shape)}"
            )
        self.displacement = nn.Parameter(displacement.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        ndim = len(self.displacement)
        places = x.flip(1).view(1, -1, *[1] * (ndim - 1), ndim).to(self.displacement.dtype)
        read = kernels.grid_sample(self.displacement[None], places, padding_mode="border", align_corners=True)
        sizes = torch.tensor(self.displacement.shape[1:], dtype=read.dtype, device=read.device)
        # An axis of one voxel has no extent to move along
        scale = torch.where(sizes > 1, 2 / (sizes - 1).clamp(min=1), 0.0)
        return read.view(ndim, -1).T * scale

    def describe(self) -> dict[str, Any]:
        """The displacement in plain types, for :func:`~neuralreg.fields.load_field`."""
        return {"format": FORMAT, "kind": "dense", "displacement": self.displacement.detach()}

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> DenseField:
        """The field that ``describe`` described."""
        return cls(description["displacement"])
