"""What a method sees of two images: tensors, masks and one affine between voxel grids. No header, no millimetre."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """Two scaled images (1, 1, *spatial) in [0, 1] and the affine (ndim, ndim + 1) from fixed to moving voxels.

    Masks, where given, are (1, 1, *spatial) of 0 and 1 on the grid of their image.
    """

    fixed: Tensor
    moving: Tensor
    voxel_affine: Tensor
    fixed_mask: Tensor | None = None
    moving_mask: Tensor | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        """Spatial shape of the fixed image."""
        return tuple(self.fixed.shape[2:])

    @property
    def ndim(self) -> int:
        return len(self.grid)
