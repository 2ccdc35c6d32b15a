"""The pairs and cases of the tests of one pair over several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.geometry import CENTRE, GRIDS, image_on, world_of
from tests.small import blobs, save

FIELD: dict[str, Any] = {"levels": 3, "base": 3, "finest": 8, "hidden": (16, 16), "log2_table_size": 10}
SMALL = {**FIELD, "iterations": 5}

# Name of a case: the pair, and what is asked for. Rows of 20 and 24 voxels leave 2 and 4 ranks unequal shares.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "fast": ("oblique", {}),
    "jitter": ("anisotropic", {"stride": 3, "scales": (1,), "lncc_window": 3}),
    "masks": ("left-handed", {"masks": True, "similarity": "ssim", "lncc_window": 4}),
    "masked windows": ("oblique", {"masks": True}),
    "zero rule": (
        "blobs",
        {
            "padding": "valid",
            "zero_rule": True,
            "dropout": 0.2,
            "lncc_window": 3,
            "scales": (1,),
            "stride": 2,
        },
    ),
    "valid masked": ("oblique", {"padding": "valid", "masks": True, "lncc_window": 2, "scales": (1,)}),
    "ncc": ("anisotropic", {"similarity": "ncc", "sampler": "whole", "scales": (3, 1)}),
    "mse": ("anisotropic", {"similarity": "mse", "dropout": 0.3, "sampler": "center", "window": (-1.0, 2.0)}),
    "l1": ("left-handed", {"similarity": "l1", "nir_compat": True, "quantiles": (0.01, 0.9)}),
    "far": (
        "shifted",
        {"margin": 0.0, "similarity": "mse", "scales": (1,), "iterations": 12, "lr": 0.05, "table_lr": 0.05},
    ),
    "planar": ("planar", {"lncc_window": 3}),
}


def make_pairs(folder: Path) -> None:
    """The images and masks of the cases."""
    shapes = {name: (24, 18, 16) for name in ("blobs", "shifted")}
    pairs = {name: [image_on(geometry) for geometry in both] for name, both in GRIDS.items()}
    for name, (fixed, moving) in pairs.items():
        for role, image in (("fixed", fixed), ("moving", moving)):
            save(folder / f"{name}-{role}.nii.gz", image.data.numpy(), image.affine)
            near = np.linalg.norm(world_of(image.geometry) - np.array(CENTRE), axis=-1) < 17
            save(folder / f"{name}-{role}-mask.nii.gz", near.astype(np.uint8), image.affine)
    for name, shape in shapes.items():
        for role, shift in (("fixed", 0.0), ("moving", 1.0 if name == "blobs" else 5.0)):
            values = blobs(shape, shift, seed=3)
            save(folder / f"{name}-{role}.nii.gz", np.where(values < 5, 0, values).astype(np.float32))
    for role, shift in (("fixed", 0.0), ("moving", 1.0)):
        save(folder / f"planar-{role}.nii.gz", blobs((18, 30), shift, seed=1), np.diag([2.0, 1.5, 1.0, 1.0]))


def arguments(folder: Path, name: str) -> dict[str, Any]:
    """What a case asks of register."""
    pair, options = CASES[name]
    options = {**SMALL, **options}
    if options.pop("masks", False):
        options |= {f"{role}_mask": folder / f"{pair}-{role}-mask.nii.gz" for role in ("fixed", "moving")}
    return {role: folder / f"{pair}-{role}.nii.gz" for role in ("fixed", "moving")} | options
