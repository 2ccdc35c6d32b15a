import json

import numpy as np
import pytest
import torch

from neuralreg import transforms
from neuralreg.affines import invert_affine
from neuralreg.errors import InputError
from neuralreg.images import Geometry, Image, lps_flip, read_image
from neuralreg.landmarks import read_landmarks
from neuralreg.metrics import tre
from neuralreg.transforms import Transform, inverse_consistency, load_transform
from tests.geometry import (
    CENTRE,
    GRIDS,
    grid,
    image_on,
    initial_affine,
    itk_image,
    itk_transform,
    pattern,
    smooth_displacement,
    world_of,
)

FLIP = np.array([-1.0, -1.0, 1.0])


def mean_error(warped: Image, expected: np.ndarray) -> float:
    """Over the voxels whose source lies in the moving image (the others are filled with NaN)."""
    error = np.abs(warped.data.numpy() - expected)
    assert np.isfinite(error).mean() > 0.6
    return float(np.nanmean(error))


@pytest.mark.parametrize("name", GRIDS)
def test_known_shift_in_millimetres(name):
    # the moving image is the fixed one moved by a shift in the world: the transform is that shift
    fixed, moving = GRIDS[name]
    shift = np.array([3.0, -4.0, 5.0])
    voxels = np.linalg.solve(fixed.affine[:3, :3], shift)
    u = torch.tensor(voxels, dtype=torch.float32).view(3, 1, 1, 1).expand(3, *fixed.shape)
    transform = Transform(u, fixed)
    moved = torch.from_numpy(pattern(world_of(moving) - shift).astype(np.float32))
    warped = transform.warp(Image(moved, moving.affine), fill=np.nan)
    assert mean_error(warped, pattern(world_of(fixed))) < 0.01
    there = np.array(CENTRE) + shift
    np.testing.assert_allclose(transform.transform_points([CENTRE], "RAS"), [there], atol=1e-4)
    np.testing.assert_allclose(transform.transform_points([CENTRE * FLIP], "LPS"), [there * FLIP], atol=1e-4)
    np.testing.assert_allclose(transform.to_physical().mean((1, 2, 3)), shift * FLIP, atol=1e-4)


@pytest.mark.parametrize("name", GRIDS)
def test_initial_affine_alone(name):
    fixed, moving = GRIDS[name]
    a = initial_affine()
    transform = Transform(torch.zeros(3, *fixed.shape), fixed, moving, a)
    warped = transform.warp(image_on(moving), fill=np.nan)
    assert mean_error(warped, pattern(world_of(fixed) @ a[:3, :3].T + a[:3, 3])) < 0.01
    there = a[:3, :3] @ CENTRE + a[:3, 3]
    np.testing.assert_allclose(transform.transform_points([CENTRE], "RAS"), [there], atol=1e-4)


def compare_with_itk(transform, moving, path, reference=None):
    """(mean difference of warped images / range, largest difference of points in mm) against SimpleITK."""
    sitk = pytest.importorskip("SimpleITK")
    transform.save(path)
    itk = itk_transform(path)
    reference = reference or transform.fixed
    image = image_on(moving)
    onto = itk_image(Image(torch.zeros(reference.shape), reference.affine))
    theirs = sitk.Resample(itk_image(image), onto, itk, sitk.sitkLinear, -3.0)
    ours = transform.warp(image, reference, fill=-3.0).data.numpy()
    difference = np.abs(sitk.GetArrayFromImage(theirs).T - ours)
    d = transform.ndim
    index = np.random.default_rng(0).uniform(0.5, np.array(transform.fixed.shape) - 1.5, (50, d))
    points = transform.fixed.voxel_to_world(index) * FLIP[:d]
    theirs_points = np.array([itk.TransformPoint(p) for p in points])
    worst = np.abs(theirs_points - transform.transform_points(points, "LPS")).max()
    return difference.mean() / np.ptp(image.data.numpy()), worst


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("name", GRIDS)
def test_itk_reads_what_we_write(name, initial, tmp_path):
    fixed, moving = GRIDS[name]
    u = smooth_displacement(fixed.shape)
    transform = Transform(u, fixed, moving, initial_affine() if initial else None)
    for reference in (None, moving, grid((15, 30, 14), (3, 2, 4), (0.5, 0.1, 0.2), CENTRE)):
        image_error, point_error = compare_with_itk(transform, moving, tmp_path / "t.nii.gz", reference)
        assert image_error < 1e-3
        assert point_error < 1e-3


@pytest.mark.parametrize("axis", range(3))
def test_a_wrong_sign_is_noticed(axis, tmp_path, monkeypatch):
    # a plant: one axis of the RAS -> LPS change of the writer has the wrong sign
    wrong = lps_flip(3)
    wrong[axis, axis] *= -1
    monkeypatch.setattr(transforms, "lps_flip", lambda ndim: wrong)
    fixed, moving = GRIDS["left-handed"]
    transform = Transform(smooth_displacement(fixed.shape), fixed)
    image_error, _ = compare_with_itk(transform, moving, tmp_path / "t.nii")
    assert image_error > 1e-2


