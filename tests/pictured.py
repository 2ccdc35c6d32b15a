"""A registration's result without a fit, for pictures and pages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from neuralreg.images import Image
from neuralreg.transforms import Transform
from tests.small import blobs

SUMMARY = {
    "method": "nir",
    "preset": "fast",
    "folds_percent": 0.0,
    "sdlogj": 0.1,
    "inverse_consistency_mm": 0.2,
    "wall_seconds": 1.0,
    "cpu_seconds": 2.0,
    "iterations": 3,
    "peak_memory_mb": 100.0,
}


def registration(displacement: torch.Tensor, affine: np.ndarray, length: int = 30) -> Any:
    shape = tuple(displacement.shape[1:])
    fixed, moving = (
        Image(torch.from_numpy(blobs(shape)), affine),
        Image(torch.from_numpy(blobs(shape, 2)), affine),
    )
    transform = Transform(displacement, fixed.geometry, moving.geometry)
    history = [
        {"iteration": i, "loss": -i / 50, "similarity": i / 50, "regulariser": 0.0} for i in range(length)
    ]
    return SimpleNamespace(
        transform=transform,
        fixed=fixed,
        moving=moving,
        warped=transform.warp(moving),
        history=history,
        summary=SUMMARY,
    )
