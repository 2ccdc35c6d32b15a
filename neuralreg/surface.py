"""Distances between the surfaces of labels, by DeepMind's surface-distance (extra ``evaluate``).

Tools differ in what a surface is, and by a lot in extremes; this package is the one that Learn2Reg and LUMIR use. Its
surfaces are weighted by their area.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from neuralreg.errors import InputError
from neuralreg.machine import package_version

PACKAGE = "surface-distance"


def require_surface_distance() -> str:
    """Name and version of what measures; InputError where it is missing. Costs a look, not an import."""
    if importlib.util.find_spec("surface_distance") is None:
        raise InputError(
            f"HD95 and ASSD need {PACKAGE}, which is not installed; pip install 'neuralreg[evaluate]'"
        )
    return f"{PACKAGE} {package_version(PACKAGE)}"


def surface_distances(
    a: Any, b: Any, labels: Iterable[int], spacing: Sequence[float]
) -> tuple[dict[int, float], dict[int, float]]:
    """HD95 and ASSD of each label of two label maps (*sp) on one grid, in the unit of ``spacing`` (per axis).

    HD95 is the larger of the two directed 95th percentiles; ASSD is the mean over both surfaces together. A label in
    neither map has no distance: nan. One in a single map is infinitely far.
    """
    require_surface_distance()
    from surface_distance import compute_robust_hausdorff, compute_surface_distances

    a, b = np.asarray(a), np.asarray(b)
    hd95, assd = {}, {}
    for label in labels:
        masks = a == label, b == label
        if not (masks[0].any() and masks[1].any()):
            neither = not masks[0].any() and not masks[1].any()
            hd95[label] = assd[label] = float("nan") if neither else float("inf")
            continue
        found = compute_surface_distances(*masks, spacing_mm=tuple(spacing))
        hd95[label] = float(compute_robust_hausdorff(found, 95))
        distances = np.concatenate([found["distances_gt_to_pred"], found["distances_pred_to_gt"]])
        areas = np.concatenate([found["surfel_areas_gt"], found["surfel_areas_pred"]])
        assd[label] = float((distances * areas).sum() / areas.sum())
    return hd95, assd
