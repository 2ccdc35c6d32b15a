"""The figures of one registration against what is known: label maps, landmarks, masks; each function returns a dict."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from torch import Tensor

from neuralreg.errors import InputError
from neuralreg.images import (
    Geometry,
    Image,
    check_same_grid,
    read_geometry,
    read_image,
    read_labels,
    read_mask,
    scale_intensity,
)
from neuralreg.landmarks import read_landmarks
from neuralreg.maps import SpatialMap
from neuralreg.metrics import (
    dice,
    mean_dice,
    non_diffeomorphic_volume,
    regularity,
    sdlogj_learn2reg,
    tre,
)
from neuralreg.reading import lps_flip
from neuralreg.surface import require_surface_distance, surface_distances
from neuralreg.transforms import Affine, Transform, inverse_consistency

Source = str | os.PathLike[str]


def overlap(
    fixed: Source,
    moving: Source | None,
    warped: Source | None,
    transform: SpatialMap | None,
    wanted: list[int] | None = None,
    surface: bool = False,
) -> dict[str, Any]:
    """Dice of label maps: before (``moving`` as it lies in space) and after (warped here, or ``warped`` as given).

    ``wanted`` are the labels that count, by default all but 0. Returns dice_before and dice (label -> Dice) with their
    means dice_mean_before and dice_mean, as far as the arguments go. With ``surface`` also HD95 and ASSD in
    millimetres of the fixed grid, hd95_before_mm, hd95_mm, hd95_mean_before_mm ..., and what measured them.
    """
    target = read_labels(fixed, role="fixed labels")
    compared = {}
    if moving is not None:
        source = read_labels(moving, role="moving labels")
        compared["_before"] = at_start(source, target.geometry, "nearest")
        if transform is not None and warped is None:
            compared[""] = transform.warp(source, target.geometry, "nearest")
    if warped is not None:
        compared[""] = _on_grid_of(target, read_labels(warped, role="warped labels"), "warped labels", warped)
    means: dict[str, Any] = {}
    scores: dict[str, Any] = {}
    for when, labels in compared.items():
        scores[f"dice{when}"] = dice(target, labels, wanted)
        means[f"dice_mean{when}"] = mean_dice(scores[f"dice{when}"])
        if surface:
            means["surface_distance"] = require_surface_distance()
            found = surface_distances(target.data, labels.data, scores[f"dice{when}"], target.spacing)
            for name, values in zip(("hd95", "assd"), found, strict=True):
                scores[f"{name}{when}_mm"] = values
                means[f"{name}_mean{when}_mm"] = mean_dice(values)
    return {**means, **scores}


def at_start(moving: Image, grid: Geometry, interpolation: str) -> Image:
    """A moving image as it lies in space before any transform, read on a grid; left alone where it is on it."""
    if moving.geometry.same_grid(grid):
        return moving
    return Affine(np.eye(grid.ndim + 1)).warp(moving, grid, interpolation)


def _on_grid_of(fixed: Image, image: Image, role: str, path: Source) -> Image:
    check_same_grid(image.geometry, fixed.geometry, role=f"{role} {path}", like="the fixed one")
    return image


def similarity(
    fixed: Source, moving: Source | None, warped: Source | None, transform: SpatialMap | None
) -> dict[str, Any]:
    """SSIM of the images: before (``moving`` as it lies in space) and after (warped here, or ``warped`` as given).

    Each image is brought to [0, 1] by its own 0 and 0.999 quantiles, the warped one by those of ``moving`` where that
    is given; windows are Gaussian, 11 voxels wide with a standard deviation of 1.5, full ones only where they fit.
    Returns ssim_before and ssim, as far as the arguments go.
    """
    target = read_image(fixed, role="fixed image")
    compared = {}
    if moving is not None:
        source = read_image(moving, role="moving image")
        scaled = Image(scale_intensity(source)[0], source.affine)
        compared["ssim_before"] = at_start(scaled, target.geometry, "linear")
        if transform is not None and warped is None:
            compared["ssim"] = transform.warp(scaled, target.geometry)
    if warped is not None:
        image = _on_grid_of(target, read_image(warped, role="warped image"), "warped image", warped)
        compared["ssim"] = Image(scale_intensity(image)[0], image.affine)
    return {name: ssim(scale_intensity(target)[0], image.data) for name, image in compared.items()}


def ssim(fixed: Any, warped: Any) -> float:
    """The mean SSIM of two images (*sp) in [0, 1], as `similarity` describes it."""
    from neuralreg import kernels

    padding = "valid" if min(fixed.shape) >= 11 else "same"
    return float(kernels.ssim(fixed[None, None], warped[None, None], padding=padding))


def smoothness(transform: Transform, mask: Source | None = None) -> dict[str, Any]:
    """Folds, SDlogJ (plain and Learn2Reg's) and NDV of a transform, everywhere or in a mask of its grid."""
    chosen, u = _chosen(mask, transform), transform.displacement
    return {
        **regularity(u, chosen),
        "sdlogj_learn2reg": sdlogj_learn2reg(u, chosen),
        "ndv_voxels": non_diffeomorphic_volume(u, chosen),
    }


def consistency(transform: Transform, inverse: Transform, mask: Source | None = None) -> dict[str, Any]:
    """How far a point comes back from itself: inverse_consistency_mm, the mean, and inverse_consistency, all of it."""
    if inverse.ndim != transform.ndim:
        raise InputError(f"the inverse is {inverse.ndim}-D, the transform is {transform.ndim}-D")
    found = inverse_consistency(transform, inverse, _chosen(mask, transform))
    return {"inverse_consistency_mm": found["mean_mm"], "inverse_consistency": found}


def _chosen(mask: Source | None, transform: Transform) -> Tensor | None:
    """The voxels of a transform's grid that a mask chooses; None: all."""
    if mask is None:
        return None
    return read_mask(mask, role="mask", like=transform.fixed, like_name="the transform").data


def distances(
    path: Source, space: str | None, transform: SpatialMap | None, moving: Source | None = None
) -> dict[str, Any]:
    """TRE in millimetres before, |moving - fixed|, and after, |moving - transform(fixed)|.

    ``space`` ("RAS" or "LPS") where the header of the csv does not state it. With ``moving``, an image on the moving
    grid, also tre_snapped_mm: mapped points rounded to its voxels first, as DIR-Lab's figures are often given.
    """
    fixed, true = read_landmarks(path, space)
    errors = {"tre_before_mm": tre(fixed, true)}
    if transform is not None:
        if fixed.shape[1] != transform.ndim:
            raise InputError(f"landmarks {path} are {fixed.shape[1]}-D, the transform is {transform.ndim}-D")
        mapped = transform.transform_points(fixed, "LPS")
        errors["tre_mm"] = tre(mapped, true)
        if moving is not None:
            errors["tre_snapped_mm"] = tre(snapped(mapped, read_geometry(moving, role="moving image")), true)
    means = {name.replace("tre", "tre_mean"): values["mean"] for name, values in errors.items()}
    return {**means, **errors}


def snapped(points: np.ndarray, grid: Geometry) -> np.ndarray:
    """Points (n, ndim), LPS millimetres, moved to the nearest voxel centres of a grid."""
    if points.shape[1] != grid.ndim:
        raise InputError(f"the landmarks are {points.shape[1]}-D, the moving image is {grid.ndim}-D")
    sign = np.diag(lps_flip(grid.ndim))[:-1]
    voxels = np.rint(grid.world_to_voxel(points * sign))
    return grid.voxel_to_world(voxels) * sign
