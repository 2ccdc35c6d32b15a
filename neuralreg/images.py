"""Volumes with geometry: reading, writing, checking and intensity scaling.

An image is a tensor whose axes are the array axes i, j, k of the file as nibabel gives them, together with
an affine that takes voxel indices to world millimetres, RAS: x to the right, y to the front, z to the head
(nibabel's convention; ITK's physical points are LPS, that is with x and y negated). Nothing else in neuralreg
knows about headers. Writing and intensity scaling live beside this file and are offered from here too.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralreg.errors import InputError
from neuralreg.intensity import scale_intensity
from neuralreg.writing import atomic_path, brief, check_writable, write_image

__all__ = ["Geometry", "Image", "atomic_path", "check_affine", "check_pair", "check_registrable",
           "check_same_grid", "check_writable", "lps_flip", "read_image", "read_labels", "read_mask",
           "scale_intensity", "write_image"]


def lps_flip(ndim: int) -> np.ndarray:
    """The (ndim+1, ndim+1) matrix that turns RAS points into LPS points and back: x and y change sign."""
    return np.diag([-1.0, -1.0] + [1.0] * (ndim - 1))


@dataclass(frozen=True)
class Geometry:
    """An image's grid: ``shape`` in voxels and ``affine`` (ndim+1, ndim+1) float64, voxel index -> RAS mm."""

    shape: tuple[int, ...]
    affine: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "affine", np.array(self.affine, dtype=np.float64))
        if self.affine.shape != (self.ndim + 1, self.ndim + 1):
            raise ValueError(f"a {self.ndim}-D grid needs an affine of {self.ndim + 1} x {self.ndim + 1}, "
                             f"got {self.affine.shape}")

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
            raise InputError(f"{name} holds {int(bad.sum())} voxels that are NaN or infinite; repair it, or "
                             f"replace them by --nan-to VALUE (nan_to=VALUE in Python)")
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


def read_mask(source: Any, *, role: str = "mask", like: Geometry | None = None) -> Image:
    """Read a mask as bool, nonzero = inside. With ``like`` the mask must lie on that grid.

    Sources and errors as for `read_image`, and InputError for another grid or an empty mask.
    """
    values, affine, name = _load(source, role, as_float=False)
    mask = Image(torch.from_numpy(np.ascontiguousarray(values != 0)), affine)
    if like is not None:
        check_same_grid(mask.geometry, like, role=name, like="the image that it masks")
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
        values, affine = _load_nibabel(open_nibabel(Path(source), name), name, as_float)
    elif isinstance(source, nibabel.spatialimages.SpatialImage):
        values, affine = _load_nibabel(source, name, as_float)
    elif hasattr(source, "GetDirection") and hasattr(source, "GetSpacing"):
        values, affine = _load_sitk(source, name)
    else:
        raise InputError(f"{role}: cannot read an image from a {type(source).__name__}; give a path, a "
                         f"nibabel or SimpleITK image, or a tensor")
    if values.dtype.kind not in "biuf":
        raise InputError(f"{name} holds {_kind(values.dtype)} voxels; give a scalar image")
    if values.ndim not in (2, 3):
        raise InputError(f"{name} is {values.ndim}-D, shape {_by(values.shape)}; give one 2-D or 3-D volume")
    if values.size == 0:
        raise InputError(f"{name} has no voxels, shape {_by(values.shape)}")
    check_affine(affine, name)
    return values, np.asarray(affine, dtype=np.float64), name


def open_nibabel(path: Path, name: str) -> Any:
    """The nibabel image of a file, header read and voxels not yet; InputError naming ``name`` otherwise."""
    import nibabel

    if not path.exists():
        raise InputError(f"{name} does not exist; check the path")
    if path.is_dir():
        raise InputError(f"{name} is a folder; give an image file such as .nii.gz")
    try:
        # nibabel repairs some headers and prints a line about it; what matters is checked here
        with nibabel.imageglobals.LoggingOutputSuppressor():
            image = nibabel.load(path)
            raw = _raw_pixdim(image)
    except (OSError, EOFError, zlib.error, ValueError, nibabel.filebasedimages.ImageFileError,
            nibabel.spatialimages.HeaderDataError) as error:
        raise InputError(_damaged(name, error)) from error
    if raw is not None and (raw == 0).any():
        raise InputError(_zero_spacing(name, raw))
    return image


