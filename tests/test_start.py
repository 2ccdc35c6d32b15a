"""Known rigid and affine maps between awkward grids are found again; failures are told."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import neuralreg
from neuralreg.affines import read_affine
from neuralreg.images import Geometry, Image
from neuralreg.pair import block_means
from neuralreg.start.choose import distinct
from neuralreg.start.levels import make_levels
from neuralreg.start.model import LinearModel
from neuralreg.start.search import check_plausible
from neuralreg.transforms import Affine
from tests.geometry import CENTRE, grid, rotation, world_of
from tests.small import call, register, save

FIXED = grid((22, 20, 16), (4.0, 4.4, 5.5), (0.3, -0.2, 0.5), CENTRE)
MOVING = grid((19, 24, 21), (5.2, 4.1, 4.6), (-0.25, 0.35, 0.1), CENTRE, flip=(0, 1, 2))


def scene(world: np.ndarray) -> np.ndarray:
    """Blobs within some 35 mm of CENTRE, none like another: an image at RAS positions (*any, ndim)."""
    random = np.random.default_rng(3)
    ndim = world.shape[-1]
    value = np.zeros(world.shape[:-1])
    for height in np.linspace(20, 100, 9):
        place = np.array(CENTRE[:ndim]) + random.uniform(-26, 26, 3)[:ndim] * (1, 1, 0.6)[:ndim]
        width = random.uniform(7, 12)
        value += height * np.exp(-((world - place) ** 2).sum(-1) / (2 * width**2))
    return np.maximum(value - 8, 0)  # tails that never end would be structure to a local similarity


def about(linear: np.ndarray, shift: tuple[float, ...]) -> np.ndarray:
    """The affine x -> centre + linear (x - centre) + shift."""
    ndim = len(linear)
    matrix = np.eye(ndim + 1)
    matrix[:-1, :-1] = linear
    matrix[:-1, -1] = np.array(CENTRE[:ndim]) - linear @ np.array(CENTRE[:ndim]) + np.array(shift)
    return matrix


def seen(geometry: Geometry, mapping: np.ndarray | None = None) -> Image:
    """The scene on a grid; with a map, moved by it."""
    points = world_of(geometry)
    if mapping is not None:
        back = np.linalg.inv(mapping)
        points = points @ back[:-1, :-1].T + back[:-1, -1]
    return Image(torch.from_numpy(scene(points).astype(np.float32)), geometry.affine)


def error(found: np.ndarray, truth: np.ndarray, geometry: Geometry = FIXED) -> float:
    """Mean distance in mm over the fixed grid."""
    points = world_of(geometry).reshape(-1, geometry.ndim)
    apart = points @ (found - truth)[:-1, :-1].T + (found - truth)[:-1, -1]
    return float(np.linalg.norm(apart, axis=1).mean())


RIGID = about(rotation(0.2, -0.15, 0.25), (14.0, -9.0, 11.0))
STRETCHED = about(
    rotation(0.1, 0.12, -0.2) @ np.array([[1.12, 0.05, 0], [0, 0.9, 0.06], [0, 0, 1.05]]), (-8.0, 6.0, 9.0)
)


@pytest.mark.parametrize(
    ("start", "truth", "similarity", "least"),
    [
        ("rigid", RIGID, "nmi", 0.5),
        ("rigid", RIGID, "lncc", 1.0),
        ("affine", STRETCHED, "nmi", 2.0),
        ("affine", STRETCHED, "mse", 0.5),
    ],
)
def test_known_maps_are_found_to_a_fraction_of_a_voxel(start, truth, similarity, least):
    fixed, moving = seen(FIXED), seen(MOVING, truth)
    assert error(np.eye(4), truth) > 10
    found = neuralreg.align(fixed, moving, start, similarity=similarity)
    assert error(found.matrix, truth) < least
    assert found.record["after"] > found.record["before"]
    assert found.record["model"] == start
    if start == "rigid":
        linear = found.matrix[:3, :3]
        np.testing.assert_allclose(linear @ linear.T, np.eye(3), atol=1e-9)


def test_mutual_information_finds_it_in_another_contrast():
    fixed, moving = seen(FIXED), seen(MOVING, RIGID)
    other = Image(torch.cos(moving.data / moving.data.max() * 4), moving.affine)
    near = RIGID @ about(rotation(0, 0.1, 0), (9.0, -6.0, 4.0))
    assert error(neuralreg.align(fixed, other, "rigid", initial_transform=near).matrix, RIGID) < 1.0


def test_two_dimensions_and_two_levels():
    size = [(90, 80), (84, 96)]
    grids = []
    for shape, spacing, angle in zip(size, (1.1, 1.0), (0.2, -0.3), strict=True):
        turn = rotation(0, 0, angle)[:2, :2] * spacing
        affine = np.eye(3)
        affine[:2, :2], affine[:2, 2] = turn, np.array(CENTRE[:2]) - turn @ ((np.array(shape) - 1) / 2)
        grids.append(Geometry(shape, affine))
    truth = about(np.array([[1.05, 0.12], [-0.1, 0.93]]), (12.0, -7.0))
    fixed, moving = seen(grids[0]), seen(grids[1], truth)
    found = neuralreg.align(fixed, moving, "affine")
    assert error(found.matrix, truth, grids[0]) < 0.6
    again = neuralreg.align(fixed, moving, "affine")
    assert np.array_equal(found.matrix, again.matrix), "nothing is drawn at random"


def test_masks_keep_a_disturbance_out():
    fixed, moving = seen(FIXED), seen(MOVING, RIGID)
    centre = RIGID @ np.array([*CENTRE, 1.0])
    near = np.linalg.norm(world_of(MOVING) - centre[:3], axis=-1) < 36
    moving.data[~torch.from_numpy(near)] = 300.0
    mask = Image(torch.from_numpy(near), MOVING.affine)
    options = {"moving_mask": mask, "window": (0, 150)}
    found = neuralreg.align(fixed, moving, "rigid", similarity="ncc", **options)
    assert error(found.matrix, RIGID) < 1.0
    options.pop("moving_mask")
    assert error(neuralreg.align(fixed, moving, "rigid", similarity="ncc", **options).matrix, RIGID) > 2.0


def test_a_moving_image_that_covers_half():
    fixed, whole = seen(FIXED), seen(MOVING, RIGID)
    half = Image(whole.data[:, 8:].clone(), Geometry((19, 16, 21), MOVING.affine).affine @ _shifted(8))
    assert error(neuralreg.align(fixed, half, "rigid").matrix, RIGID) < 1.0


def _shifted(voxels: int) -> np.ndarray:
    matrix = np.eye(4)
    matrix[1, 3] = voxels
    return matrix


def test_moments_turn_a_volume_by_a_right_angle():
    turned = about(rotation(0, 0, np.pi / 2), (20.0, 5.0, -4.0))
    wide = grid((26, 26, 22), (5.0, 5.0, 5.0), centre=(30.0, -15.0, 296.0))
    fixed, moving = seen(grid((26, 26, 22), (5.0, 5.0, 5.0), centre=CENTRE)), seen(wide, turned)
    assert error(neuralreg.align(fixed, moving, "center").matrix, turned) > 10
    found = neuralreg.align(fixed, moving, "moments")
    assert error(found.matrix, turned) < 2.0
    assert found.name == "moments alignment"


def test_an_initial_transform_is_where_the_search_begins():
    fixed, moving = seen(FIXED), seen(MOVING, STRETCHED)
    near = STRETCHED @ about(np.eye(3), (3.0, -2.0, 2.0))
    found = neuralreg.align(fixed, moving, "affine", similarity="mse", initial_transform=near)
    assert error(found.matrix, STRETCHED) < 0.5
    assert found.record["begin"] == "given"
    kept = neuralreg.align(fixed, moving, "none", initial_transform=near)
    np.testing.assert_array_equal(kept.matrix, near)
    assert kept.record is None


def test_what_cannot_work_is_told():
    fixed, moving = seen(FIXED), seen(MOVING)
    away = about(np.eye(3), (900.0, 0, 0))
    with pytest.raises(neuralreg.InputError, match="do not overlap, seen from given"):
        neuralreg.align(fixed, moving, "rigid", initial_transform=away)
    with pytest.raises(
        neuralreg.InputError, match="fixed image is constant inside its mask and intensity window"
    ):
        neuralreg.align(fixed, moving, "rigid", window=(1000, 2000))
    with pytest.raises(neuralreg.InputError, match="moving image is constant"):
        neuralreg.align(fixed, Image(torch.ones(8, 8, 8), np.eye(4)), "affine")
    with pytest.raises(neuralreg.InputError, match="start must be one of none, center"):
        neuralreg.align(fixed, moving, "elastic")
    with pytest.raises(neuralreg.InputError, match="start_similarity must be one of lncc"):
        neuralreg.align(fixed, moving, "rigid", similarity="cc")
    with pytest.raises(neuralreg.InputError, match="both say where to begin"):
        neuralreg.align(fixed, moving, "moments", initial_transform=np.eye(4))
    with pytest.raises(neuralreg.InputError, match=r"stretches by 1\.00 to 2\.50"):
        check_plausible("affine", np.diag([2.5, 1, 1, 1]), 0.8)
    with pytest.raises(neuralreg.InputError, match=r"leaves 1\.0% of the smaller"):
        check_plausible("affine", np.eye(4), 0.01)


def test_a_rigid_parameter_is_a_millimetre_at_the_radius():
    centre = np.array(CENTRE)
    model = LinearModel("affine", np.eye(4), centre, 40.0)
    assert model.count == 12
    for k in range(12):
        matrix = model.matrix(0.01 * torch.eye(12, dtype=torch.float64)[k]).numpy()
        moved = (matrix @ np.c_[centre + 40 * np.eye(3), np.ones(3)].T).T[:, :3] - (centre + 40 * np.eye(3))
        assert 0.004 < np.linalg.norm(moved, axis=1).max() < 0.0101
    assert LinearModel("rigid", np.eye(3), centre[:2], 40.0).count == 3


def test_levels_keep_every_voxel_where_it_is():
    from neuralreg.inputs import read_inputs

    big = grid((70, 66, 10), (1.0, 1.1, 5.0), (0.3, 0.1, -0.2), CENTRE)
    inputs = read_inputs(seen(big), seen(MOVING))
    coarse, fine = make_levels(inputs, torch.device("cpu"))
    assert coarse.images[0].shape[2:] != fine.images[0].shape[2:]
    for level in (coarse, fine):
        shape = level.images[0].shape[2:]
        factors = [n // m for n, m in zip(big.shape, shape, strict=True)]
        assert level.images[0].equal(block_means(inputs.scaled[0].data[None, None], factors))
        found = world_of(Geometry(tuple(shape), level.affines[0]))
        for axis in range(3):
            world = torch.from_numpy(world_of(big)[..., axis])[None, None]
            np.testing.assert_allclose(found[..., axis], block_means(world, factors)[0, 0].numpy())


def test_beginnings_that_are_alike_count_once():
    image = seen(FIXED)
    kept = distinct({"a": np.eye(4), "b": about(np.eye(3), (1.0, 0, 0)), "c": RIGID}, image, 4.0)
    assert list(kept) == ["a", "c"]


def test_written_affines_are_read_again_also_by_itk(tmp_path):
    Affine(STRETCHED).save(tmp_path / "a.tfm")
    np.testing.assert_allclose(read_affine(tmp_path / "a.tfm"), STRETCHED, atol=1e-12)
    flat = about(np.array([[1.05, 0.12], [-0.1, 0.93]]), (12.0, -7.0))
    Affine(flat).save(tmp_path / "b.txt")
    np.testing.assert_allclose(read_affine(tmp_path / "b.txt"), flat, atol=1e-12)
    sitk = pytest.importorskip("SimpleITK")
    transform = sitk.ReadTransform(str(tmp_path / "a.tfm"))
    point = np.array([3.0, 4.0, 5.0])
    flip = np.array([-1, -1, 1])
    expected = flip * (STRETCHED[:3, :3] @ (flip * point) + STRETCHED[:3, 3])
    np.testing.assert_allclose(transform.TransformPoint(point), expected)


def test_the_command_starts_records_and_writes(tmp_path):
    geometry = grid((18, 17, 16), (5.0, 5.0, 5.0), centre=CENTRE)
    save(tmp_path / "fixed.nii.gz", seen(geometry).data.numpy(), geometry.affine)
    save(tmp_path / "moving.nii.gz", seen(MOVING, RIGID).data.numpy(), MOVING.affine)
    (tmp_path / "out").mkdir()
    file = tmp_path / "out/a.tfm"
    result = call(*register(tmp_path, "-q", "--start", "rigid", "--start-out", file))
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out/s.json").read_text())
    assert summary["start"]["model"] == "rigid"
    assert summary["initial_transform"].startswith("rigid from ")
    matrix = read_affine(file)
    np.testing.assert_allclose(matrix, summary["initial_matrix_ras"], atol=1e-12)
    assert error(matrix, RIGID, geometry) < 1.0
    for more, message in (
        (("--start", "rigid", "--center"), "center is start center"),
        (("--start", "rigid", "--prior", file), "give no initial_transform, start or center"),
        (("--start", "center", "--initial-transform", file), "both say where to begin"),
        (("--prior", file, "--start-out", tmp_path / "out/b.tfm"), "there is no affine start to write"),
        (("--start-out", tmp_path / "out/a.nii"), "unknown suffix"),
    ):
        result = call(*register(tmp_path, *more))
        assert result.exit_code == 2, more
        assert message in " ".join(result.stderr.split()), result.stderr