def test_two_dimensions(tmp_path):
    pytest.importorskip("SimpleITK")
    affine = np.array([[-1.5, 0.4, 20.0], [0.3, 2.0, -30.0], [0, 0, 1]])
    affine[:2, 1] = 2.0 * np.array([-affine[1, 0], affine[0, 0]]) / np.hypot(*affine[:2, 0])
    fixed = Geometry((24, 20), affine)
    moving = Geometry((22, 26), np.array([[2.0, 0, -20.0], [0, 1.8, -60.0], [0, 0, 1]]))
    initial = np.array([[0.98, -0.05, 1.0], [0.05, 0.97, -2.0], [0, 0, 1]])
    transform = Transform(smooth_displacement(fixed.shape), fixed, moving, initial)
    image_error, point_error = compare_with_itk(transform, moving, tmp_path / "t.nii.gz")
    assert image_error < 1e-3
    assert point_error < 1e-3
    again = load_transform(tmp_path / "t.nii.gz")
    torch.testing.assert_close(again.to_physical(), transform.to_physical(), atol=1e-3, rtol=0)
    inverse = transform.inverse()
    assert inverse_consistency(transform, inverse)["p95_mm"] < 0.3


def test_header_of_the_written_field(tmp_path):
    import nibabel

    fixed, _ = GRIDS["oblique"]
    Transform(smooth_displacement(fixed.shape), fixed).save(tmp_path / "t.nii.gz")
    header = nibabel.load(tmp_path / "t.nii.gz").header
    assert header["dim"][:6].tolist() == [5, *fixed.shape, 1, 3]
    assert int(header["intent_code"]) == 1007
    assert int(header["sform_code"]) > 0
    assert int(header["qform_code"]) > 0
    np.testing.assert_allclose(header.get_sform(), header.get_qform(), atol=1e-5)


@pytest.mark.parametrize("name", GRIDS)
def test_saved_and_loaded(name, tmp_path):
    fixed, moving = GRIDS[name]
    transform = Transform(smooth_displacement(fixed.shape), fixed, moving, initial_affine())
    transform.save(tmp_path / "t.nii.gz")
    again = load_transform(tmp_path / "t.nii.gz")
    assert again.fixed.same_grid(fixed)
    torch.testing.assert_close(again.to_physical(), transform.to_physical(), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        again.warp(image_on(moving)).data, transform.warp(image_on(moving)).data, atol=1e-3, rtol=0
    )


def test_ras_vectors_are_read(tmp_path):
    # intent 1006 means RAS vectors to ITK: read so here too
    import nibabel

    fixed, _ = GRIDS["left-handed"]
    transform = Transform(smooth_displacement(fixed.shape), fixed)
    transform.save(tmp_path / "t.nii.gz")
    image = nibabel.load(tmp_path / "t.nii.gz")
    ras = nibabel.Nifti1Image((image.get_fdata() * FLIP).astype(np.float32), image.affine, image.header)
    ras.header.set_intent(1006)
    nibabel.save(ras, tmp_path / "ras.nii.gz")
    again = load_transform(tmp_path / "ras.nii.gz")
    torch.testing.assert_close(again.to_physical(), transform.to_physical(), atol=1e-3, rtol=0)
    point = np.array(CENTRE) * FLIP
    np.testing.assert_allclose(
        itk_transform(tmp_path / "ras.nii.gz").TransformPoint(point),
        again.transform_points([point])[0],
        atol=1e-3,
    )


def test_sheared_header(tmp_path):
    # ITK knows no sheared grid: what it reads must be the same map all the same
    fixed, moving = GRIDS["oblique"]
    affine = fixed.affine.copy()
    affine[:3, 1] += 0.3 * affine[:3, 0]
    sheared = Geometry(fixed.shape, affine)
    transform = Transform(smooth_displacement(sheared.shape), sheared, moving, initial_affine())
    transform.save(tmp_path / "t.nii.gz")
    itk = itk_transform(tmp_path / "t.nii.gz")
    index = np.random.default_rng(0).uniform(1, np.array(sheared.shape) - 2, (50, 3))
    points = sheared.voxel_to_world(index) * FLIP
    theirs = np.array([itk.TransformPoint(p) for p in points])
    assert np.abs(theirs - transform.transform_points(points)).max() < 0.1  # one more linear interpolation


def test_outside_the_domain_points_stay():
    fixed, _ = GRIDS["oblique"]
    transform = Transform(smooth_displacement(fixed.shape), fixed, None, initial_affine())
    far = np.array([[500.0, 500.0, 0.0]])
    np.testing.assert_array_equal(transform.transform_points(far), far)


