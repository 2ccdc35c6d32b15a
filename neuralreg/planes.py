"""What a picture of a registration shows: the planes through the centre of the fixed grid, as a reader expects them.

A 3-D pair has an axial, a coronal and a sagittal plane, a 2-D pair one. Left is the subject's left, up is the front or
the head, as the header says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from neuralreg.images import Image
    from neuralreg.outputs import Result

PLANES = ("axial", "coronal", "sagittal")
# Names of matplotlib's colour maps, and colours, in which all pictures show the same things.
DIFFERENCE_MAP, JACOBIAN_MAP = "RdBu_r", "PuOr_r"
FOLD, GRID = "#00c800", "#ffb000"


@dataclass(frozen=True)
class Plane:
    """One plane, first axis to the right, second up, in the anatomical order that a reader expects."""

    name: str
    spacing: tuple[float, float]
    fixed: np.ndarray
    start: np.ndarray
    warped: np.ndarray
    position: np.ndarray  # (2, n, m) mm: where the in-plane coordinates of each point are taken to
    determinant: np.ndarray

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height in mm."""
        return self.fixed.shape[0] * self.spacing[0], self.fixed.shape[1] * self.spacing[1]

    @property
    def folds(self) -> np.ndarray:
        """Where det <= 0."""
        return self.determinant <= 0

    @property
    def logarithm(self) -> np.ndarray:
        """log det, 0 at folds."""
        return np.log(np.where(self.folds, 1.0, self.determinant))

    def grid(self) -> tuple[list[np.ndarray], list[tuple[np.ndarray, np.ndarray]]]:
        """The moving image's lines of equal coordinate, seen from the fixed image, about 24 along the longer side.

        Returns the millimetres of the voxel centres along both axes, and for each coordinate its values (n, m) and the
        levels to draw.
        """
        centres = [
            (np.arange(n) + 0.5) * step for n, step in zip(self.fixed.shape, self.spacing, strict=True)
        ]
        apart = max(self.extent) / 24
        drawn = self.position if min(self.fixed.shape) > 1 else ()
        return centres, [
            (c, np.arange(np.floor(c.min() / apart), np.ceil(c.max() / apart) + 1) * apart) for c in drawn
        ]


def limits(planes: Sequence[Plane]) -> tuple[float, float]:
    """How far the colours reach: of differences of scaled intensities, and of log det; at least 0.2."""
    difference = max(float(np.percentile(np.abs(p.start - p.fixed), 99)) for p in planes) or 1.0
    logs = [np.log(p.determinant[~p.folds]) for p in planes]
    return difference, max([0.2, *(float(np.percentile(np.abs(log), 99.5)) for log in logs if log.size)])


def planes_of(registration: Result) -> list[Plane]:
    """The planes of a registration; allocates four volumes of the fixed grid.

    Intensities of each image run from 0 at its 0.5th to 1 at its 99.5th percentile; the warped image's are those of the
    moving one. The determinant is that of the deformation without the initial transform, by central differences.
    """
    import torch

    from neuralreg.kernels import jacobian_determinant
    from neuralreg.transforms import Transform

    transform, fixed = registration.transform, registration.fixed
    u = transform.displacement.detach().cpu()
    start = Transform(torch.zeros_like(u), transform.fixed, transform.moving, initial=transform.initial)
    volumes = {
        "fixed": _scaled(fixed.data),
        "start": _scaled(start.warp(registration.moving).data, registration.moving.data),
        "warped": _scaled(registration.warped.data, registration.moving.data),
        "determinant": jacobian_determinant(u[None], scheme="central")[0].numpy(),
    }
    order, flips = _towards_ras(fixed)
    spacing = np.array(fixed.spacing)[order]
    u_ras = np.stack([_turned(u[axis].numpy(), order, flips) for axis in order])
    u_ras *= (np.where(flips, -1.0, 1.0) * spacing).reshape(-1, *[1] * fixed.ndim)
    turned = {name: _turned(volume, order, flips) for name, volume in volumes.items()}
    planes = []
    for across in (2, 1, 0) if fixed.ndim == 3 else (None,):
        inside = [axis for axis in range(fixed.ndim) if axis != across]
        cut = tuple(n // 2 if axis == across else slice(None) for axis, n in enumerate(u_ras.shape[1:]))
        grid = np.stack(
            np.meshgrid(*[np.arange(u_ras.shape[1 + a]) * spacing[a] for a in inside], indexing="ij")
        )
        displaced = (inside, *cut)
        planes.append(
            Plane(
                name="" if across is None else PLANES[2 - across],
                spacing=(float(spacing[inside[0]]), float(spacing[inside[1]])),
                position=grid + u_ras[displaced],
                **{name: volume[cut] for name, volume in turned.items()},
            )
        )
    # A volume of one slice has one plane that can be looked at.
    return [plane for plane in planes if min(plane.fixed.shape) > 1] or planes[:1]


def _scaled(data: Any, like: Any = None) -> np.ndarray:
    """Intensities as 0 at the 0.5th and 1 at the 99.5th percentile of ``like`` (default: the data itself)."""
    values = (data if like is None else like).detach().cpu().numpy().ravel()
    low, high = np.percentile(values[:: max(1, values.size // 1_000_000)], (0.5, 99.5))
    if not low < high:
        low, high = float(values.min()), float(values.max())
    return (data.detach().cpu().numpy() - low) / (high - low if high > low else 1.0)


def _towards_ras(image: Image) -> tuple[list[int], np.ndarray]:
    """For each world axis (right, front, up) the nearest array axis, and whether that one runs backwards."""
    from nibabel.orientations import io_orientation

    world, direction = io_orientation(image.affine).T
    order = np.argsort(world)
    return order.tolist(), direction[order] < 0


def _turned(volume: np.ndarray, order: list[int], flips: np.ndarray) -> np.ndarray:
    """A view with the axes in world order, each running towards right, front, up."""
    volume = volume.transpose(order)
    return volume[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]
