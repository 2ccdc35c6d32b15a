"""SimpleITK's objects from ours and back: LPS millimetres there, RAS here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuralreg.affines import affine_of, checked_affine
from neuralreg.errors import InputError
from neuralreg.images import Geometry
from neuralreg.maps import Affine, SpatialMap, compose
from neuralreg.reading import lps_flip
from neuralreg.slabs import mix
from neuralreg.transforms import Transform
from neuralreg.writing import atomic_path, brief


def simpleitk(name: str) -> Any:
    """The module; InputError, with the extra's name, where it is missing."""
    try:
        import SimpleITK
    except ImportError:
        raise InputError(
            f"{name} needs SimpleITK: pip install 'neuralreg[itk]', or take a format that does not (.nii.gz, .txt)"
        ) from None
    return SimpleITK


def sitk_affine(sitk: Any, matrix: np.ndarray) -> Any:
    """An ITK affine transform of a RAS matrix."""
    d = len(matrix) - 1
    lps = lps_flip(d) @ matrix @ lps_flip(d)
    affine = sitk.AffineTransform(d)
    affine.SetMatrix(lps[:d, :d].ravel().tolist())
    affine.SetTranslation(lps[:d, d].tolist())
    return affine


def sitk_field(sitk: Any, transform: Transform) -> Any:
    """An ITK displacement field transform of a transform on a straight grid, without its initial affine."""
    grid, d = transform.fixed, transform.ndim
    flip = lps_flip(d)
    vectors = mix((flip @ grid.affine)[:-1, :-1], transform.displacement.double())
    # SimpleITK's arrays run z, y, x
    values = np.ascontiguousarray(np.moveaxis(vectors.cpu().numpy(), 0, -1).transpose(*range(d)[::-1], d))
    image = sitk.GetImageFromArray(values, isVector=True)
    image.SetSpacing(grid.spacing)
    image.SetOrigin((flip[:-1, :-1] @ grid.origin).tolist())
    image.SetDirection((flip[:-1, :-1] @ grid.direction).ravel().tolist())
    return sitk.DisplacementFieldTransform(image)


def write_sitk(path: Path, transform: Any) -> None:
    """Write an ITK transform, whole or not at all."""
    sitk = simpleitk(f"transform {path}")
    with atomic_path(path) as temporary:
        try:
            sitk.WriteTransform(transform, str(temporary))
        except RuntimeError as error:
            raise OSError(str(error).split("ITK ERROR:")[-1]) from error


def read_sitk(path: Path, name: str, moving: Geometry | None = None) -> SpatialMap:
    """An ITK transform of affines and displacement fields, one or a composite; InputError for other kinds."""
    sitk = simpleitk(name)
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        why = brief(RuntimeError(str(error).split("ITK ERROR:")[-1]))
        raise InputError(f"{name} cannot be read as an ITK transform ({why})") from error
    return compose(*_parts(sitk, transform, name, moving))


def _parts(sitk: Any, transform: Any, name: str, moving: Geometry | None) -> list[SpatialMap]:
    """In the order in which a point goes through them."""
    transform = transform.Downcast()
    kind = transform.GetTransformEnum()
    if kind == sitk.sitkComposite:
        # a composite applies its last transform first
        inner = [transform.GetNthTransform(i) for i in range(transform.GetNumberOfTransforms())]
        return [part for each in reversed(inner) for part in _parts(sitk, each, name, moving)]
    if kind == sitk.sitkDisplacementField:
        return [_dense(sitk, transform, name, moving)]
    if transform.IsLinear():
        return [Affine(checked_affine(affine_of(transform), name))]
    raise InputError(
        f"{name} holds a {transform.GetName()}; only affines and displacement fields are read: turn it "
        f"into a displacement field first"
    )


def _dense(sitk: Any, transform: Any, name: str, moving: Geometry | None) -> Transform:
    image = transform.GetDisplacementField()
    d = image.GetDimension()
    flip = lps_flip(d)
    affine = np.eye(d + 1)
    affine[:d, :d] = np.reshape(image.GetDirection(), (d, d)) * np.array(image.GetSpacing())
    affine[:d, d] = image.GetOrigin()
    affine = flip @ affine
    values = sitk.GetArrayViewFromImage(image).transpose(*range(d)[::-1], d)
    if not np.isfinite(values.sum()):
        raise InputError(f"{name} holds NaN or infinite displacements; it cannot be applied")
    to_voxels = (np.linalg.inv(affine) @ flip)[:-1, :-1]
    field = mix(to_voxels, torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 0))))
    return Transform(field, Geometry(tuple(field.shape[1:]), affine), moving)