def test_fill_beyond_half_a_voxel():
    fixed = grid((6, 6, 6), (1, 1, 1))
    image = Image(torch.ones(6, 6, 6), fixed.affine)
    u = torch.zeros(3, 6, 6, 6)
    u[0] = 0.4  # the last plane reads 0.4 voxels outside: still its own value
    assert bool((Transform(u, fixed).warp(image, fill=-7).data == 1).all())
    u[0] = 0.6
    assert Transform(u, fixed).warp(image, fill=-7).data[:, 0, 0].tolist() == [1, 1, 1, 1, 1, -7]


def label_map(geometry: Geometry) -> Image:
    values = pattern(world_of(geometry))
    labels = np.digitize(values, [-0.8, 0.0, 0.7, 1.4]) * 1000
    return Image(torch.from_numpy(labels.astype(np.int32)), geometry.affine)


def test_labels_vote_and_keep_their_type():
    fixed, moving = GRIDS["oblique"]
    transform = Transform(smooth_displacement(fixed.shape), fixed, moving, initial_affine())
    labels = label_map(moving)
    voted = transform.warp(labels, interpolation="label")
    scores = torch.stack(
        [
            transform.warp(Image((labels.data == k).float(), moving.affine)).data
            for k in (0, 1000, 2000, 3000, 4000)
        ]
    )
    best, expected = scores.max(0)
    sure = (best > 0) & (best - scores.topk(2, 0).values[1] > 1e-4)
    assert voted.data.dtype == torch.int32
    assert bool((voted.data == expected * 1000)[sure].all())
    nearest = transform.warp(labels, interpolation="nearest")
    assert nearest.data.dtype == torch.int32
    assert float((nearest.data == voted.data).float().mean()) > 0.85
    assert set(nearest.data.unique().tolist()) <= set(labels.data.unique().tolist())


def test_labels_larger_than_float32_integers():
    geometry = grid((5, 5, 5), (1, 1, 1))
    labels = Image(torch.full((5, 5, 5), 2**24 + 1, dtype=torch.int32), geometry.affine)
    transform = Transform(torch.full((3, 5, 5, 5), 0.3), geometry)
    for interpolation in ("nearest", "label"):
        assert int(transform.warp(labels, interpolation=interpolation).data[2, 2, 2]) == 2**24 + 1


@pytest.mark.parametrize("name", GRIDS)
def test_inverse(name):
    fixed, moving = GRIDS[name]
    transform = Transform(smooth_displacement(fixed.shape, 1.0), fixed, moving, initial_affine())
    inverse = transform.inverse()
    assert inverse.fixed is moving
    assert inverse.moving is fixed
    result = inverse_consistency(transform, inverse)
    assert result["inside_fraction"] > 0.4
    assert result["mean_mm"] < 0.2  # two linear interpolations, 2 mm voxels
    # from the moving voxels the inverse is read without interpolation: the tolerance is what remains
    assert inverse_consistency(inverse, transform)["p95_mm"] < 0.03
    there = transform.transform_points([CENTRE], "RAS")
    np.testing.assert_allclose(inverse.transform_points(there, "RAS"), [CENTRE], atol=0.2)


