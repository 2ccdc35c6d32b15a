"""Volumes with geometry: reading, writing, checking and intensity scaling.

An image is a tensor whose axes are the array axes i, j, k of the file as nibabel gives them, together with
an affine that takes voxel indices to world millimetres, RAS: x to the right, y to the front, z to the head
(nibabel's convention; ITK's physical points are LPS, that is with x and y negated). Nothing else in neuralreg
knows about headers. Writing and intensity scaling live beside this file and are offered from here too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralreg.errors import InputError
from neuralreg.intensity import scale_intensity
from neuralreg.reading import (
    by,
    check_affine,
    from_nibabel,
    from_sitk,
    kind_of,
    lps_flip,
    open_nibabel,
    planar_affine,
    scalar_shape,
)
from neuralreg.writing import atomic_path, check_writable, write_image

__all__ = [
    "Geometry", "Image", "atomic_path", "check_affine", "check_pair", "check_registrable", "check_same_grid",
    "check_writable", "lps_flip", "read_geometry", "read_image", "read_labels", "read_mask", "read_stored",
    "scale_intensity", "write_image",
]  # fmt: skip


@dataclass(frozen=True)
class Geometry:
    """An image's grid: ``shape`` in voxels and ``affine`` (ndim+1, ndim+1) float64, voxel index -> RAS mm."""

    shape: tuple[int, ...]
    affine: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "affine", np.array(self.affine, dtype=np.float64))
        if self.affine.shape != (self.ndim + 1, self.ndim + 1):
            raise ValueError(
                f"a {self.ndim}-D grid needs an affine of {self.ndim + 1} x {self.ndim + 1}, "
                f"got {self.affine.shape}"
            )

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres between voxels along each array axis."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:-1, :-1], axis=0))

    @property
    def origin(self) -> np.ndarray:
        """World RAS position (ndim,) of voxel 0."""
        return self.affine[:-1, -1].copy()

    @property
    def direction(self) -> np.ndarray:
        """(ndim, ndim): column k is the unit RAS vector of array axis k. The determinant may be negative."""
        return self.affine[:-1, :-1] / np.array(self.spacing)

    def voxel_to_world(self, points: np.ndarray) -> np.ndarray:
        """Voxel coordinates (n, ndim) -> RAS mm (n, ndim)."""
        return np.asarray(points, dtype=np.float64) @ self.affine[:-1, :-1].T + self.affine[:-1, -1]

    def world_to_voxel(self, points: np.ndarray) -> np.ndarray:
        """RAS mm (n, ndim) -> voxel coordinates (n, ndim), not rounded."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(points, dtype=np.float64) @ inverse[:-1, :-1].T + inverse[:-1, -1]

    def corners(self) -> np.ndarray:
        """RAS positions (2^ndim, ndim) of the centres of the corner voxels."""
        ends = np.meshgrid(*[[0, n - 1] for n in self.shape], indexing="ij")
        return self.voxel_to_world(np.stack(ends, -1).reshape(-1, self.ndim))

    def same_grid(self, other: Geometry, tolerance: float = 0.01) -> bool:
        """True where shapes agree and every corner lies within ``tolerance`` voxels of the other's."""
        if self.shape != other.shape:
            return False
        distance = np.linalg.norm(self.corners() - other.corners(), axis=1).max()
        return bool(distance <= tolerance * min(self.spacing))


