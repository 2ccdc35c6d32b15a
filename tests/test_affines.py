import sys

import numpy as np
import pytest
import torch

from neuralreg.errors import InputError
from neuralreg.images import Image
from neuralreg.transforms import center_alignment, load_transform, read_affine
from tests.geometry import CENTRE, GRIDS, grid, image_on, rotation

POINTS = np.random.default_rng(0).normal(size=(5, 3)) * 50


def apply_ras(matrix, points):
    """A RAS matrix at LPS points, LPS result."""
    flip = np.array([-1.0, -1.0, 1.0][: len(matrix) - 1])
    return ((points * flip) @ matrix[:-1, :-1].T + matrix[:-1, -1]) * flip


def itk_transforms():
    sitk = pytest.importorskip("SimpleITK")
    centre = [12.0, -7.0, 30.0]
    affine = sitk.AffineTransform(3)
    affine.SetMatrix((rotation(0.2, -0.1, 0.3) @ np.diag([1.1, 0.9, 1.2])).ravel())
    affine.SetTranslation([1, 2, -3])
    affine.SetCenter(centre)
    euler = sitk.Euler3DTransform(centre, 0.2, -0.3, 0.4, [3, 4, 5])
    zyx = sitk.Euler3DTransform(centre, 0.2, -0.3, 0.4, [3, 4, 5])
    zyx.SetComputeZYX(True)
    versor = sitk.VersorRigid3DTransform([0.3, -0.5, 0.2], 0.7, [1, -2, 3], centre)
    similarity = sitk.Similarity3DTransform(1.3, [0.3, -0.5, 0.2], 0.7, [1, 2, 3], centre)
    scale = sitk.ScaleTransform(3, [1.1, 1.2, 0.9])  # not parsed here: goes through SimpleITK
    composite = sitk.CompositeTransform([affine, euler, sitk.TranslationTransform(3, [5, 6, 7])])
    flat = sitk.AffineTransform(2)
    flat.SetMatrix([1.1, 0.2, -0.1, 0.9])
    flat.SetTranslation([3, -4])
    flat.SetCenter([5, 6])
    return {
        "affine": affine,
        "euler": euler,
        "euler zyx": zyx,
        "versor": versor,
        "similarity": similarity,
        "translation": sitk.TranslationTransform(3, [1, 2, 3]),
        "scale": scale,
        "composite": composite,
        "affine 2-D": flat,
        "euler 2-D": sitk.Euler2DTransform([5, 6], 0.4, [1, -2]),
        "similarity 2-D": sitk.Similarity2DTransform(1.2, 0.3, [1, 2], [3, 4]),
        "translation 2-D": sitk.TranslationTransform(2, [1, -2]),
    }


