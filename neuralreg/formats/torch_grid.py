"""A grid for ``torch.nn.functional.grid_sample``: (1, *fixed grid, ndim), [-1, 1] over the moving image, xyz last.

x belongs to the moving tensor's last axis. A .pt file (``torch.load(path, weights_only=True)``) or .npz holds ``grid``,
``align_corners`` and the grids of both images, voxel to RAS millimetres; with a file that holds ``grid`` alone, reading
needs both images and ``align_corners``.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuralreg.errors import InputError
from neuralreg.formats.grids import from_voxel_displacement, needed, voxel_displacement
from neuralreg.formats.npz import read_npz, write_npz
from neuralreg.images import Geometry
from neuralreg.reading import by
from neuralreg.transforms import Transform
from neuralreg.writing import atomic_path, brief, suffix_of

KEYS = ("grid", "align_corners", "fixed_shape", "fixed_affine", "moving_shape", "moving_affine")


def write(path: Path, transform: Transform, moving: Geometry | None, align_corners: bool = False) -> None:
    moving = needed(moving, "moving", f"transform {path}", "spans the moving image")
    fixed = transform.fixed
    voxels = voxel_displacement(transform, moving).cpu().double().numpy()
    coordinates = [
        _coordinate(v + i, n, align_corners)
        for v, i, n in zip(voxels, np.indices(fixed.shape, sparse=True), moving.shape, strict=True)
    ]
    content: dict[str, np.ndarray] = {
        "grid": np.stack(coordinates[::-1], -1)[None].astype(np.float32),
        "fixed_shape": np.array(fixed.shape),
        "fixed_affine": fixed.affine,
        "moving_shape": np.array(moving.shape),
        "moving_affine": moving.affine,
    }
    if suffix_of(path) == ".npz":
        write_npz(path, **content, align_corners=np.array(align_corners))
        return
    tensors: dict[str, Any] = {key: torch.from_numpy(value) for key, value in content.items()}
    with atomic_path(path) as temporary:
        torch.save(tensors | {"align_corners": align_corners}, temporary)


def recognise(path: Path, name: str) -> str | None:
    if suffix_of(path) == ".pt":
        content = _load(path)
    else:
        content = read_npz(path, name)
    return None if content is not None and all(key in content for key in KEYS) else "does not tell its format"


def read(
    path: Path,
    name: str,
    reference: Geometry | None = None,
    moving: Geometry | None = None,
    align_corners: bool | None = None,
) -> Transform:
    content = _load(path) if suffix_of(path) == ".pt" else read_npz(path, name)
    if content is None or "grid" not in content:
        raise InputError(f"{name} holds no sampling grid named 'grid'")
    stated = content.get("align_corners")
    if stated is None and align_corners is None:
        raise InputError(f"{name} does not state align_corners; give --align-corners or --no-align-corners")
    if stated is not None and align_corners is not None and bool(stated) != align_corners:
        raise InputError(f"{name} states align_corners={bool(stated)}; leave the option out")
    corners = bool(align_corners if stated is None else stated)
    fixed = needed(
        _geometry(content, "fixed", name) or reference, "reference", name, "holds no grid of its images"
    )
    moving = needed(
        _geometry(content, "moving", name) or moving, "moving", name, "holds no grid of its images"
    )
    grid = np.asarray(content["grid"], dtype=np.float64)
    if grid.shape != (1, *fixed.shape, fixed.ndim):
        raise InputError(
            f"{name}: its grid is {by(grid.shape)}, the fixed image has {by(fixed.shape)} voxels; give the image that "
            f"was the fixed one"
        )
    indices = np.indices(fixed.shape, sparse=True)
    values = [_voxel(grid[0, ..., -1 - k], n, corners) - indices[k] for k, n in enumerate(moving.shape)]
    return from_voxel_displacement(np.stack(values), fixed, moving, name)


def _coordinate(voxel: np.ndarray, size: int, align_corners: bool) -> np.ndarray:
    if not align_corners:
        return (2 * voxel + 1) / size - 1
    return 2 * voxel / (size - 1) - 1 if size > 1 else 0 * voxel


def _voxel(coordinate: np.ndarray, size: int, align_corners: bool) -> np.ndarray:
    return (coordinate + 1) / 2 * (size - 1) if align_corners else ((coordinate + 1) * size - 1) / 2


def _load(path: Path) -> dict[str, Any] | None:
    """The file's content; a bare tensor counts as a grid; None where it is something else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError):
        return None  # the formats of this suffix say what is wrong with it
    if isinstance(content, torch.Tensor):
        return {"grid": content}
    return content if isinstance(content, dict) else None


def _geometry(content: dict[str, Any], image: str, name: str) -> Geometry | None:
    if f"{image}_affine" not in content:
        return None
    try:
        shape = tuple(int(n) for n in content[f"{image}_shape"])
        return Geometry(shape, np.asarray(content[f"{image}_affine"], dtype=np.float64))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{name}: its {image} grid is damaged ({brief(error)})") from error
