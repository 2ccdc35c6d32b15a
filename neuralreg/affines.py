"""Affine transforms: read what registration tools write, write ITK's text, and align centres.

Matrices in memory are (ndim+1, ndim+1) in RAS world millimetres and map fixed points to moving points.
Files hold LPS.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuralreg.errors import InputError
from neuralreg.images import Geometry, Image, lps_flip
from neuralreg.writing import brief

ITK_HEADER = "#Insight Transform File"


def invert_affine(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a square affine, with a last row of exactly 0 ... 0 1."""
    inverse = np.linalg.inv(matrix)
    inverse[-1] = np.eye(len(matrix))[-1]
    return inverse


def voxel_affine(fixed: Geometry, moving: Geometry, matrix: np.ndarray) -> np.ndarray:
    """(ndim, ndim + 1): fixed voxel to moving voxel through a world affine (ndim + 1, ndim + 1)."""
    return (np.linalg.inv(moving.affine) @ matrix @ fixed.affine)[:-1]


def read_affine(path: str | os.PathLike[str], role: str = "initial transform") -> np.ndarray:
    """Read an affine transform, fixed -> moving, as a matrix in RAS world millimetres: (4, 4), or (3, 3) in
    2-D.

    Formats: ITK text (.tfm, .txt: affine, matrix-offset, Euler, versor, similarity, translation, and
    composites of them), a plain 4 x 4 (3 x 3) matrix in text, and, through SimpleITK (extra ``itk``), ANTs'
    .mat, .h5 and whatever else ITK reads, as long as it is linear. Files hold LPS, as ITK does.
    """
    path = Path(path)
    name = f"{role} {path}"
    if not path.is_file():
        raise InputError(f"{name} does not exist; check the path")
    if path.name.lower().endswith((".nii", ".nii.gz")):
        raise InputError(f"{name} is an image file, not an affine; give .tfm, .txt, .mat or .h5")
    try:
        text = path.read_text()
    except (UnicodeDecodeError, OSError):  # binary: .mat, .h5
        return checked_affine(_through_simpleitk(path, name), name)
    lps = _itk_text(text, path, name) if text.lstrip().startswith(ITK_HEADER) else _plain_matrix(text, name)
    return checked_affine(lps, name)


def checked_affine(matrix: np.ndarray, name: str, lps: bool = True) -> np.ndarray:
    """RAS from a matrix in LPS (or in RAS), once it is known to be an invertible affine; InputError otherwise."""
    if not np.isfinite(matrix).all():
        raise InputError(f"{name} holds NaN or infinite numbers; give an invertible affine")
    linear = matrix[:-1, :-1]
    scale = np.linalg.norm(linear)
    if scale == 0 or abs(np.linalg.det(linear / scale)) < 1e-9:
        raise InputError(
            f"{name} is singular, determinant {np.linalg.det(linear):.3g}; give an invertible affine"
        )
    flip = lps_flip(len(linear))
    return flip @ matrix @ flip if lps else np.array(matrix, dtype=np.float64)


def _plain_matrix(text: str, name: str) -> np.ndarray:
    rows = [line.split("#")[0].replace(",", " ").split() for line in text.splitlines()]
    try:
        matrix = np.array([[float(x) for x in row] for row in rows if row])
    except ValueError as error:
        raise InputError(f"{name} is neither an ITK transform nor a 4 x 4 matrix ({brief(error)})") from error
    if matrix.shape not in ((4, 4), (3, 3)):
        shape = " x ".join(str(n) for n in matrix.shape)
        raise InputError(f"{name} holds {shape} numbers; give a matrix of 4 x 4 (3 x 3 in 2-D), LPS mm")
    if not np.allclose(matrix[-1], np.eye(len(matrix))[-1], atol=1e-6):
        raise InputError(f"{name}: the last row of the matrix must be 0 ... 0 1; give an affine")
    return matrix


def _itk_text(text: str, path: Path, name: str) -> np.ndarray:
    """ITK's text format: blocks of Transform, Parameters, FixedParameters."""
    total: np.ndarray | None = None
    kind, parameters = "", np.zeros(0)
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == "Transform":
            kind, parameters = value.strip(), np.zeros(0)
        elif key in ("Parameters", "FixedParameters"):
            try:
                numbers = np.array([float(x) for x in value.split()])
            except ValueError as error:
                raise InputError(f"{name} is damaged: {brief(error)}") from error
            if key == "Parameters":
                parameters = numbers
                continue
            if kind.startswith("CompositeTransform"):
                continue
            matrix = _itk_matrix(kind, parameters, numbers)
            if matrix is None:
                return _through_simpleitk(path, name, kind)
            if total is not None and len(total) != len(matrix):
                raise InputError(f"{name} mixes 2-D and 3-D transforms")
            # a composite applies its last transform first
            total = matrix if total is None else total @ matrix
    if total is None:
        raise InputError(f"{name} is damaged: it ends before its parameters")
    return total


