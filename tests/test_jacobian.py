"""The Jacobian map: what it says of known maps in millimetres, however the transform is stored and the grid lies."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from neuralreg.images import write_image
from neuralreg.jacobian import jacobian_map
from neuralreg.transforms import Transform, load_transform
from tests.geometry import GRIDS, smooth_displacement, world_of
from tests.small import call


def linear_map(name: str, matrix: np.ndarray) -> Transform:
    """y = matrix x about the grid's middle as a displacement alone, in RAS millimetres."""
    grid = GRIDS[name][0]
    world = world_of(grid)
    middle = world.reshape(-1, 3).mean(0)
    moved = (world - middle) @ (matrix - np.eye(3)).T
    u = moved @ np.linalg.inv(grid.affine[:3, :3]).T
    return Transform(torch.from_numpy(np.moveaxis(u, -1, 0).astype(np.float32)), grid)


@pytest.mark.parametrize("name", list(GRIDS))
def test_of_a_linear_map_it_is_the_determinant(name: str, tmp_path: Path) -> None:
    """Twice along x, half along y, a shear, and a turn: on every grid and after a round trip through a file."""
    matrix = np.array([[2.0, 0.3, 0.0], [0.0, 0.9, 0.1], [0.0, 0.2, 1.2]])
    expected = np.linalg.det(matrix)
    transform = linear_map(name, matrix)
    assert np.allclose(jacobian_map(transform), expected, rtol=1e-3)
    transform.save(tmp_path / "t.nii.gz")
    assert np.allclose(jacobian_map(load_transform(tmp_path / "t.nii.gz")), expected, rtol=1e-2)
    assert np.allclose(jacobian_map(transform, logarithm=True), np.log(expected), atol=1e-3)


def test_an_initial_affine_counts_wherever_it_is_stored(tmp_path: Path) -> None:
    fixed, moving = GRIDS["oblique"]
    initial = np.diag([1.3, 0.8, 1.1, 1.0])
    initial[:3, 3] = 2, -3, 4
    transform = Transform(smooth_displacement(fixed.shape), fixed, moving, initial)
    transform.save(tmp_path / "t.nii.gz")
    stored = load_transform(tmp_path / "t.nii.gz")
    assert np.allclose(stored.initial, np.eye(4))
    assert np.allclose(jacobian_map(transform), jacobian_map(stored), atol=5e-3)
    assert abs(float(jacobian_map(transform).median()) - 1.3 * 0.8 * 1.1) < 0.2


def test_the_command(tmp_path: Path) -> None:
    fixed = GRIDS["left-handed"][0]
    u = smooth_displacement(fixed.shape)
    u[0, 9:12] = torch.tensor([3.0, 0.0, -3.0]).view(3, 1, 1)  # folds
    transform = Transform(u, fixed)
    transform.save(tmp_path / "t.nii.gz")
    mask = torch.zeros(fixed.shape, dtype=torch.uint8)
    mask[4:16, 3:15, 3:13] = 1
    write_image(tmp_path / "mask.nii.gz", mask, fixed.affine)
    words = ("jacobian", "--transform", tmp_path / "t.nii.gz", "--out")
    done = call(*words, tmp_path / "j.nii.gz")
    assert done.exit_code == 0, done.output
    assert "folds" in done.stdout
    image = nibabel.load(tmp_path / "j.nii.gz")
    assert np.allclose(image.affine, fixed.affine, atol=1e-4)
    det = image.get_fdata()
    assert np.allclose(det, jacobian_map(transform).numpy(), atol=1e-2)
    shown = json.loads(
        call(*words, tmp_path / "l.nii.gz", "--log", "--mask", tmp_path / "mask.nii.gz", "--json").stdout
    )
    log, inside = nibabel.load(tmp_path / "l.nii.gz").get_fdata(), mask.numpy() > 0
    assert (log[~inside] == 0).all()
    assert (np.isnan(log) == (inside & (det <= 0))).all()
    assert np.allclose(log[inside & (det > 0)], np.log(det[inside & (det > 0)]), atol=1e-3)
    assert shown["folds"] == (det[inside] <= 0).sum() > 50
    assert shown["voxels"] == inside.sum()
    call(*words, tmp_path / "m.nii.gz", "--mask", tmp_path / "mask.nii.gz")
    assert (nibabel.load(tmp_path / "m.nii.gz").get_fdata()[~inside] == 1).all()


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "a.txt", np.eye(4))
    fixed, _ = GRIDS["plain"]
    Transform(smooth_displacement(fixed.shape), fixed).save(tmp_path / "t.nii.gz")
    write_image(tmp_path / "m.nii.gz", torch.ones(4, 4, 4), np.eye(4))
    for words, told in (
        (("--transform", tmp_path / "a.txt", "--out", tmp_path / "j.nii.gz"), "an affine"),
        (("--transform", tmp_path / "t.nii.gz", "--out", tmp_path / "t.nii.gz"), "overwritten"),
        (("--transform", tmp_path / "t.nii.gz", "--out", tmp_path / "j.png"), "suffix"),
        (
            (
                "--transform",
                tmp_path / "t.nii.gz",
                "--out",
                tmp_path / "j.nii.gz",
                "--mask",
                tmp_path / "m.nii.gz",
            ),
            "another grid",
        ),
    ):
        failed = call("jacobian", *words)
        assert (failed.exit_code, failed.stderr.count("\n")) == (2, 1)
        assert told in failed.stderr
    assert not (tmp_path / "j.nii.gz").exists()