@dataclass(frozen=True)
class Image:
    """A 2-D or 3-D scalar volume: ``data`` (*sp), ``affine`` (ndim+1, ndim+1) float64, voxel -> RAS mm."""

    data: Tensor
    affine: np.ndarray

    def __post_init__(self) -> None:
        geometry = Geometry(tuple(self.data.shape), self.affine)
        object.__setattr__(self, "affine", geometry.affine)
        object.__setattr__(self, "_geometry", geometry)

    @property
    def geometry(self) -> Geometry:
        return self._geometry  # type: ignore[attr-defined, no-any-return]

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres between voxels along each array axis."""
        return self.geometry.spacing

    @property
    def origin(self) -> np.ndarray:
        return self.geometry.origin

    @property
    def direction(self) -> np.ndarray:
        return self.geometry.direction


# ---------------------------------------------------------------------------------------------------- reading


def read_image(source: Any, *, role: str = "image", nan_to: float | None = None) -> Image:
    """Read a scalar 2-D or 3-D image as float32.

    ``source``: a path (NIfTI, or any format that nibabel reads), a nibabel image, a SimpleITK image, an
    :class:`Image`, or a tensor or array of shape (*sp) or (1, 1, *sp), which gets an affine of unit spacing.
    ``role`` names the image in messages ("fixed image"). ``nan_to`` replaces NaN and infinite voxels.

    Raises InputError (one line) for whatever cannot be registered: a missing or damaged file, 4-D, vector or
    complex data, a header whose affine is singular or whose spacing is zero, voxels that are not finite.
    """
    values, affine, name = _load(source, role, as_float=True)
    if isinstance(source, str | os.PathLike):
        data = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    else:  # a copy: the caller's array stays the caller's
        data = torch.from_numpy(np.array(values, dtype=np.float32, order="C"))
    # a sum is finite only if all its terms are, except where it overflows: the cheap test first
    if not bool(torch.isfinite(data.sum(dtype=torch.float64))):
        bad = ~torch.isfinite(data)
        if nan_to is None:
            raise InputError(
                f"{name} holds {int(bad.sum())} voxels that are NaN or infinite; repair it, or "
                f"replace them by --nan-to VALUE (nan_to=VALUE in Python)"
            )
        data[bad] = float(nan_to)
    return Image(data, affine)


def read_labels(source: Any, *, role: str = "label map") -> Image:
    """Read a label map as int32 (values are rounded to integers). Sources and errors as for `read_image`."""
    values, affine, name = _load(source, role, as_float=False)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise InputError(f"{name} holds labels that are NaN or infinite; a label map holds integers")
        values = np.rint(values)
    if values.size and (values.max() > 2**31 - 1 or values.min() < -(2**31)):
        raise InputError(f"{name} holds labels beyond 32 bits; a label map holds small integers")
    return Image(torch.from_numpy(np.array(values, dtype=np.int32, order="C")), affine)


def read_stored(source: Any, *, role: str = "image", nan_to: float | None = None) -> tuple[Image, np.dtype]:
    """Read an image or a label map, whichever it is, and the numpy type of its stored values.

    Integers that the header does not scale come as int32 by `read_labels`, all else as float32 by
    `read_image`.
    The type is one that `write_image` takes: 64-bit integers are named int32.
    """
    dtype = _stored_type(source, role)
    if dtype.kind not in "biu":
        return read_image(source, role=role, nan_to=nan_to), np.dtype(np.float32)
    narrow = {"bool": np.uint8, "int64": np.int32, "uint64": np.int32}.get(dtype.name)
    return read_labels(source, role=role), np.dtype(narrow or dtype)


def _stored_type(source: Any, role: str) -> np.dtype:
    if not isinstance(source, str | os.PathLike):
        return _load(source, role, as_float=False)[0].dtype
    image = open_nibabel(Path(source), f"{role} {os.fspath(source)}")
    proxy = image.dataobj
    scaled = (getattr(proxy, "slope", 1), getattr(proxy, "inter", 0)) != (1, 0)
    return np.dtype(np.float32) if scaled else np.dtype(image.get_data_dtype())


def read_geometry(source: Any, *, role: str = "reference image") -> Geometry:
    """The grid of an image without its voxels where the source is a file; errors as for `read_image`."""
    if not isinstance(source, str | os.PathLike):
        values, affine, _ = _load(source, role, as_float=False)
        return Geometry(values.shape, affine)
    name = f"{role} {os.fspath(source)}"
    image = open_nibabel(Path(source), name)
    shape, affine = scalar_shape(image, name), np.asarray(image.affine, dtype=np.float64)
    affine = affine if len(shape) == 3 else planar_affine(affine)
    check_affine(affine, name)
    return Geometry(shape, affine)


def read_mask(
    source: Any, *, role: str = "mask", like: Geometry | None = None, like_name: str = "its image"
) -> Image:
    """Read a mask as bool, nonzero = inside. With ``like`` it must lie on that grid, ``like_name``'s.

    Sources and errors as for `read_image`, and InputError for another grid or an empty mask.
    """
    values, affine, name = _load(source, role, as_float=False)
    mask = Image(torch.from_numpy(np.ascontiguousarray(values != 0)), affine)
    if like is not None:
        check_same_grid(mask.geometry, like, role=name, like=like_name)
    if not bool(mask.data.any()):
        raise InputError(f"{name} is empty: it leaves no voxel to register")
    return mask


def _load(source: Any, role: str, as_float: bool) -> tuple[np.ndarray, np.ndarray, str]:
    """Voxels (*sp), affine (RAS) and the name used in messages, of any source."""
    import nibabel

    name = role
    if isinstance(source, Image):
        return source.data.detach().cpu().numpy(), source.affine, name
    if isinstance(source, Tensor | np.ndarray):
        values = source.detach().cpu().numpy() if isinstance(source, Tensor) else source
        if values.ndim > 3 and values.shape[:2] == (1, 1):
            values = values[0, 0]
        affine = np.eye(values.ndim + 1)
    elif isinstance(source, str | os.PathLike):
        name = f"{role} {os.fspath(source)}"
        values, affine = from_nibabel(open_nibabel(Path(source), name), name, as_float)
    elif isinstance(source, nibabel.spatialimages.SpatialImage):
        values, affine = from_nibabel(source, name, as_float)
    elif hasattr(source, "GetDirection") and hasattr(source, "GetSpacing"):
        values, affine = from_sitk(source, name)
    else:
        raise InputError(
            f"{role}: cannot read an image from a {type(source).__name__}; give a path, a "
            f"nibabel or SimpleITK image, or a tensor"
        )
    if values.dtype.kind not in "biuf":
        raise InputError(f"{name} holds {kind_of(values.dtype)} voxels; give a scalar image")
    if values.ndim not in (2, 3):
        raise InputError(f"{name} is {values.ndim}-D, shape {by(values.shape)}; give one 2-D or 3-D volume")
    if values.size == 0:
        raise InputError(f"{name} has no voxels, shape {by(values.shape)}")
    check_affine(affine, name)
    return values, np.asarray(affine, dtype=np.float64), name


# --------------------------------------------------------------------------------------------------- checking


def check_same_grid(a: Geometry, b: Geometry, *, role: str, like: str) -> None:
    """InputError where ``a`` (named ``role``) does not lie on the grid of ``b`` (named ``like``)."""
    if a.same_grid(b):
        return
    what = (
        f"shape {by(a.shape)} against {by(b.shape)}"
        if a.shape != b.shape
        else "same shape, other origin, spacing or orientation"
    )
    raise InputError(f"{role} lies on another grid than {like} ({what}); resample it onto that grid first")


def check_pair(fixed: Geometry, moving: Geometry) -> None:
    """InputError where one image is 2-D and the other 3-D."""
    if fixed.ndim != moving.ndim:
        raise InputError(
            f"the fixed image is {fixed.ndim}-D and the moving image {moving.ndim}-D; give two "
            f"images of the same dimension"
        )


def check_registrable(image: Image, role: str = "image") -> None:
    """InputError where the image is constant: there is nothing to align."""
    low, high = torch.aminmax(image.data)
    if bool(low == high):
        raise InputError(f"{role} is constant, every voxel is {float(low):g}; there is nothing to register")
