"""Every format against whoever else reads it: known transforms, both directions, on oblique and other grids."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from neuralreg.transforms import load_transform
from tests.formats.judges import CASES, Case, Judged
from tests.formats.known import FLIP, IMAGE_ERROR, POINT_ERROR, Known, known
from tests.geometry import GRIDS

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