def _raw_pixdim(image: Any) -> np.ndarray | None:
    """The spacings of a NIfTI file as they are written: nibabel turns a zero into a one while loading."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.openers import Opener

    if not isinstance(image.header, Nifti1Header):
        return None
    holder = image.file_map.get("header", image.file_map["image"])
    with Opener(holder.filename) as file:
        header = type(image.header).from_fileobj(file, check=False)
    return np.asarray(header["pixdim"][1 : 1 + min(3, int(header["dim"][0]))])


def _damaged(name: str, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"{name} cannot be read: permission denied"
    if isinstance(error, EOFError | zlib.error) or "Expected" in str(error) or "CRC" in str(error):
        return f"{name} is damaged or cut short ({brief(error)}); copy or download it again"
    return f"{name} is not an image, or is damaged ({brief(error)}); give a NIfTI file"


def _load_nibabel(image: Any, name: str, as_float: bool) -> tuple[np.ndarray, np.ndarray]:
    shape = tuple(image.shape)
    kept = shape
    while len(kept) > 3 and kept[-1] == 1:
        kept = kept[:-1]
    if len(kept) > 4 or (len(kept) == 4 and _is_vector(image.header)):
        raise InputError(f"{name} is a vector image, shape {_by(shape)}; give a scalar image")
    if len(kept) == 4:
        raise InputError(f"{name} is 4-D, {kept[3]} volumes of {_by(kept[:3])}; split it and give one volume")
    if len(kept) < 2:
        raise InputError(f"{name} is {len(kept)}-D, shape {_by(shape)}; give a 2-D or 3-D image")
    if image.get_data_dtype().kind not in "biuf":
        raise InputError(f"{name} holds {_kind(image.get_data_dtype())} voxels; give a scalar image")
    if image.affine is None:
        raise InputError(f"{name} has no affine in its header; write one, or give the array itself")
    values = voxels_of(image, name, as_float).reshape(kept)
    affine = np.asarray(image.affine, dtype=np.float64)
    return values, affine if len(kept) == 3 else _planar_affine(affine)


def voxels_of(image: Any, name: str, as_float: bool = True) -> np.ndarray:
    """The voxels of a nibabel image, float32 or in their own type; a truncated file shows itself here."""
    try:
        if as_float:  # get_fdata never holds a float64 volume this way
            return np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged"))
        return np.asarray(image.dataobj)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(_damaged(name, error)) from error


def _is_vector(header: Any) -> bool:
    return hasattr(header, "get_intent") and int(header["intent_code"]) in (1004, 1005, 1006, 1007)


def _planar_affine(affine: np.ndarray) -> np.ndarray:
    """The 3 x 3 affine of a 2-D NIfTI: its x-y part, as ITK reads it.

    A slice whose plane is not the world's x-y plane (ITK refuses those) keeps its spacing alone, origin 0.
    """
    spacing = np.linalg.norm(affine[:3, :2], axis=0)
    in_plane = np.linalg.norm(affine[:2, :2], axis=0)
    if np.any(np.abs(in_plane - spacing) > 1e-3 * spacing):
        return np.diag([*spacing, 1.0])
    planar = np.eye(3)
    planar[:2, :2] = affine[:2, :2]
    planar[:2, 2] = affine[:2, 3]
    return planar


def _load_sitk(image: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK

    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{name} is a vector image, {image.GetNumberOfComponentsPerPixel()} components; "
                         f"give a scalar image")
    d = image.GetDimension()
    affine = np.eye(d + 1)
    affine[:d, :d] = np.reshape(image.GetDirection(), (d, d)) * np.array(image.GetSpacing())
    affine[:d, d] = image.GetOrigin()
    values = SimpleITK.GetArrayFromImage(image).T  # numpy gets z, y, x
    return values, lps_flip(d) @ affine if d in (2, 3) else affine


def _kind(dtype: np.dtype) -> str:
    return {"c": "complex", "V": "RGB or vector", "b": "boolean"}.get(dtype.kind, str(dtype))


def _zero_spacing(name: str, spacing: np.ndarray) -> str:
    axis = int(np.flatnonzero(spacing == 0)[0])
    return f"{name} has a voxel spacing of zero along axis {axis} in its header; repair the header"


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)


# --------------------------------------------------------------------------------------------------- checking


def check_affine(affine: np.ndarray, name: str) -> None:
    """InputError where ``affine`` (ndim+1, ndim+1) is not finite, has a zero spacing, or is singular."""
    linear = np.asarray(affine, dtype=np.float64)[:-1, :-1]
    if not np.isfinite(affine).all():
        raise InputError(f"{name} has NaN or infinite entries in the affine of its header; repair the header")
    spacing = np.linalg.norm(linear, axis=0)
    if (spacing == 0).any():
        raise InputError(_zero_spacing(name, spacing))
    if abs(np.linalg.det(linear / spacing)) < 1e-6:
        raise InputError(f"{name} has a singular affine in its header: its axes do not span the space; "
                         f"repair the header")


def check_same_grid(a: Geometry, b: Geometry, *, role: str, like: str) -> None:
    """InputError where ``a`` (named ``role``) does not lie on the grid of ``b`` (named ``like``)."""
    if a.same_grid(b):
        return
    what = (f"shape {_by(a.shape)} against {_by(b.shape)}" if a.shape != b.shape
            else "same shape, other origin, spacing or orientation")
    raise InputError(f"{role} lies on another grid than {like} ({what}); resample it onto that grid first")


def check_pair(fixed: Geometry, moving: Geometry) -> None:
    """InputError where one image is 2-D and the other 3-D."""
    if fixed.ndim != moving.ndim:
        raise InputError(f"the fixed image is {fixed.ndim}-D and the moving image {moving.ndim}-D; give two "
                         f"images of the same dimension")


def check_registrable(image: Image, role: str = "image") -> None:
    """InputError where the image is constant: there is nothing to align."""
    low, high = torch.aminmax(image.data)
    if bool(low == high):
        raise InputError(f"{role} is constant, every voxel is {float(low):g}; there is nothing to register")
