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
from neuralreg.reading import lps_flip
from neuralreg.transforms import Transform
from neuralreg.writing import atomic_path

POINTS_AT_ONCE = 1 << 18


@dataclass(frozen=True, eq=False)
class SavedField:
    """``field(x)`` is a displacement in coordinates of [-1, 1] over the ``fixed`` grid; ``initial`` follows it.

    ``initial`` (ndim+1, ndim+1) is an affine in RAS world millimetres. Beyond the fixed grid the displacement is that
    of the nearest point of the grid.
    """

    field: Callable[[Tensor], Tensor]
    fixed: Geometry
    initial: np.ndarray
    method: str = ""

    def displacement_at(self, voxels: Tensor) -> Tensor:
        """Displacement (n, ndim) in fixed voxels, float32, at fixed voxel coordinates (n, ndim)."""
        half = (torch.tensor(self.fixed.shape, dtype=torch.float64) - 1) / 2
        x = torch.where(half > 0, voxels.double() / half.clamp(min=0.5) - 1, 0.0).clamp(-1, 1).float()
        with torch.no_grad():
            values = torch.cat([self.field(part) for part in x.split(POINTS_AT_ONCE)]) if len(x) else x
        return values * half.float()

    def transform_points(self, points: Any, space: str = "LPS") -> np.ndarray:
        """Maps points (n, ndim) in millimetres from fixed to moving space; ``space`` ("LPS" or "RAS") of both."""
        if space not in ("LPS", "RAS"):
            raise InputError(f"unknown space '{space}' of points; use LPS or RAS")
        ndim = self.fixed.ndim
        points = np.asarray(points, dtype=np.float64).reshape(-1, ndim)
        sign = np.diag(lps_flip(ndim))[:-1] if space == "LPS" else np.ones(ndim)
        voxels = torch.from_numpy(self.fixed.world_to_voxel(points * sign))
        moved = (voxels + self.displacement_at(voxels)).numpy()
        whole = self.initial @ self.fixed.affine
        return (moved @ whole[:-1, :-1].T + whole[:-1, -1]) * sign

    def transform(self, grid: Geometry | None = None) -> Transform:
        """The map as a dense transform on a grid, by default the fixed one."""
        grid = grid or self.fixed
        ndim = self.fixed.ndim
        if grid.ndim != ndim:
            raise InputError(
                f"the field is {ndim}-D, the grid {grid.ndim}-D; give a grid of the field's dimension"
            )
        to_fixed = np.linalg.inv(self.fixed.affine) @ grid.affine
        back = torch.from_numpy(np.linalg.inv(to_fixed)[:-1, :-1]).float()
        linear, shift = torch.from_numpy(to_fixed[:-1, :-1]), torch.from_numpy(to_fixed[:-1, -1])
        out = torch.empty(ndim, *grid.shape)
        rest = torch.cartesian_prod(*[torch.arange(n, dtype=torch.float64) for n in grid.shape[1:]])
        rest = rest.view(-1, ndim - 1)
        for plane in range(grid.shape[0]):
            index = torch.cat([torch.full((len(rest), 1), float(plane), dtype=torch.float64), rest], 1)
            u = self.displacement_at(index @ linear.T + shift)
            out[:, plane] = (u @ back.T).T.reshape(ndim, *grid.shape[1:])
        return Transform(out, grid, None, self.initial)


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
