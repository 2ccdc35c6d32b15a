"""Our files in ANTs and nitransforms themselves, and nitransforms' files here, where these packages are installed."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from neuralreg.images import Image, write_image
from neuralreg.transforms import Affine, SpatialMap, compose, load_transform
from tests.formats.known import FLIP, IMAGE_ERROR, POINT_ERROR, Known, known
from tests.geometry import GRIDS, initial_affine, world_of

both_ways = pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
on_every_grid = pytest.mark.parametrize("name", GRIDS)


def images(pair: Known, folder: Path) -> tuple[Path, Path]:
    """Files of the fixed grid and of the moving image."""
    write_image(folder / "fixed.nii.gz", np.zeros(pair.fixed.shape, np.float32), pair.fixed.affine)
    write_image(folder / "moving.nii.gz", pair.image().data, pair.moving.affine)
    return folder / "fixed.nii.gz", folder / "moving.nii.gz"


def by_ants(pair: Known, folder: Path, files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """The moving image by apply_transforms, the points by apply_transforms_to_points, with the same list."""
    ants = pytest.importorskip("ants", reason="antspyx is not installed")
    import pandas

    fixed, moving = (ants.image_read(str(path)) for path in images(pair, folder))
    names = [str(path) for path in files]
    warped = ants.apply_transforms(fixed, moving, names, interpolator="linear").numpy()
    frame = pandas.DataFrame(pair.points() * FLIP, columns=["x", "y", "z"])
    places = ants.apply_transforms_to_points(3, frame, names, whichtoinvert=[False] * len(names))
    return warped, places[["x", "y", "z"]].to_numpy() * FLIP


@both_ways
@on_every_grid
@pytest.mark.parametrize("file", ["t1Warp.nii.gz", "t.nii.gz", "t.h5"])
def test_ants(file: str, name: str, backward: bool, tmp_path: Path) -> None:
    pytest.importorskip("ants", reason="antspyx is not installed")
    pair = known("bend", name, backward)
    path = tmp_path / file
    pair.transform.save(path, "ants" if "Warp" in file else None)
    files = [path, tmp_path / "t0GenericAffine.mat"] if "Warp" in file else [path]
    warped, places = by_ants(pair, tmp_path, files)
    assert pair.image_error(warped) < IMAGE_ERROR
    assert pair.point_error(places) < POINT_ERROR


def test_ants_lists_transforms_in_our_order(tmp_path: Path) -> None:
    pytest.importorskip("ants", reason="antspyx is not installed")
    pair = known("bend", "oblique")
    first, then = pair.transform, Affine(initial_affine())
    first.save(tmp_path / "a.nii.gz")
    then.save(tmp_path / "b.mat")
    warped, places = by_ants(pair, tmp_path, [tmp_path / "a.nii.gz", tmp_path / "b.mat"])
    ours = compose(first, then)
    np.testing.assert_allclose(ours.transform_points(pair.points(), "RAS"), places, atol=5e-3)
    difference = np.abs(ours.warp(pair.image(), pair.fixed).data.numpy() - warped)
    assert difference.mean() < 1e-3


def test_an_affine_for_ants(tmp_path: Path) -> None:
    pytest.importorskip("ants", reason="antspyx is not installed")
    pair = known("shift", "left-handed")
    affine = Affine(initial_affine())
    affine.save(tmp_path / "p0GenericAffine.mat", "ants")
    _, places = by_ants(pair, tmp_path, [tmp_path / "p0GenericAffine.mat"])
    np.testing.assert_allclose(places, affine.transform_points(pair.points(), "RAS"), atol=1e-3)


@both_ways
@on_every_grid
def test_nitransforms_reads_ours(name: str, backward: bool, tmp_path: Path) -> None:
    manip = pytest.importorskip("nitransforms.manip", reason="nitransforms is not installed")
    from nitransforms.resampling import apply

    pair = known("bend", name, backward)
    pair.transform.save(tmp_path / "t.x5")
    chain = manip.load(tmp_path / "t.x5", fmt="X5")
    fixed, moving = (nibabel.load(path) for path in images(pair, tmp_path))
    warped = np.asarray(apply(chain, moving, reference=fixed, order=1).dataobj)
    assert pair.image_error(warped) < IMAGE_ERROR
    # its splines through the field fall to 0 beyond the border, and swing near it
    assert pair.point_error(chain.map(pair.points())) < 2 * POINT_ERROR


def test_nitransforms_reads_an_affine(tmp_path: Path) -> None:
    linear = pytest.importorskip("nitransforms.linear", reason="nitransforms is not installed")
    Affine(initial_affine()).save(tmp_path / "a.x5")
    np.testing.assert_allclose(linear.load(tmp_path / "a.x5", fmt="X5").matrix, initial_affine())
    again = load_transform(tmp_path / "a.x5")
    assert isinstance(again, Affine)
    np.testing.assert_allclose(again.matrix, initial_affine())


@pytest.mark.parametrize("deformations", [False, True])
def test_nitransforms_writes_and_we_read(deformations: bool, tmp_path: Path) -> None:
    manip = pytest.importorskip("nitransforms.manip", reason="nitransforms is not installed")
    pair = known("bend", "left-handed")
    vectors = np.moveaxis(pair.transform.to_physical().numpy(), 0, -1) * FLIP
    write_image(tmp_path / "fixed.nii.gz", np.zeros(pair.fixed.shape, np.float32), pair.fixed.affine)
    values = vectors + world_of(pair.fixed) if deformations else vectors
    field = manip.DenseFieldTransform(
        values, is_deltas=not deformations, reference=nibabel.load(tmp_path / "fixed.nii.gz")
    )
    manip.TransformChain([field, manip.Affine(initial_affine())]).to_filename(tmp_path / "theirs.x5")
    loaded = load_transform(tmp_path / "theirs.x5")
    expected = compose(pair.transform, Affine(initial_affine()))
    np.testing.assert_allclose(
        loaded.transform_points(pair.points()), expected.transform_points(pair.points()), atol=5e-3
    )
    warped: SpatialMap = loaded
    image = Image(pair.image().data, pair.moving.affine)
    np.testing.assert_allclose(
        warped.warp(image, pair.fixed).data, expected.warp(image, pair.fixed).data, atol=2e-2
    )
