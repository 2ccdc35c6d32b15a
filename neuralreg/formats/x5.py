"""X5, the HDF5 format of nitransforms 25.1: affines and displacement fields, RAS millimetres, and chains of them.

A displacement is moving point minus fixed point on a grid whose mapping takes voxels to RAS. The transforms of a chain,
"0/1", are met by fixed points from left to right. 3-D only. Needs h5py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuralreg.affines import checked_affine
from neuralreg.errors import InputError
from neuralreg.images import Geometry
from neuralreg.machine import package_version
from neuralreg.maps import Affine, SpatialMap, compose
from neuralreg.reading import check_affine
from neuralreg.slabs import mix
from neuralreg.transforms import Transform
from neuralreg.writing import atomic_path, brief


def require(name: str) -> None:
    _h5py(name)


def write(path: Path, transform: Affine | Transform, moving: Geometry | None = None) -> None:
    h5py = _h5py(f"transform {path}")
    if transform.ndim != 3:
        raise InputError(
            f"transform {path}: X5 files are 3-D here, the transform is {transform.ndim}-D; use .h5"
        )
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["Format"] = "X5"
        file.attrs["Version"] = np.uint16(1)
        group = file.create_group("TransformGroup")
        count = 0
        if isinstance(transform, Transform):
            _write_field(group.create_group("0"), transform)
            count = 1
        if not count or not np.array_equal(transform.last_affine, np.eye(4)):
            node = _node(group.create_group(str(count)), "linear", "affine", "matrix")
            node.create_dataset("Transform", data=transform.last_affine)
            count += 1
        file.create_group("TransformChain").create_dataset("0", data="/".join(map(str, range(count))))


def _write_field(group: Any, transform: Transform) -> None:
    node = _node(group, "nonlinear", "densefield", "displacements")
    grid = transform.fixed
    vectors = mix(grid.affine[:-1, :-1].copy(), transform.displacement).cpu().numpy()
    node.create_dataset("Transform", data=np.moveaxis(vectors, 0, -1), compression="gzip", compression_opts=1)
    domain = node.create_group("Domain")
    domain.create_dataset("Grid", data=np.uint8(1))
    domain.create_dataset("Size", data=np.array(grid.shape))
    domain.create_dataset("Mapping", data=grid.affine)
    domain.attrs["Coordinates"] = "cartesian"


def _node(group: Any, kind: str, subtype: str, representation: str) -> Any:
    group.attrs["Type"] = kind
    group.attrs["SubType"] = subtype
    group.attrs["Representation"] = representation
    group.attrs["ArrayLength"] = 1
    group.attrs["Metadata"] = json.dumps({"WrittenBy": f"neuralreg {package_version('neuralreg')}"})
    group.create_dataset("DimensionKinds", data=np.array(["space"] * 3 + ["vector"], dtype="S"))
    return group


def read(
    path: Path, name: str, reference: Geometry | None = None, moving: Geometry | None = None
) -> SpatialMap:
    h5py = _h5py(name)
    if not path.is_file():
        raise InputError(f"{name} does not exist; check the path")
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("Format") != "X5":
                raise InputError(f"{name} is HDF5, but not X5; an ITK composite has the suffix .h5")
            nodes = file["TransformGroup"]
            return compose(*(_read_node(nodes[key], name, moving) for key in _order(file, name)))
    except (OSError, KeyError, TypeError) as error:
        raise InputError(f"{name} is not an X5 file, or is damaged ({brief(error)})") from error


def _order(file: Any, name: str) -> list[str]:
    """The transforms that the file's chain names, or its only one."""
    chains = file.get("TransformChain", {})
    if len(chains) > 1:
        raise InputError(f"{name} holds {len(chains)} chains of transforms; give a file with one")
    for chain in chains.values():
        text = chain[()]
        return (text.decode() if isinstance(text, bytes) else str(text)).split("/")
    keys = list(file["TransformGroup"])
    if len(keys) != 1:
        raise InputError(
            f"{name} holds {len(keys)} transforms and no chain that orders them; give a file with one"
        )
    return keys


def _read_node(node: Any, name: str, moving: Geometry | None) -> SpatialMap:
    kind, subtype = node.attrs["Type"], node.attrs.get("SubType")
    values = np.asarray(node["Transform"])
    if kind == "linear" and values.shape == (4, 4):
        return Affine(checked_affine(values, name, lps=False))
    form = node.attrs.get("Representation")
    if kind != "nonlinear" or subtype == "bspline" or form not in ("displacements", "deformations"):
        raise InputError(
            f"{name} holds a transform of kind {kind} {subtype or ''}; affines and dense fields are read"
        )
    affine = np.asarray(node["Domain"]["Mapping"], dtype=np.float64)
    check_affine(affine, name)
    shape = tuple(int(n) for n in np.asarray(node["Domain"]["Size"]))
    if values.size != 3 * int(np.prod(shape)) or values.shape[-1] != 3:
        raise InputError(f"{name}: its field {values.shape} does not fit its grid {shape}")
    if not np.isfinite(values.sum(dtype=np.float64)):
        raise InputError(f"{name} holds NaN or infinite displacements; it cannot be applied")
    vectors = np.moveaxis(values.reshape(*shape, 3), -1, 0)
    if form == "deformations":
        index = np.indices(shape).reshape(3, -1)
        vectors = vectors - (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *shape)
    field = mix(np.linalg.inv(affine)[:-1, :-1].copy(), torch.from_numpy(np.ascontiguousarray(vectors)))
    return Transform(field, Geometry(shape, affine), moving)


def _h5py(name: str) -> Any:
    try:
        import h5py
    except ImportError:
        raise InputError(f"{name} is X5, which needs h5py: pip install 'neuralreg[x5]'") from None
    return h5py
