"""ITK composite transform in HDF5 (.h5, .hdf5): affines and displacement fields, LPS millimetres, one file.

What 3D Slicer, ANTs and ``SimpleITK.ReadTransform`` read. Points go through the displacement field first, then through
the affine; beyond the field the affine alone counts. Needs SimpleITK.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from neuralreg.errors import InputError
from neuralreg.formats.grids import straight
from neuralreg.formats.sitk import read_sitk, simpleitk, sitk_affine, sitk_field, write_sitk
from neuralreg.images import Geometry
from neuralreg.maps import Affine, SpatialMap
from neuralreg.transforms import Transform


def require(name: str) -> None:
    simpleitk(name)


def write(path: Path, transform: Affine | Transform, moving: Geometry | None = None) -> None:
    sitk = simpleitk(f"transform {path}")
    parts: list[Any] = []
    if isinstance(transform, Transform):
        transform = straight(transform)
        parts = [sitk_field(sitk, transform)]
    if not parts or not np.array_equal(transform.last_affine, np.eye(transform.ndim + 1)):
        parts.insert(0, sitk_affine(sitk, transform.last_affine))  # the last one of a composite comes first
    write_sitk(path, sitk.CompositeTransform(parts))


def read(
    path: Path, name: str, reference: Geometry | None = None, moving: Geometry | None = None
) -> SpatialMap:
    if not path.is_file():
        raise InputError(f"{name} does not exist; check the path")
    return read_sitk(path, name, moving)
