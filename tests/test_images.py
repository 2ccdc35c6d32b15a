import gzip
import os

import nibabel
import numpy as np
import pytest
import torch

from neuralreg.errors import InputError
from neuralreg.images import (
    Geometry,
    Image,
    atomic_path,
    check_pair,
    check_registrable,
    check_same_grid,
    check_writable,
    read_geometry,
    read_image,
    read_labels,
    read_mask,
    read_stored,
    scale_intensity,
    write_image,
)
from tests.geometry import GRIDS, grid, image_on, itk_image


def save(path, data, affine=None, **fields):
    image = nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine)
    for name, value in fields.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def ramp(*shape, dtype=np.float32):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("name", GRIDS)
def test_geometry_is_what_simpleitk_reads(name, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    image = image_on(GRIDS[name][0])
    write_image(tmp_path / "a.nii.gz", image.data, image.affine)
    theirs = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    expected = itk_image(image)
    np.testing.assert_allclose(theirs.GetOrigin(), expected.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(theirs.GetSpacing(), expected.GetSpacing(), atol=1e-5)
    np.testing.assert_allclose(theirs.GetDirection(), expected.GetDirection(), atol=1e-5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(theirs).T, image.data.numpy())
    for source in (theirs, nibabel.load(tmp_path / "a.nii.gz"), tmp_path / "a.nii.gz", image):
        again = read_image(source)
        assert again.data.dtype == torch.float32
        assert again.geometry.same_grid(image.geometry)
        assert torch.equal(again.data, image.data)
    again = read_image(sitk.ReadImage(str(tmp_path / "a.nii.gz")))
    np.testing.assert_allclose(again.affine, image.affine, atol=1e-4)


def test_properties_and_points():
    geometry = grid((4, 5, 6), (1, 2, 3), (0.2, 0.1, -0.3), (5, 6, 7), flip=(1,))
    image = Image(torch.zeros(4, 5, 6), geometry.affine)
    np.testing.assert_allclose(image.spacing, (1, 2, 3))
    assert (image.ndim, image.shape) == (3, (4, 5, 6))
    np.testing.assert_allclose(image.direction.T @ image.direction, np.eye(3), atol=1e-12)
    assert np.linalg.det(image.direction) < 0
    points = np.random.default_rng(0).normal(size=(7, 3))
    np.testing.assert_allclose(geometry.world_to_voxel(geometry.voxel_to_world(points)), points, atol=1e-9)
    np.testing.assert_allclose(geometry.voxel_to_world([[0, 0, 0]])[0], image.origin)
    with pytest.raises(ValueError, match="affine of 4 x 4"):
        Geometry((4, 5, 6), np.eye(3))


def test_tensors_arrays_and_two_dimensions(tmp_path):
    data = torch.rand(4, 5, 6)
    image = read_image(data)
    assert image.spacing == (1, 1, 1)
    image.data[0] = 7
    assert not bool((data == 7).any())  # a copy
    assert read_image(data[None, None]).shape == (4, 5, 6)
    assert read_image(np.ones((4, 5))).ndim == 2
    affine = np.array([[-1.5, 0, 0, 3], [0, 2, 0, 4], [0, 0, 1, 9], [0, 0, 0, 1.0]])
    flat = read_image(save(tmp_path / "flat.nii", ramp(5, 6), affine))
    assert flat.ndim == 2
    np.testing.assert_allclose(flat.affine, [[-1.5, 0, 3], [0, 2, 4], [0, 0, 1]])
    write_image(tmp_path / "again.nii", flat.data, flat.affine)
    np.testing.assert_allclose(read_image(tmp_path / "again.nii").affine, flat.affine)
    sitk = pytest.importorskip("SimpleITK")
    theirs = read_image(sitk.ReadImage(str(tmp_path / "again.nii")))
    np.testing.assert_allclose(theirs.affine, flat.affine)
    assert torch.equal(theirs.data, flat.data)
    # a coronal slice: ITK refuses it, its spacing is what stays
    coronal = np.array([[2.0, 0, 0, 3], [0, 0, 1, 4], [0, 3.0, 0, 9], [0, 0, 0, 1]])
    np.testing.assert_allclose(
        read_image(save(tmp_path / "c.nii", ramp(5, 6), coronal)).affine, np.diag([2, 3, 1])
    )


def test_trailing_axes_of_one(tmp_path):
    assert read_image(save(tmp_path / "a.nii", ramp(3, 4, 5, 1, 1))).shape == (3, 4, 5)
    assert read_image(save(tmp_path / "b.nii", ramp(3, 4, 1))).shape == (3, 4, 1)


def test_bad_files(tmp_path):
    vector = nibabel.Nifti1Image(ramp(3, 4, 5, 1, 3), np.eye(4))
    vector.header.set_intent("vector")
    nibabel.save(vector, tmp_path / "vector.nii")
    (tmp_path / "text.nii.gz").write_text("no image")
    (tmp_path / "text.txt").write_text("no image")
    save(tmp_path / "whole.nii.gz", np.random.default_rng(0).random((20, 20, 20)))
    whole = (tmp_path / "whole.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.nii").write_bytes(gzip.decompress(whole)[:2000])
    (tmp_path / "stub.nii").write_bytes(gzip.decompress(whole)[:100])
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    save(tmp_path / "4d.nii", ramp(3, 4, 5, 6))
    save(tmp_path / "line.nii", ramp(9))
    save(tmp_path / "complex.nii", np.zeros((3, 4, 5), np.complex64))
    rgb = np.zeros((3, 4, 5), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    save(tmp_path / "rgb.nii", rgb)
    singular = np.eye(4)
    singular[:3, 1] = singular[:3, 0]
    save(tmp_path / "singular.nii", ramp(3, 4, 5), singular)

    zero = bytearray(gzip.decompress(whole))
    zero[80 + 4 : 88] = b"\0\0\0\0"  # pixdim[2]
    (tmp_path / "zero.nii").write_bytes(bytes(zero))

    for file, words in {
        "missing.nii.gz": "does not exist",
        "": "is a folder",
        "text.nii.gz": "not an image",
        "text.txt": "not an image",
        "cut.nii.gz": "cut short",
        "cut.nii": "cut short",
        "stub.nii": "damaged",
        "empty.nii.gz": "damaged",
        "4d.nii": "4-D, 6 volumes of 3 x 4 x 5",
        "vector.nii": "vector image",
        "line.nii": "1-D",
        "complex.nii": "complex",
        "rgb.nii": "vector",
        "singular.nii": "singular affine",
        "zero.nii": "spacing of zero along axis 1",
    }.items():
        for read in (read_image, read_labels, read_mask, read_stored):
            with pytest.raises(InputError) as caught:
                pytest.fail(f"{file}: {read(tmp_path / file, role='moving image')}")
            message = str(caught.value)
            assert words in message, (file, message)
            assert message.startswith("moving image")
            assert str(tmp_path / file) in message
            assert "\n" not in message
            assert ";" in message, message  # what to do about it


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path):
    save(tmp_path / "a.nii", ramp(3, 4, 5)).chmod(0)
    with pytest.raises(InputError, match="permission denied"):
        read_image(tmp_path / "a.nii")


def test_bad_sources():
    with pytest.raises(InputError, match="from a dict"):
        read_image({}, role="fixed image")
    with pytest.raises(InputError, match="4-D"):
        read_image(torch.zeros(2, 3, 4, 5))
    with pytest.raises(InputError, match="no voxels"):
        read_image(torch.zeros(0, 3, 4))
    with pytest.raises(InputError, match="complex"):
        read_image(torch.zeros(3, 3, 4, dtype=torch.complex64))
    with pytest.raises(InputError, match="NaN"):
        read_image(nibabel.spatialimages.SpatialImage(ramp(3, 4, 5), np.diag([1, 1, np.nan, 1])))
    with pytest.raises(InputError, match="spacing of zero"):
        read_image(nibabel.spatialimages.SpatialImage(ramp(3, 4, 5), np.diag([1, 0.0, 1, 1])))
    sitk = pytest.importorskip("SimpleITK")
    with pytest.raises(InputError, match="vector"):
        read_image(sitk.Image([3, 4, 5], sitk.sitkVectorFloat32, 3))


def test_not_finite(tmp_path):
    data = ramp(3, 4, 5)
    data[1, 2, 3] = np.nan
    data[0, 0, 0] = np.inf
    path = save(tmp_path / "nan.nii", data)
    with pytest.raises(InputError, match=r"2 voxels that are NaN or infinite.*--nan-to"):
        read_image(path)
    image = read_image(path, nan_to=-5)
    assert float(image.data[1, 2, 3]) == float(image.data[0, 0, 0]) == -5
    assert bool(torch.isfinite(image.data).all())
    with pytest.raises(InputError, match="NaN"):
        read_labels(path)
    big = read_image(torch.full((4, 4, 4), 3e38))  # the sum overflows float32, the voxels are finite
    assert bool(torch.isfinite(big.data).all())


def test_labels_and_masks(tmp_path):
    labels = read_labels(save(tmp_path / "l.nii", np.array([[[0.0, 1.0001, 2.9999]]])))
    assert labels.data.dtype == torch.int32
    assert labels.data.flatten().tolist() == [0, 1, 3]
    with pytest.raises(InputError, match="32 bits"):
        read_labels(np.full((2, 2, 2), 2**40))
    other = np.diag([2.0, 1, 1, 1])
    path = save(tmp_path / "m.nii", np.ones((3, 4, 5), np.uint8))
    assert read_mask(path, like=Geometry((3, 4, 5), np.eye(4))).data.dtype == torch.bool
    with pytest.raises(InputError, match=r"another grid.*other origin"):
        read_mask(path, role="fixed mask", like=Geometry((3, 4, 5), other))
    with pytest.raises(InputError, match=r"another grid.*3 x 4 x 5 against 3 x 4 x 6"):
        read_mask(path, role="fixed mask", like=Geometry((3, 4, 6), np.eye(4)))
    with pytest.raises(InputError, match="is empty"):
        read_mask(np.zeros((3, 4, 5)))


def test_stored_type_and_geometry(tmp_path):
    affine = GRIDS["oblique"][0].affine
    for dtype, kept in (
        (np.uint8, np.uint8),
        (np.int16, np.int16),
        (np.float32, np.float32),
        (np.int64, np.int32),
    ):
        image = nibabel.Nifti1Image(ramp(3, 4, 5).astype(dtype), affine, dtype=dtype)
        nibabel.save(image, tmp_path / "a.nii.gz")
        read, stored = read_stored(tmp_path / "a.nii.gz")
        assert stored == kept
        assert read.data.is_floating_point() == (dtype == np.float32)
    scaled = nibabel.Nifti1Image(ramp(3, 4, 5), affine)
    scaled.header.set_data_dtype(np.int16)
    scaled.header.set_slope_inter(0.5, 1)
    nibabel.save(scaled, tmp_path / "s.nii")
    read, stored = read_stored(tmp_path / "s.nii")
    assert stored == np.float32
    assert read.data.is_floating_point()
    assert read_geometry(tmp_path / "s.nii").same_grid(Geometry((3, 4, 5), affine))
    assert read_geometry(torch.zeros(3, 4)).shape == (3, 4)
    with pytest.raises(InputError, match="4-D"):
        read_geometry(save(tmp_path / "4d.nii", ramp(3, 4, 5, 2)))


def test_checks():
    constant = Image(torch.full((3, 3, 3), 4.0), np.eye(4))
    with pytest.raises(InputError, match="fixed image is constant, every voxel is 4"):
        check_registrable(constant, "fixed image")
    check_registrable(image_on(GRIDS["plain"][0]))
    with pytest.raises(InputError, match=r"fixed image is 2-D and the moving image 3-D"):
        check_pair(Geometry((3, 3), np.eye(3)), Geometry((3, 3, 3), np.eye(4)))
    a = GRIDS["oblique"][0]
    near = a.affine.copy()
    near[:3, 3] += 1e-4
    check_same_grid(a, Geometry(a.shape, near), role="a", like="b")
    near[0, 3] += 1
    with pytest.raises(InputError, match="a lies on another grid than b"):
        check_same_grid(a, Geometry(a.shape, near), role="a", like="b")


def test_outputs_are_checked_early(tmp_path):
    check_writable(tmp_path / "a.nii.gz")
    for path, words in (
        (tmp_path / "no" / "a.nii", "does not exist"),
        (tmp_path / "a.png", "unknown suffix '.png'; use .nii or .nii.gz"),
        (tmp_path / "a", "unknown suffix ''"),
        (tmp_path / "file.txt" / "a.nii", "does not exist"),
    ):
        (tmp_path / "file.txt").touch()
        with pytest.raises(InputError) as caught:
            check_writable(path, role="--warped-out")
        assert words in str(caught.value)
        assert str(caught.value).startswith("--warped-out")
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        check_writable(tmp_path / "folder.nii")


def test_unwritable_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(InputError, match="cannot be written"):
        check_writable(tmp_path / "a.nii")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_half_written(error, tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_text("old")

    def write():
        with atomic_path(path) as temporary:
            assert temporary.name.endswith(".nii.gz")
            assert temporary.parent == path.parent
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert os.listdir(tmp_path) == ["a.nii.gz"]
    assert path.read_text() == "old"
    with pytest.raises(InputError, match="cannot write"), atomic_path(path):
        raise OSError(28, "No space left on device")


def test_types_written(tmp_path):
    for data, kept in (
        (torch.ones(3, 4, 5, dtype=torch.bool), np.uint8),
        (torch.ones(3, 4, 5, dtype=torch.int64), np.int32),
        (torch.ones(3, 4, 5, dtype=torch.bfloat16), np.float32),
        (torch.ones(3, 4, 5, dtype=torch.int32), np.int32),
    ):
        write_image(tmp_path / "a.nii.gz", data, np.eye(4))
        assert nibabel.load(tmp_path / "a.nii.gz").get_data_dtype() == kept
    write_image(tmp_path / "a.nii.gz", torch.ones(3, 4, 5), np.eye(4), dtype=np.int16)
    assert nibabel.load(tmp_path / "a.nii.gz").get_data_dtype() == np.int16


def test_intensity():
    data = torch.arange(1000, dtype=torch.float32).view(10, 10, 10)
    image = Image(data, np.eye(4))
    scaled, applied = scale_intensity(image)
    assert applied == {"method": "quantiles", "quantiles": [0, 0.999], "masked": False, "low": 0, "high": 999}
    torch.testing.assert_close(scaled, data / 999)
    scaled, applied = scale_intensity(image, window=(100, 300))
    assert applied == {"method": "window", "low": 100, "high": 300}
    assert (float(scaled.min()), float(scaled.max())) == (0, 1)
    assert float(scaled.flatten()[200]) == 0.5
    scaled, applied = scale_intensity(image, quantiles=(0.1, 0.9))
    assert (applied["low"], applied["high"]) == (100, 900)
    mask = data < 100
    assert scale_intensity(image, quantiles=(0, 1), mask=mask)[1]["high"] == 99
    assert float(data.max()) == 999  # the input stays
    sparse = torch.zeros(20, 20, 20)
    sparse[3, 3, 3] = 50
    scaled, applied = scale_intensity(sparse)
    assert applied["method"] == "range"
    assert float(scaled.max()) == 1
    for arguments, words in (
        ({"window": (5, 5)}, "window"),
        ({"window": (0, float("nan"))}, "window"),
        ({"quantiles": (0.9, 0.1)}, "quantiles"),
        ({"quantiles": (0, 1.5)}, "quantiles"),
        ({"mask": torch.zeros(10, 10, 10)}, "empty"),
    ):
        with pytest.raises(InputError, match=words):
            scale_intensity(image, **arguments)
