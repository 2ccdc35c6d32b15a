"""Figures of a registration that are known beforehand: surfaces, snapped landmarks, SSIM, consistency, SDlogJ."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from neuralreg.evaluation import at_start, consistency, distances, similarity, snapped
from neuralreg.images import Geometry, Image, write_image
from neuralreg.metrics import determinant, sdlogj_learn2reg
from neuralreg.surface import surface_distances
from neuralreg.transforms import Transform
from tests.geometry import GRIDS, image_on, smooth_displacement
from tests.small import call


def test_surfaces_of_boxes_are_as_far_as_they_were_moved() -> None:
    pytest.importorskip("surface_distance")
    from surface_distance import compute_average_surface_distance, compute_surface_distances

    a = torch.zeros(30, 28, 26, dtype=torch.int32)
    a[8:20, 8:20, 8:20] = 3
    b = torch.roll(a, 4, 1)
    b[0, 0, 0], a[29, 27, 25] = 5, 6  # each in one map alone
    hd95, assd = surface_distances(a, b, [3, 5, 6, 7], (1.0, 2.5, 1.0))
    assert hd95[3] == pytest.approx(10)  # 4 voxels of 2.5 mm
    directed = compute_average_surface_distance(
        compute_surface_distances(a.numpy() == 3, b.numpy() == 3, (1.0, 2.5, 1.0))
    )
    assert assd[3] == pytest.approx(np.mean(directed))  # of two surfaces of one area
    assert 2 < assd[3] < 6  # most of four faces has moved within itself
    assert [hd95[k] for k in (5, 6)] == [assd[k] for k in (5, 6)] == [float("inf")] * 2
    assert np.isnan([hd95[7], assd[7]]).all()
    assert surface_distances(a, a, [3], (1, 1, 1)) == ({3: 0.0}, {3: 0.0})


def test_sdlogj_of_learn2reg() -> None:
    u = smooth_displacement((14, 13, 12), 2.5)
    det = determinant(u.double())[2:-2, 2:-2, 2:-2].numpy()
    assert (det <= -3).any() or (det <= 0).any()
    expected = np.log(np.clip(det + 3, 1e-9, 1e9))
    assert sdlogj_learn2reg(u) == pytest.approx(expected.std(), rel=1e-9)
    mask = torch.zeros(14, 13, 12, dtype=torch.bool)
    mask[4:9, 3:9, 5:8] = True
    assert sdlogj_learn2reg(u, mask) == pytest.approx(expected[2:7, 1:7, 3:6].std(), rel=1e-9)
    assert np.isnan(sdlogj_learn2reg(torch.zeros(3, 4, 9, 9)))


@pytest.mark.parametrize("name", ["oblique", "left-handed"])
def test_snapped_points_are_voxel_centres(name: str) -> None:
    moving = GRIDS[name][1]
    random = np.random.default_rng(0)
    voxels = random.integers(1, 15, (20, 3))
    inside = random.uniform(-0.45, 0.45, (20, 3))
    flip = np.array([-1, -1, 1])
    found = snapped(moving.voxel_to_world(voxels + inside) * flip, moving)
    assert np.allclose(found, moving.voxel_to_world(voxels) * flip)


def test_snapped_landmarks(tmp_path: Path) -> None:
    fixed = Geometry((20, 20, 20), np.diag([2.0, 2.0, 2.0, 1.0]))
    u = torch.zeros(3, 20, 20, 20)
    u[0] = 0.6  # 1.2 mm: more than half a voxel
    header = "fixed_x_ras,fixed_y_ras,fixed_z_ras,moving_x_ras,moving_y_ras,moving_z_ras"
    (tmp_path / "l.csv").write_text(f"{header}\n10,10,10,12,10,10\n20,12,14,22,12,14\n")
    write_image(tmp_path / "m.nii.gz", torch.rand(20, 20, 20), fixed.affine)
    found = distances(tmp_path / "l.csv", None, Transform(u, fixed), tmp_path / "m.nii.gz")
    assert found["tre_mean_before_mm"] == pytest.approx(2)
    assert found["tre_mean_mm"] == pytest.approx(0.8, abs=1e-5)
    assert found["tre_mean_snapped_mm"] == pytest.approx(0, abs=1e-5)


def test_ssim_and_consistency_of_a_known_warp(tmp_path: Path) -> None:
    fixed, moving = GRIDS["oblique"]
    transform = Transform(smooth_displacement(fixed.shape), fixed, moving)
    image = image_on(moving)
    warped = transform.warp(image)
    write_image(tmp_path / "m.nii.gz", image.data, moving.affine)
    write_image(tmp_path / "f.nii.gz", warped.data, fixed.affine)
    found = similarity(tmp_path / "f.nii.gz", tmp_path / "m.nii.gz", None, transform)
    assert found["ssim_before"] < 0.95 < 0.99 < found["ssim"]
    given = similarity(tmp_path / "f.nii.gz", None, tmp_path / "f.nii.gz", None)
    assert given == {"ssim": pytest.approx(1)}
    good, none = transform.inverse(moving), Transform(torch.zeros(3, *moving.shape), moving, fixed)
    assert consistency(transform, good)["inverse_consistency_mm"] < 0.4
    assert consistency(transform, none)["inverse_consistency_mm"] > 1


def test_before_is_where_the_headers_put_it() -> None:
    fixed, moving = GRIDS["oblique"]
    still = at_start(image_on(moving), fixed, "linear")
    inside = still.data != 0
    assert inside.float().mean() > 0.3
    assert (still.data - image_on(fixed).data)[inside].abs().median() < 0.02
    assert at_start(still, fixed, "linear") is still


def test_command_with_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("surface_distance")
    fixed, moving = GRIDS["anisotropic"]
    transform = Transform(smooth_displacement(fixed.shape), fixed, moving)
    image = image_on(moving)
    labels = Image((image.data > 0).to(torch.uint8), moving.affine)
    transform.save(tmp_path / "t.nii.gz")
    transform.inverse(moving).save(tmp_path / "i.nii.gz")
    for name, volume, grid in (
        ("m", image.data, moving),
        ("f", transform.warp(image).data, fixed),
        ("ml", labels.data, moving),
        ("fl", transform.warp(labels, interpolation="nearest").data, fixed),
    ):
        write_image(tmp_path / f"{name}.nii.gz", volume, grid.affine)
    flags = {
        "fixed": "f",
        "moving": "m",
        "fixed-labels": "fl",
        "moving-labels": "ml",
        "transform": "t",
        "inverse": "i",
    }
    words = [word for flag, name in flags.items() for word in (f"--{flag}", tmp_path / f"{name}.nii.gz")]
    found = json.loads(call("evaluate", *words, "--surface", "--json").stdout)
    assert found["hd95_mean_mm"] < 0.1 < 1 < found["hd95_mean_before_mm"]
    assert found["assd_mean_mm"] < 0.1 < found["assd_mean_before_mm"]
    assert found["surface_distance"].startswith("surface-distance 0.")
    assert found["ssim"] > found["ssim_before"]
    assert found["inverse_consistency_mm"] < 0.8
    assert found["folds"] == 0
    shown = call("evaluate", *words, "--surface").stdout
    for word in (
        "surfaces by surface-distance",
        "HD95 before (mm)",
        "ASSD after",
        "SSIM",
        "as Learn2Reg",
        "consistency",
    ):
        assert word in shown
    for more, told in (
        (words[:2], "nothing to compare with"),
        (words[2:4], "compared with --fixed"),
        (words[10:], "--inverse belongs"),
        ([*words[8:10], "--surface"], "--surface need"),
    ):
        failed = call("evaluate", *more)
        assert (failed.exit_code, failed.stderr.count("\n")) == (2, 1)
        assert told in failed.stderr
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    failed = call("evaluate", *words, "--surface")
    assert failed.exit_code == 2
    assert "pip install 'neuralreg[evaluate]'" in failed.stderr