@pytest.mark.parametrize("suffix", [".tfm", ".txt", ".mat", ".h5"])
def test_what_itk_writes(suffix, tmp_path):
    import SimpleITK as sitk

    for name, transform in itk_transforms().items():
        if name == "composite" and suffix == ".mat":
            continue  # ITK itself writes no composite there
        path = tmp_path / f"a{suffix}"
        sitk.WriteTransform(transform, str(path))
        points = POINTS[:, : transform.GetDimension()]
        expected = [transform.TransformPoint(p) for p in points]
        np.testing.assert_allclose(apply_ras(read_affine(path), points), expected, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(load_transform(path).transform_points(points), expected, atol=2e-3)


def test_text_is_read_without_simpleitk(tmp_path, monkeypatch):
    sitk = pytest.importorskip("SimpleITK")
    known = itk_transforms()
    sitk.WriteTransform(known["scale"], str(tmp_path / "scale.tfm"))
    sitk.WriteTransform(known["affine"], str(tmp_path / "a.mat"))
    for name, transform in known.items():
        sitk.WriteTransform(transform, str(tmp_path / f"{name}.tfm"))
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    for name in known:
        if name != "scale":
            assert read_affine(tmp_path / f"{name}.tfm").shape[0] in (3, 4)
    for file in ("scale.tfm", "a.mat"):
        with pytest.raises(InputError, match=r"needs SimpleITK: pip install 'neuralreg\[itk\]'"):
            read_affine(tmp_path / file)


def test_plain_matrix_is_lps(tmp_path):
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(0.1, 0.2, 0.3)
    matrix[:3, 3] = [1, 2, 3]
    np.savetxt(tmp_path / "m.txt", matrix, header="fixed to moving")
    expected = POINTS @ matrix[:3, :3].T + [1, 2, 3]
    np.testing.assert_allclose(apply_ras(read_affine(tmp_path / "m.txt"), POINTS), expected)
    np.savetxt(tmp_path / "m.csv", matrix, delimiter=",")
    np.testing.assert_allclose(read_affine(tmp_path / "m.csv"), read_affine(tmp_path / "m.txt"))
    shift = np.eye(3)
    shift[:2, 2] = [4, 5]
    np.savetxt(tmp_path / "flat.txt", shift)
    np.testing.assert_allclose(read_affine(tmp_path / "flat.txt")[:2, 2], [-4, -5])


def test_bad_affines(tmp_path):
    singular = np.eye(4)
    singular[2, 2] = 0
    np.savetxt(tmp_path / "singular.txt", singular)
    np.savetxt(tmp_path / "three.txt", np.eye(4)[:3])
    np.savetxt(tmp_path / "projective.txt", np.ones((4, 4)))
    np.savetxt(tmp_path / "nan.txt", np.diag([1, 1, np.nan, 1]))
    (tmp_path / "words.txt").write_text("hello world\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "cut.tfm").write_text("#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\n")
    (tmp_path / "odd.tfm").write_text(
        "#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 1 x\nFixedParameters: 0\n"
    )
    (tmp_path / "flat.tfm").write_text(
        "#Insight Transform File V1.0\nTransform: TranslationTransform_double_3_3\nParameters: 1 2 3\n"
        "FixedParameters: \nTransform: TranslationTransform_double_2_2\nParameters: 1 2\nFixedParameters: \n"
    )
    (tmp_path / "field.nii.gz").write_bytes(b"")
    for file, words in {
        "missing.txt": "does not exist",
        "singular.txt": "is singular, determinant 0",
        "three.txt": "3 x 4",
        "projective.txt": "last row",
        "nan.txt": "NaN",
        "words.txt": "neither an ITK transform nor a 4 x 4 matrix",
        "empty.txt": "holds 0 numbers",
        "cut.tfm": "ends before",
        "odd.tfm": "damaged",
        "flat.tfm": "2-D and 3-D",
        "field.nii.gz": "not an affine",
    }.items():
        with pytest.raises(InputError) as caught:
            read_affine(tmp_path / file)
        assert words in str(caught.value), (file, str(caught.value))
        assert str(tmp_path / file) in str(caught.value)


def test_bad_binaries(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\xff\xfe no")
    with pytest.raises(InputError, match="cannot be read"):
        read_affine(tmp_path / "a.h5")
    field = sitk.DisplacementFieldTransform(sitk.Image([4, 4, 4], sitk.sitkVectorFloat64, 3))
    sitk.WriteTransform(field, str(tmp_path / "field.h5"))
    with pytest.raises(InputError, match="not linear"):
        read_affine(tmp_path / "field.h5")


@pytest.mark.parametrize("by", ["intensity", "geometry"])
def test_centre_alignment(by):
    fixed, _ = GRIDS["left-handed"]
    shift = np.array([7.0, -5.0, 11.0])
    affine = fixed.affine.copy()
    affine[:3, 3] += shift
    image = image_on(fixed)
    found = center_alignment(image, Image(image.data, affine), by)
    np.testing.assert_allclose(found[:3, 3], shift, atol=1e-4)
    np.testing.assert_array_equal(found[:3, :3], np.eye(3))


def test_centre_of_mass_ignores_the_offset_of_intensity():
    # air of -1000 and a block of tissue: the block's centre, on two different grids
    images = []
    for spacing, n in ((2.0, 20), (1.0, 48)):
        geometry = grid((n, n, n), (spacing,) * 3, centre=CENTRE)
        image = Image(torch.full((n, n, n), -1000.0), geometry.affine)
        a, b = int(8 / spacing), int(16 / spacing)
        image.data[a:b, a : b + a, a:b] = 40
        images.append(
            (image, geometry.voxel_to_world([[(a + b - 1) / 2, a + (b - 1) / 2, (a + b - 1) / 2]])[0])
        )
    (fixed, c), (moving, d) = images
    np.testing.assert_allclose(center_alignment(fixed, moving)[:3, 3], d - c, atol=1e-3)
    with pytest.raises(InputError, match="centre alignment"):
        center_alignment(fixed, moving, "moments")
