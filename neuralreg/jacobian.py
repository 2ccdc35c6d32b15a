"""How much a transform enlarges each place: the determinant of its physical Jacobian as an image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralreg.metrics import determinant
from neuralreg.transforms import Transform


def jacobian_map(transform: Transform, logarithm: bool = False, mask: Tensor | None = None) -> Tensor:
    """det dy/dx (*sp) float32 at the fixed voxels of the map y(x), both in millimetres.

    det is 2 where a piece of tissue takes twice the volume in the moving image that it takes in the fixed one; 1 where
    nothing changes; 0 or less where the map folds. It is that of the whole map, an initial affine included, by central
    differences over the lattice, one-sided at its border. No spacing or orientation enters: y and x are in one unit
    along axes that the determinant cancels.

    ``logarithm``: the natural logarithm, nan where det <= 0. ``mask`` (*sp): voxels outside become 1, or 0 of the
    logarithm: no change.
    """
    scale = float(np.linalg.det(np.asarray(transform.initial)[:-1, :-1]))
    values = determinant(transform.displacement) * scale
    if logarithm:
        values = torch.where(values > 0, values, torch.nan).log()
    if mask is not None:
        values = torch.where(mask != 0, values, 0.0 if logarithm else 1.0)
    return values.float()


def statistics(det: Tensor) -> dict[str, Any]:
    """Of determinants (*any): voxels, folds (det <= 0), min, median, max, mean_log and sd_log over det > 0."""
    logs = det[det > 0].double().log()
    return {
        "voxels": det.numel(),
        "folds": det.numel() - logs.numel(),
        "min": float(det.min()),
        "median": float(np.median(det.numpy())),
        "max": float(det.max()),
        "mean_log": float(logs.mean()) if logs.numel() else float("nan"),
        "sd_log": float(logs.std(correction=0)) if logs.numel() else float("nan"),
    }
