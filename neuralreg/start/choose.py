"""Which affine stands before the field: given, from centres or moments, or searched for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from neuralreg.affines import center_alignment
from neuralreg.device import pick_device
from neuralreg.errors import InputError
from neuralreg.fit import Progress
from neuralreg.formats import read
from neuralreg.images import Geometry, Image
from neuralreg.inputs import Inputs, read_inputs
from neuralreg.losses import SIMILARITIES
from neuralreg.start.levels import Level, make_levels
from neuralreg.start.model import MODELS
from neuralreg.start.moments import moment_alignments
from neuralreg.start.search import judged, search
from neuralreg.transforms import Affine, SpatialMap

STARTS = ("none", "center", "moments", *MODELS)
SIMILARITY = "nmi"


@dataclass(frozen=True)
class Start:
    """An affine that stands before a field.

    Attributes:
        matrix: (ndim + 1, ndim + 1) float64, fixed to moving points, RAS mm.
        name: where it comes from.
        record: how it was found, for the summary: model, begin, similarity, its value before and after, overlap; None
            where nothing was searched for.
    """

    matrix: np.ndarray
    name: str
    record: dict[str, Any] | None = None


def align(
    fixed: Any,
    moving: Any,
    start: str = "affine",
    *,
    similarity: str = SIMILARITY,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    initial_transform: Any = None,
    window: tuple[float, float] | None = None,
    quantiles: tuple[float, float] | None = None,
    nan_to: float | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Start:
    """A linear alignment alone: the affine that takes fixed points to moving points.

    Args:
        start: "center" lays the centres of mass on each other; "moments" the principal axes too, by a rotation;
            "rigid" and "affine" climb the similarity from there, from the headers and from the grids' centres, coarse
            to fine. "none" is ``initial_transform`` or the identity.
        similarity: what "rigid" and "affine" climb, and "moments" tells directions by: one of
            :data:`neuralreg.losses.SIMILARITIES`.
        initial_transform: where "rigid" and "affine" begin.
        The others are those of :func:`neuralreg.register`.

    No random number is drawn: the same input gives the same affine.

    Raises:
        InputError: something about the input, or nothing plausible found; one line.
    """
    check_start(start, similarity)
    inputs = read_inputs(
        fixed, moving, fixed_mask, moving_mask, window=window, quantiles=quantiles, nan_to=nan_to
    )
    given, more = read_initial(initial_transform, *(image.geometry for image in inputs.images))
    if more is not None:
        raise InputError(
            f"initial transform {initial_transform} is more than an affine: a linear start is one"
        )
    return find_start(start, inputs, given, similarity, pick_device(device), progress)


def check_start(start: str, similarity: str) -> None:
    """InputError for names that do not exist."""
    for name, value, known in (("start", start, STARTS), ("start_similarity", similarity, SIMILARITIES)):
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def read_initial(
    source: Any, fixed: Geometry, moving: Geometry
) -> tuple[tuple[np.ndarray, str] | None, SpatialMap | None]:
    """A given affine, RAS mm, with its name; or what is more than an affine; neither without a source.

    ``source``: a file of any format, such a transform, or an array in RAS world coordinates.
    """
    if source is None:
        return None, None
    name = "given"
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        source = read(source, None, fixed, moving, role="initial transform")
    if isinstance(source, SpatialMap) and not isinstance(source, Affine):
        return None, source
    matrix = source.matrix if isinstance(source, Affine) else np.asarray(source, dtype=np.float64)
    return (matrix, name), None


def find_start(
    start: str,
    inputs: Inputs,
    given: tuple[np.ndarray, str] | None,
    similarity: str,
    device: torch.device,
    progress: Progress | None = None,
) -> Start:
    """The affine that a start names, for inputs that are read; see :func:`align`."""
    ndim = inputs.images[0].ndim
    if given is not None:
        check_initial(*given, ndim)
        if start in ("center", "moments"):
            raise InputError(
                f"start {start} and initial transform {given[1]} both say where to begin: give one of them, or "
                "take start rigid or affine, which refine an initial transform"
            )
    if start == "none":
        return Start(*(given or (np.eye(ndim + 1), "identity")))
    centred = center_alignment(_counted(inputs, 0), _counted(inputs, 1))
    if start == "center":
        return Start(centred, "centre alignment")
    levels = make_levels(inputs, device)
    if start == "moments":
        return Start(best_moments(levels[0], similarity), "moments alignment")
    if given is None:
        beginnings = {
            "headers": np.eye(ndim + 1),
            "centres of the grids": center_alignment(*inputs.images, by="geometry"),
            "centres of mass": centred,
            "moments": best_moments(levels[0], similarity),
        }
        beginnings = distinct(beginnings, inputs.images[0], levels[0].spacing)
    else:
        beginnings = {given[1]: given[0]}
    matrix, record = search(levels, start, beginnings, similarity, progress)
    return Start(matrix, f"{start} from {record['begin']}", record)


def check_initial(matrix: np.ndarray, name: str, ndim: int) -> None:
    """InputError where a given affine has another dimension than the images, or is singular."""
    if matrix.shape != (ndim + 1, ndim + 1):
        raise InputError(
            f"initial transform {name}: needs a {ndim + 1}x{ndim + 1} matrix, got {matrix.shape}"
        )
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:ndim, :ndim])) < 1e-8:
        raise InputError(f"initial transform {name} is singular: it maps the volume onto a plane or less")


def best_moments(level: Level, similarity: str) -> np.ndarray:
    """The alignment of principal axes, its directions as the images are most alike."""
    return max(moment_alignments(level), key=lambda matrix: judged(level, matrix, similarity)[0])


def distinct(beginnings: dict[str, np.ndarray], fixed: Image, least: float) -> dict[str, np.ndarray]:
    """Without those that move every corner of the fixed image to within ``least`` mm of where another does."""
    corners = np.c_[fixed.geometry.corners(), np.ones(2**fixed.ndim)]
    kept: dict[str, np.ndarray] = {}
    for name, matrix in beginnings.items():
        apart = [np.linalg.norm(corners @ (matrix - other).T, axis=1).max() for other in kept.values()]
        if not apart or min(apart) > least:
            kept[name] = matrix
    return kept


def _counted(inputs: Inputs, which: int) -> Image:
    """A scaled image, 0 outside its mask."""
    image, mask = inputs.scaled[which], inputs.masks[which]
    return image if mask is None else Image(image.data * mask, image.affine)
