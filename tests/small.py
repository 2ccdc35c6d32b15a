"""Small images on disk and the command line in process: what the tests of the commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

SHAPE = (20, 18, 16)

# Few iterations: these tests are about files, flags and words, not about accuracy.
FAST = ["--iterations", "3", "--threads", "1"]


def blobs(shape: tuple[int, ...] = SHAPE, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    """A smooth float32 image of a few Gaussian blobs, shifted by ``shift`` voxels along the first axis."""
    random = np.random.default_rng(seed)
    grid = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    values = np.zeros(shape)
    for _ in range(12):
        centre = [random.uniform(0.2, 0.8) * n for n in shape]
        width = random.uniform(1.5, 3.0)
        distance = sum(
            (x - c - (shift if axis == 0 else 0)) ** 2
            for axis, (x, c) in enumerate(zip(grid, centre, strict=True))
        )
        values += random.uniform(20, 100) * np.exp(-distance / (2 * width**2))
    return values.astype(np.float32)


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    import nibabel

    nibabel.save(
        nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine), path
    )
    return path


def call(*arguments: Any) -> Any:
    """Run `neuralreg` with these arguments; the result has exit_code, stdout and stderr."""
    from neuralreg.cli import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def pair_folder(folder: Path) -> Path:
    """The folder with a good pair, fixed.nii.gz and moving.nii.gz, and an empty folder out."""
    save(folder / "fixed.nii.gz", blobs())
    save(folder / "moving.nii.gz", blobs(shift=1.0))
    (folder / "out").mkdir()
    return folder


def register(
    folder: Path, *more: Any, fixed: Any = "fixed.nii.gz", moving: Any = "moving.nii.gz"
) -> list[Any]:
    """The arguments that register a folder's pair."""
    out = ["--transform-out", folder / "out/t.nii.gz", "--summary", folder / "out/s.json"]
    return ["register", "--fixed", folder / fixed, "--moving", folder / moving, *FAST, *out, *more]