def test_inverse_of_a_strong_map():
    # f(x) = x + u with 1 + u' between 0.1 and 3.4: the plain fixed point does not contract, the map is
    # invertible
    n = 40
    x = torch.arange(n, dtype=torch.float64)
    derivative = torch.where((x // 5) % 2 == 0, 2.4, -0.9)
    u = torch.cumsum(derivative, 0) - derivative[0]
    u = u - u.mean()
    displacement = torch.zeros(3, n, 4, 4)
    displacement[0] = u.float().view(n, 1, 1)
    geometry = Geometry((n, 4, 4), np.eye(4))
    transform = Transform(displacement, geometry, geometry)
    result = inverse_consistency(transform.inverse(), transform)
    assert result["inside_fraction"] > 0.7
    assert result["max_mm"] < 0.1


def test_consistency_in_a_mask_and_of_nothing():
    fixed, moving = GRIDS["plain"]
    transform = Transform(smooth_displacement(fixed.shape, 1.0), fixed, moving)
    inverse = transform.inverse()
    mask = torch.zeros(fixed.shape, dtype=torch.bool)
    mask[8:11, 8:11, 8:11] = True
    assert inverse_consistency(transform, inverse, mask)["inside_fraction"] == 1
    nothing = inverse_consistency(transform, inverse, torch.zeros_like(mask))
    assert np.isnan(nothing["mean_mm"])
    assert nothing["inside_fraction"] == 0
    wrong = Transform(inverse.displacement + 1, moving, fixed)
    off = inverse_consistency(transform, wrong)  # one voxel of 2 mm along three axes
    np.testing.assert_allclose(off["mean_mm"], 2 * np.sqrt(3), rtol=0.05)


def test_voxel_affine_takes_voxels_to_voxels():
    fixed, moving = GRIDS["left-handed"]
    a = initial_affine()
    matrix = Transform(torch.zeros(3, *fixed.shape), fixed, None, a).voxel_affine(moving)
    point = np.array([[3.0, 4.0, 5.0]])
    world = fixed.voxel_to_world(point) @ a[:3, :3].T + a[:3, 3]
    there = point @ matrix[:, :3].T + matrix[:, 3]
    np.testing.assert_allclose(there, moving.world_to_voxel(world), atol=1e-9)
    np.testing.assert_allclose(invert_affine(a) @ a, np.eye(4), atol=1e-12)


def test_errors(tmp_path):
    import nibabel

    fixed, _ = GRIDS["plain"]
    with pytest.raises(ValueError, match="does not fit"):
        Transform(torch.zeros(3, 4, 4, 4), fixed)
    transform = Transform(torch.zeros(3, *fixed.shape), fixed)
    with pytest.raises(ValueError, match="moving grid"):
        transform.inverse()
    with pytest.raises(InputError, match="interpolation 'cubic'"):
        transform.warp(image_on(fixed), interpolation="cubic")
    with pytest.raises(InputError, match="2-D"):
        transform.warp(Image(torch.zeros(4, 4), np.eye(3)))
    with pytest.raises(InputError, match="space"):
        transform.transform_points([CENTRE], "XYZ")
    with pytest.raises(InputError, match="suffix"):
        transform.save(tmp_path / "t.png")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 3), np.float32), np.eye(4)), tmp_path / "scalar.nii")
    with pytest.raises(InputError, match="not a displacement field"):
        load_transform(tmp_path / "scalar.nii")
    with pytest.raises(InputError, match="does not exist"):
        load_transform(tmp_path / "missing.nii")
    broken = Transform(torch.full((3, *fixed.shape), float("nan")), fixed)
    broken.save(tmp_path / "nan.nii")
    with pytest.raises(InputError, match="NaN"):
        load_transform(tmp_path / "nan.nii")


def test_votes_among_many_labels():
    # more labels than the screen by variance can tell apart in float32: every voxel votes
    geometry = grid((8, 8, 8), (1, 1, 1))
    labels = Image(torch.arange(512, dtype=torch.int32).view(8, 8, 8), geometry.affine)
    transform = Transform(torch.full((3, 8, 8, 8), 0.3), geometry)
    voted = transform.warp(labels, interpolation="label")
    assert torch.equal(voted.data, labels.data)  # 0.7^3 is the largest of the eight weights
    assert torch.equal(transform.warp(labels, interpolation="nearest").data, labels.data)


def test_lung_pair_in_itk(data_folder, tmp_path):
    # a real pair whose grids differ, its known start, and a smooth displacement on top
    sitk = pytest.importorskip("SimpleITK")
    folder = data_folder / "lung_ct_elastix"
    shift = json.loads((folder / "prealign.json").read_text())["translation_fixed_to_moving_lps_mm"]
    initial = np.eye(4)
    initial[:3, 3] = np.array(shift) * FLIP
    fixed = read_image(folder / "fixed_ct.nii.gz")
    moving = read_image(folder / "moving_ct.nii.gz")
    assert fixed.shape != moving.shape
    start = Transform(torch.zeros(3, *fixed.shape), fixed.geometry, moving.geometry, initial)
    landmarks = read_landmarks(folder / "landmarks.csv")
    assert tre(start.transform_points(landmarks[0]), landmarks[1])["mean"] == pytest.approx(4.66, abs=0.01)

    transform = Transform(smooth_displacement(fixed.shape, 2.0), fixed.geometry, moving.geometry, initial)
    transform.save(tmp_path / "t.nii.gz")
    itk = itk_transform(tmp_path / "t.nii.gz")
    onto = sitk.ReadImage(str(folder / "fixed_ct.nii.gz"))
    source = sitk.ReadImage(str(folder / "moving_ct.nii.gz"), sitk.sitkFloat32)
    theirs = sitk.GetArrayFromImage(sitk.Resample(source, onto, itk, sitk.sitkLinear, 0.0)).T
    difference = np.abs(theirs - transform.warp(moving).data.numpy())
    assert difference.mean() < 1e-3 * float(moving.data.max() - moving.data.min())
    points = np.array([itk.TransformPoint(p) for p in landmarks[0]])
    np.testing.assert_allclose(points, transform.transform_points(landmarks[0]), atol=1e-3)
    result = inverse_consistency(transform, transform.inverse())
    assert result["mean_mm"] < 0.1
