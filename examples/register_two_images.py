"""Two files in; the transform for ITK, ANTs and Learn2Reg, its inverse, and landmarks taken along."""

from pathlib import Path

import numpy as np

import neuralreg


def register(fixed, moving, landmarks, out, **options):
    """``landmarks`` (n, 3) of the fixed image, LPS mm -> their places in the moving image; files in folder ``out``."""
    out = Path(out)
    result = neuralreg.register(fixed, moving, **options)
    result.transform.save(out / "transform.nii.gz")  # ITK and ANTs read it
    result.transform.save(out / "disp.npz", format="learn2reg")
    result.inverse.save(out / "inverse.nii.gz")

    transform = neuralreg.load_transform(out / "transform.nii.gz")
    return transform.apply_to_points(np.asarray(landmarks), space="LPS", image="fixed")
