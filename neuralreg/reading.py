"""Voxels and affines out of files and of other libraries' images, and what can be wrong with them."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from neuralreg.errors import InputError
from neuralreg.writing import brief


def lps_flip(ndim: int) -> np.ndarray:
    """The (ndim+1, ndim+1) matrix that turns RAS points into LPS points and back: x and y change sign."""
    return np.diag([-1.0, -1.0] + [1.0] * (ndim - 1))


def open_nibabel(path: Path, name: str, **how: Any) -> Any:
    """The nibabel image of a file, header read and voxels not yet; InputError naming ``name`` otherwise.

    ``how``: passed on to ``nibabel.load``.
    """
    import nibabel

    if not path.exists():
        raise InputError(f"{name} does not exist; check the path")
    if path.is_dir():
        raise InputError(f"{name} is a folder; give an image file such as .nii.gz")
    try:
        # nibabel repairs some headers and prints a line about it; what matters is checked here
        with nibabel.imageglobals.LoggingOutputSuppressor():
            image = nibabel.load(path, **how)
            raw = _raw_pixdim(image)
    except (
        OSError,
        EOFError,
        zlib.error,
        ValueError,
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
    ) as error:
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


def from_nibabel(image: Any, name: str, as_float: bool) -> tuple[np.ndarray, np.ndarray]:
    shape = scalar_shape(image, name)
    values = voxels_of(image, name, as_float).reshape(shape)
    affine = np.asarray(image.affine, dtype=np.float64)
    return values, affine if len(shape) == 3 else planar_affine(affine)


def scalar_shape(image: Any, name: str) -> tuple[int, ...]:
    """The 2-D or 3-D shape of a scalar image, trailing axes of one dropped; InputError for other images."""
    shape = tuple(image.shape)
    kept = shape
    while len(kept) > 3 and kept[-1] == 1:
        kept = kept[:-1]
    if len(kept) > 4 or (len(kept) == 4 and _is_vector(image.header)):
        raise InputError(f"{name} is a vector image, shape {by(shape)}; give a scalar image")
    if len(kept) == 4:
        raise InputError(f"{name} is 4-D, {kept[3]} volumes of {by(kept[:3])}; split it and give one volume")
    if len(kept) < 2:
        raise InputError(f"{name} is {len(kept)}-D, shape {by(shape)}; give a 2-D or 3-D image")
    if image.get_data_dtype().kind not in "biuf":
        raise InputError(f"{name} holds {kind_of(image.get_data_dtype())} voxels; give a scalar image")
    if image.affine is None:
        raise InputError(f"{name} has no affine in its header; write one, or give the array itself")
    return kept


def voxels_of(image: Any, name: str, as_float: bool = True) -> np.ndarray:
    """The voxels of a nibabel image, float32 or in their own type; a truncated file shows itself here."""
    try:
        if as_float:  # get_fdata never holds a float64 volume this way
            return np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged"))
        return np.asarray(image.dataobj)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(_damaged(name, error)) from error


def part_of(image: Any, name: str, index: tuple[Any, ...]) -> np.ndarray:
    """The voxels of a nibabel image at an index of its 2 or 3 spatial axes; no others are read from a NIfTI file."""
    try:
        return np.asarray(image.dataobj[index + (0,) * (len(image.shape) - len(index))])
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(_damaged(name, error)) from error


def _is_vector(header: Any) -> bool:
    return hasattr(header, "get_intent") and int(header["intent_code"]) in (1004, 1005, 1006, 1007)


def planar_affine(affine: np.ndarray) -> np.ndarray:
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


def from_sitk(image: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK

    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"{name} is a vector image, {image.GetNumberOfComponentsPerPixel()} components; "
            f"give a scalar image"
        )
    d = image.GetDimension()
    affine = np.eye(d + 1)
    affine[:d, :d] = np.reshape(image.GetDirection(), (d, d)) * np.array(image.GetSpacing())
    affine[:d, d] = image.GetOrigin()
    values = SimpleITK.GetArrayFromImage(image).T  # numpy gets z, y, x
    return values, lps_flip(d) @ affine if d in (2, 3) else affine


def kind_of(dtype: np.dtype) -> str:
    return {"c": "complex", "V": "RGB or vector", "b": "boolean"}.get(dtype.kind, str(dtype))


def _zero_spacing(name: str, spacing: np.ndarray) -> str:
    axis = int(np.flatnonzero(spacing == 0)[0])
    return f"{name} has a voxel spacing of zero along axis {axis} in its header; repair the header"


def by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)


def check_affine(affine: np.ndarray, name: str) -> None:
    """InputError where ``affine`` (ndim+1, ndim+1) is not finite, has a zero spacing, or is singular."""
    linear = np.asarray(affine, dtype=np.float64)[:-1, :-1]
    if not np.isfinite(affine).all():
        raise InputError(f"{name} has NaN or infinite entries in the affine of its header; repair the header")
    spacing = np.linalg.norm(linear, axis=0)
    if (spacing == 0).any():
        raise InputError(_zero_spacing(name, spacing))
    if abs(np.linalg.det(linear / spacing)) < 1e-6:
        raise InputError(
            f"{name} has a singular affine in its header: its axes do not span the space; repair the header"
        )
