"""Every format against whoever else reads it: known transforms, both directions, on oblique and other grids."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from neuralreg.errors import InputError
from neuralreg.images import Geometry, Image
from neuralreg.transforms import Affine, SpatialMap, Transform, load_transform
from tests.formats.judges import CASES, Case, Judged
from tests.formats.known import FLIP, IMAGE_ERROR, POINT_ERROR, Known, known
from tests.geometry import CENTRE, GRIDS, initial_affine, smooth_displacement

each_format = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def written(case: Case, pair: Known, folder: Path) -> Path:
    pytest.importorskip("SimpleITK", reason="the judge of ITK's formats (extra itk)")
    if case.format == "x5" and importlib.util.find_spec("h5py") is None:
        pytest.skip("X5 files need h5py (extra x5)")
    path = folder / case.file
    pair.transform.save(path, case.format, **case.options)
    return path


def read_back(case: Case, path: Path, pair: Known) -> Judged:
    """What our own reading makes of the file."""
    loaded = load_transform(path, None if case.format == "x5" else case.format, pair.fixed, pair.moving)
    image = loaded.warp(pair.image(), pair.fixed).data.numpy()
    return image, loaded.transform_points(pair.points() * FLIP, "LPS") * FLIP


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", GRIDS)
@each_format
def test_known_warp(case: Case, name: str, backward: bool, tmp_path: Path) -> None:
    pair = known("bend", name, backward)
    path = written(case, pair, tmp_path)
    theirs, their_points = case.judge(path, pair)
    ours, our_points = read_back(case, path, pair)
    assert pair.image_error(theirs) < IMAGE_ERROR
    assert pair.image_error(ours) < IMAGE_ERROR
    assert pair.point_error(our_points) < POINT_ERROR
    assert pair.point_error(their_points) < POINT_ERROR
    np.testing.assert_allclose(our_points, their_points, atol=5e-3)


@pytest.mark.parametrize("name", GRIDS)
@each_format
def test_known_shift(case: Case, name: str, tmp_path: Path) -> None:
    pair = known("shift", name)
    path = written(case, pair, tmp_path)
    theirs, their_points = case.judge(path, pair)
    _, our_points = read_back(case, path, pair)
    assert pair.image_error(theirs) < IMAGE_ERROR
    assert pair.point_error(their_points) < 5e-3
    assert pair.point_error(our_points) < 5e-3


@pytest.mark.parametrize("axis", range(3))
@each_format
def test_a_wrong_sign_is_noticed(case: Case, axis: int, tmp_path: Path) -> None:
    pair = known("shift", "left-handed")
    path = written(case, pair, tmp_path)
    case.plant(path, axis)
    theirs, their_points = case.judge(path, pair)
    ours, our_points = read_back(case, path, pair)
    for image, points in ((theirs, their_points), (ours, our_points)):
        assert pair.image_error(image) > 3 * IMAGE_ERROR
        assert pair.point_error(points) > 5 * POINT_ERROR


@each_format
def test_what_is_read_is_what_was_written(case: Case, tmp_path: Path) -> None:
    pair = known("bend", "oblique")
    path = written(case, pair, tmp_path)
    again = load_transform(path, case.format, pair.fixed, pair.moving).dense()
    assert again.fixed.same_grid(pair.fixed)
    torch.testing.assert_close(again.to_physical(), pair.transform.to_physical(), atol=2e-3, rtol=0)


def itk_affine_error(path: Path, affine: Affine) -> float:
    """Largest distance, mm, between where ITK's reading of a file and the affine take points."""
    sitk = pytest.importorskip("SimpleITK", reason="the judge of ITK's formats (extra itk)")
    points = np.array(CENTRE) * FLIP + np.random.default_rng(0).normal(size=(10, 3)) * 30
    theirs = [sitk.ReadTransform(str(path)).TransformPoint(p) for p in points]
    return float(np.abs(np.array(theirs) - affine.transform_points(points)).max())


