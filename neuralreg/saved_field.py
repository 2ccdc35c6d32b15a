"""A fitted field read back from its file: it answers at any points and on any grid, not only where it was fitted."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralreg.errors import InputError
from neuralreg.fields import load_field
from neuralreg.images import Geometry
from neuralreg.maps import GridMap
from neuralreg.slabs import affine_at
from neuralreg.two_way import TwoWayField
from neuralreg.writing import atomic_path

POINTS_AT_ONCE = 1 << 18


@dataclass(frozen=True, eq=False)
class SavedField(GridMap):
    """A transform that is asked the network itself, at any points and on any grid.

    ``field(x)`` is a displacement in coordinates of [-1, 1] over the ``fixed`` grid; ``initial`` follows it.

    ``initial`` (ndim+1, ndim+1) is an affine in RAS world millimetres. Beyond the fixed grid the displacement is that
    of the nearest point of the grid. A field of two maps is inverted by its own backward map.
    """

    field: Callable[[Tensor], Tensor]
    fixed: Geometry
    initial: np.ndarray
    method: str = ""

    def displacement_at(self, voxels: Tensor) -> Tensor:
        return self._asked(self.field, voxels)

    def _asked(self, field: Callable[[Tensor], Tensor], voxels: Tensor) -> Tensor:
        """What a field says at voxels (ndim, *any), in voxels; beyond the grid what it says at the border."""
        half = (torch.tensor(self.fixed.shape, dtype=torch.float64) - 1) / 2
        x = voxels.double().flatten(1).T
        x = torch.where(half > 0, x / half.clamp(min=0.5) - 1, 0.0).clamp(-1, 1).float()
        with torch.no_grad():
            values = torch.cat([field(part) for part in x.split(POINTS_AT_ONCE)]) if len(x) else x
        return (values * half.float()).T.reshape(voxels.shape)

    def moved(self, points: Tensor) -> Tensor:
        voxels = affine_at(np.linalg.inv(self.fixed.affine)[:-1], points)
        there = voxels + self.displacement_at(voxels).to(voxels)
        return affine_at((self.initial @ self.fixed.affine)[:-1], there)

    def undisplaced(self, voxels: Tensor) -> Tensor:
        if isinstance(self.field, TwoWayField):
            return voxels + self._asked(self.field.inverse, voxels).to(voxels)
        return super().undisplaced(voxels)


def save_field(
    path: str | os.PathLike[str],
    field: Any,
    method: str,
    options: dict[str, Any],
    fixed: Geometry,
    initial: np.ndarray,
) -> None:
    """Writes a fitted network, its spec and the geometry as a ``torch.save`` file that loads with weights_only."""
    content = {
        "method": method,
        "options": options,
        "field": field.describe(),
        "fixed_shape": list(fixed.shape),
        "fixed_affine": torch.from_numpy(fixed.affine),
        "initial": torch.from_numpy(np.asarray(initial)),
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_saved_field(path: str | os.PathLike[str]) -> SavedField:
    """Reads what ``Registration.save_field`` and ``neuralreg register --field-out`` wrote.

    Raises:
        InputError: no such file, or not one of these.
    """
    name = f"field {os.fspath(path)}"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError("no description")
        geometry = Geometry(tuple(content["fixed_shape"]), content["fixed_affine"].numpy())
        return SavedField(
            load_field(content["field"]), geometry, content["initial"].numpy(), content["method"]
        )
    except FileNotFoundError:
        raise InputError(f"{name} does not exist") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
        detail = str(error).splitlines()[0] if isinstance(error, ValueError) else "unknown content"
        raise InputError(
            f"{name} is not a field that `neuralreg register --field-out` wrote ({detail})"
        ) from None