def _itk_matrix(kind: str, p: np.ndarray, fixed: np.ndarray) -> np.ndarray | None:
    """The LPS matrix of one ITK transform, None for a kind (or a number of parameters) not known here."""
    base, _, rest = kind.partition("_")
    d = int(rest[-1]) if rest[-1:] in ("2", "3") else 0
    known: dict[str, tuple[Any, int]] = {
        "AffineTransform": (_affine, d * d + d),
        "MatrixOffsetTransformBase": (_affine, d * d + d),
        "TranslationTransform": (_translation, d),
        "Euler3DTransform": (_euler3d, 6),
        "VersorRigid3DTransform": (_versor, 6),
        "Similarity3DTransform": (_versor, 7),
        "Euler2DTransform": (_euler2d, 3),
        "Similarity2DTransform": (_similarity2d, 4),
    }
    build, count = known.get(base, (None, 0))
    if build is None or d == 0 or len(p) != count:
        return None
    linear, translation = build(p, fixed, d)
    centre = fixed[:d] if len(fixed) >= d else np.zeros(d)
    matrix = np.eye(d + 1)
    matrix[:d, :d] = linear
    matrix[:d, d] = translation + centre - linear @ centre
    return matrix


def _affine(p: np.ndarray, fixed: np.ndarray, d: int) -> tuple[np.ndarray, np.ndarray]:
    return p[: d * d].reshape(d, d), p[d * d :]


def _translation(p: np.ndarray, fixed: np.ndarray, d: int) -> tuple[np.ndarray, np.ndarray]:
    return np.eye(d), p


def _rotation(axis: int, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    a, b = [k for k in range(3) if k != axis]
    matrix = np.eye(3)
    matrix[a, a] = matrix[b, b] = c
    matrix[a, b], matrix[b, a] = (s, -s) if axis == 1 else (-s, s)
    return matrix


def _euler3d(p: np.ndarray, fixed: np.ndarray, d: int) -> tuple[np.ndarray, np.ndarray]:
    x, y, z = (_rotation(axis, p[axis]) for axis in range(3))
    zyx = len(fixed) > 3 and fixed[3] != 0
    return (z @ y @ x if zyx else z @ x @ y), p[3:]


def _euler2d(p: np.ndarray, fixed: np.ndarray, d: int) -> tuple[np.ndarray, np.ndarray]:
    return _rotation(2, p[0])[:2, :2], p[1:]


def _similarity2d(p: np.ndarray, fixed: np.ndarray, d: int) -> tuple[np.ndarray, np.ndarray]:
    return p[0] * _rotation(2, p[1])[:2, :2], p[2:]


def _versor(p: np.ndarray, fixed: np.ndarray, d: int) -> tuple[np.ndarray, np.ndarray]:
    x, y, z = p[:3]
    w = np.sqrt(max(0.0, 1.0 - float(p[:3] @ p[:3])))
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    return (p[6] if len(p) == 7 else 1.0) * rotation, p[3:6]


def _through_simpleitk(path: Path, name: str, kind: str = "") -> np.ndarray:
    try:
        import SimpleITK
    except ImportError:
        what = f"is an ITK {kind}" if kind else f"is a binary {path.suffix or 'file'}"
        raise InputError(
            f"{name} {what}, which needs SimpleITK: pip install 'neuralreg[itk]', or give a text affine"
        ) from None
    try:
        transform = SimpleITK.ReadTransform(str(path))
    except RuntimeError as error:
        why = brief(RuntimeError(str(error).split("ITK ERROR:")[-1]))
        raise InputError(f"{name} cannot be read as an ITK transform ({why})") from error
    if not transform.IsLinear():
        raise InputError(f"{name} is not linear; give an affine")
    return affine_of(transform)


def affine_of(transform: Any) -> np.ndarray:
    """The LPS matrix of a linear SimpleITK transform, from where it takes the origin and the unit vectors."""
    d = transform.GetDimension()
    origin = np.array(transform.TransformPoint([0.0] * d))
    matrix = np.eye(d + 1)
    matrix[:d, d] = origin
    for k in range(d):
        matrix[:d, k] = np.array(transform.TransformPoint([float(k == j) for j in range(d)])) - origin
    return matrix


def center_alignment(fixed: Image, moving: Image, by: str = "intensity") -> np.ndarray:
    """The translation (ndim+1, ndim+1), RAS mm, that takes the fixed centre to the moving centre.

    by: "intensity" (centre of mass of intensity above the image's minimum) or "geometry" (centre of the
    grid).
    """
    if by not in ("intensity", "geometry"):
        raise InputError(f"unknown centre alignment '{by}'; use intensity or geometry")
    matrix = np.eye(fixed.ndim + 1)
    matrix[:-1, -1] = _centre(moving, by) - _centre(fixed, by)
    return matrix


def _centre(image: Image, by: str) -> np.ndarray:
    middle = (np.array(image.shape) - 1) / 2
    if by == "intensity":
        low = float(image.data.min())
        profiles = []
        for axis in range(image.ndim):
            others = [k for k in range(image.ndim) if k != axis]
            rest = image.data.numel() / image.shape[axis]
            profiles.append((image.data.sum(others, dtype=torch.float64) - low * rest).cpu().numpy())
        if profiles[0].sum() > 0:
            middle = np.array([p @ np.arange(len(p)) / p.sum() for p in profiles])
    return image.geometry.voxel_to_world(middle[None])[0]