@pytest.mark.parametrize("file", ["a.tfm", "a.txt", "a.mat", "a.h5", "a0GenericAffine.mat"])
def test_an_affine_alone(file: str, tmp_path: Path) -> None:
    affine = Affine(initial_affine())
    affine.save(tmp_path / file, "ants" if "Generic" in file else None)
    assert itk_affine_error(tmp_path / file, affine) < 1e-6
    again = load_transform(tmp_path / file)
    assert isinstance(again, Affine)
    np.testing.assert_allclose(again.matrix, affine.matrix, atol=1e-9)
    for axis in range(3):
        wrong = initial_affine()
        wrong[axis, 3] *= -1
        Affine(wrong).save(tmp_path / file)
        assert itk_affine_error(tmp_path / file, affine) > 1


@pytest.mark.parametrize("case", [c for c in CASES if c.format != "x5"], ids=lambda c: c.name)
def test_two_dimensions(case: Case, tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK", reason="the judge of ITK's formats (extra itk)")
    fixed = Geometry((24, 20), np.array([[-1.2, 1.2, 20.0], [0.9, 1.6, -30.0], [0, 0, 1]]))
    moving = Geometry((30, 26), np.array([[2.0, 0, -20.0], [0, 1.8, -60.0], [0, 0, 1]]))
    transform = Transform(smooth_displacement(fixed.shape), fixed, moving, np.diag([1.1, 0.9, 1.0]))
    transform.save(tmp_path / case.file, case.format, **case.options)
    again = load_transform(tmp_path / case.file, case.format, fixed, moving).dense()
    torch.testing.assert_close(again.to_physical(), transform.to_physical(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("file", ["t.h5", "t1Warp.nii.gz"])
def test_a_sheared_grid_is_made_straight(file: str, tmp_path: Path) -> None:
    pair = known("bend", "oblique")
    affine = pair.fixed.affine.copy()
    affine[:3, 1] += 0.3 * affine[:3, 0]
    sheared = pair.transform.on_grid(Geometry(pair.fixed.shape, affine))
    case = next(c for c in CASES if c.file == file)
    sheared.save(tmp_path / file, case.format)
    _, theirs = case.judge(tmp_path / file, pair)
    ours = sheared.transform_points(pair.points(), "RAS")
    inside = sheared.fixed.world_to_voxel(pair.points())
    kept = ((inside > 1) & (inside < np.array(pair.fixed.shape) - 2)).all(1)
    assert kept.sum() > 10
    assert np.abs(theirs - ours)[kept].max() < POINT_ERROR  # one more linear interpolation


@pytest.mark.parametrize(("module", "file", "extra"), [("SimpleITK", "t.h5", "itk"), ("h5py", "t.x5", "x5")])
def test_a_missing_package_is_named_before_the_work(
    module: str, file: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "there.h5").write_bytes(b"")
    with pytest.raises(InputError, match=rf"neuralreg\[{extra}\]"):
        Affine(np.eye(4)).save(tmp_path / file)
    assert not (tmp_path / file).exists()


def test_a_transform_is_one_kind_of_object(tmp_path: Path) -> None:
    pair = known("bend", "oblique")
    pair.transform.save(tmp_path / "t.nii.gz")
    loaded = Transform.load(tmp_path / "t.nii.gz")
    both = loaded.compose(Affine(initial_affine()))
    points = pair.points()
    for each in (loaded, Affine(initial_affine()), both):
        assert isinstance(each, SpatialMap)
        there = each.apply_to_points(points, "RAS")
        np.testing.assert_allclose(each.apply_to_points(there, "RAS", image="moving"), points, atol=5e-3)
        np.testing.assert_allclose(each.inverted().inverted().transform_points(points, "RAS"), there)
    expected = both.transform_points(points, "RAS")
    np.testing.assert_allclose(both.dense().transform_points(points, "RAS"), expected, atol=0.02)
    again = both.inverse(pair.moving)
    assert again.fixed is pair.moving
    whole = Image(pair.image().data, pair.moving.affine)
    torch.testing.assert_close(both.warp(whole).data, both.dense().warp(whole).data, atol=1e-3, rtol=0)
    with pytest.raises(InputError, match="no grid of its own"):
        both.inverted().dense()
    with pytest.raises(InputError, match="fixed or moving"):
        both.apply_to_points(points, image="atlas")
