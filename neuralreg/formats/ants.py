"""The pair of files of antsRegistration: NAME1Warp.nii.gz, an ITK displacement field, and NAME0GenericAffine.mat.

Points go through the warp first: ``antsApplyTransforms -t NAME1Warp.nii.gz -t NAME0GenericAffine.mat``. An affine alone
is the .mat. Needs SimpleITK.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from neuralreg.errors import InputError
from neuralreg.formats import itk_affine, itk_nifti
from neuralreg.formats.sitk import simpleitk
from neuralreg.images import Geometry
from neuralreg.maps import Affine, SpatialMap, compose
from neuralreg.outputs import write_together
from neuralreg.transforms import Transform
from neuralreg.writing import check_writable, suffix_of

WARP, AFFINE = "1Warp.nii.gz", "0GenericAffine.mat"


def require(name: str) -> None:
    simpleitk(name)


def write(path: Path, transform: Affine | Transform, moving: Geometry | None = None) -> None:
    if isinstance(transform, Affine):
        if suffix_of(path) != ".mat":
            raise InputError(f"transform {path}: an affine alone is a .mat for ANTs; name it NAME{AFFINE}")
        itk_affine.write(path, transform)
        return
    beside = _affine_beside(path, f"transform {path}")
    check_writable(beside, suffixes=(".mat",), role="transform")
    field = replace(transform, initial=None)
    write_together(
        {
            path: lambda at: itk_nifti.write(at, field),
            beside: lambda at: itk_affine.write(at, Affine(transform.initial)),
        }
    )


def recognise(path: Path, name: str) -> str | None:
    return "is read as ANTs' pair by name alone: each of its files is a transform by itself"


def read(
    path: Path, name: str, reference: Geometry | None = None, moving: Geometry | None = None
) -> SpatialMap:
    if suffix_of(path) == ".mat":
        return itk_affine.read(path, name)
    beside = _affine_beside(path, name)
    if not beside.is_file():
        raise InputError(
            f"{name}: its affine {beside} does not exist; read the warp alone with --from itk-nifti"
        )
    return compose(itk_nifti.read(path, name, None, moving), itk_affine.read(beside, f"transform {beside}"))


def _affine_beside(path: Path, name: str) -> Path:
    if not path.name.endswith(WARP):
        raise InputError(
            f"{name}: ANTs writes a pair of files; name the warp NAME{WARP}, the affine is NAME{AFFINE}"
        )
    return path.with_name(path.name.removesuffix(WARP) + AFFINE)
