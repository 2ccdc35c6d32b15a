"""The figures of one registration against what is known: label maps, landmarks, masks; each function returns a dict."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from neuralreg.errors import InputError
from neuralreg.images import check_same_grid, read_labels, read_mask
from neuralreg.landmarks import read_landmarks
from neuralreg.metrics import dice, mean_dice, non_diffeomorphic_volume, regularity, tre
from neuralreg.transforms import Transform

Source = str | os.PathLike[str]


def overlap(
    fixed: Source,
    moving: Source | None,
    warped: Source | None,
    transform: Transform | None,
    wanted: list[int] | None = None,
) -> dict[str, Any]:
    """Dice of label maps: before (``moving`` as it lies in space) and after (warped here, or ``warped`` as given).

    ``wanted`` are the labels that count, by default all but 0. Returns dice_before and dice (label -> Dice) with their
    means dice_mean_before and dice_mean, as far as the arguments go.
    """
    target = read_labels(fixed, role="fixed labels")
    scores = {}
    if moving is not None:
        source = read_labels(moving, role="moving labels")
        identity = Transform.from_affine(np.eye(target.ndim + 1))
        same = source.geometry.same_grid(target.geometry)
        still = source if same else identity.warp(source, target.geometry, "nearest")
        scores["dice_before"] = dice(target, still, wanted)
        if transform is not None and warped is None:
            scores["dice"] = dice(target, transform.warp(source, target.geometry, "nearest"), wanted)
    if warped is not None:
        result = read_labels(warped, role="warped labels")
        check_same_grid(
            result.geometry, target.geometry, role=f"warped labels {warped}", like=f"fixed labels {fixed}"
        )
        scores["dice"] = dice(target, result, wanted)
    means = {name.replace("dice", "dice_mean"): mean_dice(values) for name, values in scores.items()}
    return {**means, **scores}


def smoothness(transform: Transform, mask: Source | None = None) -> dict[str, Any]:
    """Folds, SDlogJ and NDV of a transform, everywhere or in a mask of its grid."""
    chosen = None
    if mask is not None:
        chosen = read_mask(mask, role="mask", like=transform.fixed, like_name="the transform").data
    u = transform.displacement
    return {**regularity(u, chosen), "ndv_voxels": non_diffeomorphic_volume(u, chosen)}


def distances(path: Source, space: str | None, transform: Transform | None) -> dict[str, Any]:
    """TRE in millimetres before, |moving - fixed|, and after, |moving - transform(fixed)|.

    ``space`` ("RAS" or "LPS") where the header of the csv does not state it.
    """
    fixed, moving = read_landmarks(path, space)
    errors = {"tre_before_mm": tre(fixed, moving)}
    if transform is not None:
        if fixed.shape[1] != transform.ndim:
            raise InputError(f"landmarks {path} are {fixed.shape[1]}-D, the transform is {transform.ndim}-D")
        errors["tre_mm"] = tre(transform.transform_points(fixed, "LPS"), moving)
    means = {name.replace("tre", "tre_mean"): values["mean"] for name, values in errors.items()}
    return {**means, **errors}
