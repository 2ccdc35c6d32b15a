"""Two images from coarse to fine, by millimetres: grids of any shape, spacing and orientation shrink alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neuralreg.errors import InputError
from neuralreg.images import Geometry
from neuralreg.inputs import ROLES, Inputs
from neuralreg.pair import block_means

SIZES = (32, 64)  # voxels along the longest axis of the smaller image, coarse to fine
MOST_VOXELS = 400_000  # of the fixed image on a level


@dataclass(frozen=True)
class Level:
    """Both images with voxels of about ``spacing`` mm: images and masks (1, 1, *spatial), affines voxel -> RAS mm."""

    images: tuple[Tensor, Tensor]
    masks: tuple[Tensor, Tensor]
    affines: tuple[np.ndarray, np.ndarray]
    spacing: float

    def volume(self, which: int) -> float:
        """Cubic millimetres inside a mask."""
        voxel = abs(np.linalg.det(self.affines[which][:-1, :-1]))
        return float(self.masks[which].sum()) * float(voxel)


def make_levels(inputs: Inputs, device: torch.device) -> list[Level]:
    """The pair from coarse to fine; levels that would be the same are made once.

    Raises:
        InputError: an image is constant where it counts.
    """
    extents = [np.array(image.shape) * image.spacing for image in inputs.scaled]
    shorter = min(extent.max() for extent in extents)
    least = (float(np.prod(extents[0])) / MOST_VOXELS) ** (1 / len(extents[0]))
    found: dict[tuple[int, ...], Level] = {}
    for size in SIZES:
        spacing = max(shorter / size, least)
        factors = [shrinking(image.geometry, spacing) for image in inputs.scaled]
        key = (*factors[0], *factors[1])
        if key not in found:
            found[key] = make_level(inputs, factors, device)
    levels = list(found.values())
    for which, role in enumerate(ROLES):
        inside = levels[-1].images[which][levels[-1].masks[which] > 0]
        if float(inside.max() - inside.min()) < 1e-6:
            raise InputError(
                f"{role} image is constant inside its mask and intensity window: there is nothing to align; "
                "give another window, or no start"
            )
    return levels


def shrinking(geometry: Geometry, spacing: float) -> list[int]:
    """Voxels along every axis that become one of about ``spacing`` mm."""
    return [
        min(n, max(1, round(spacing / step)))
        for n, step in zip(geometry.shape, geometry.spacing, strict=True)
    ]


def make_level(inputs: Inputs, factors: Sequence[Sequence[int]], device: torch.device) -> Level:
    images, masks, affines, steps = [], [], [], []
    for image, mask, factor in zip(inputs.scaled, inputs.masks, factors, strict=True):
        data = image.data[None, None].to(device)
        counted = torch.ones_like(data) if mask is None else mask[None, None].to(data)
        small, share = block_means(data, factor), block_means(counted, factor)
        # a mask of small parts has no block by half
        masks.append((share >= min(0.5, float(share.max()))).to(data.dtype))
        images.append(small)
        blocks = np.diag([*factor, 1.0])
        blocks[:-1, -1] = (np.array(factor) - 1) / 2
        affines.append(image.affine @ blocks)
        steps.append(Geometry(small.shape[2:], affines[-1]).spacing)
    spacing = max(float(np.median(step)) for step in steps)
    return Level((images[0], images[1]), (masks[0], masks[1]), (affines[0], affines[1]), spacing)
