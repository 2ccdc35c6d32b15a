import nibabel
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from neuralreg.cli import app
from neuralreg.images import read_image, read_labels, write_image
from neuralreg.transforms import Transform
from tests.geometry import GRIDS, image_on, itk_transform, smooth_displacement


@pytest.fixture
def files(tmp_path):
    fixed, moving = GRIDS["oblique"]
    image = image_on(moving)
    write_image(tmp_path / "moving.nii.gz", image.data, moving.affine)
    write_image(tmp_path / "fixed.nii.gz", torch.zeros(fixed.shape), fixed.affine)
    write_image(tmp_path / "labels.nii.gz", (image.data > 0.5).to(torch.uint8) * 7, moving.affine)
    Transform(smooth_displacement(fixed.shape), fixed, moving).save(tmp_path / "t.nii.gz")
    return tmp_path


def run(folder, **options):
    given = {
        "transform": "t.nii.gz",
        "moving": "moving.nii.gz",
        "reference": "fixed.nii.gz",
        "out": "out.nii.gz",
    }
    words = []
    for name, value in {**given, **options}.items():
        is_file = name in given
        words += [f"--{name.replace('_', '-')}", str(folder / value) if is_file else str(value)]
    return CliRunner().invoke(app, ["apply", *words])


def test_linear_is_what_itk_gives(files):
    sitk = pytest.importorskip("SimpleITK")
    result = run(files, fill=-3)
    assert result.exit_code == 0, result.output
    moving, fixed = (sitk.ReadImage(str(files / f"{name}.nii.gz")) for name in ("moving", "fixed"))
    theirs = sitk.Resample(moving, fixed, itk_transform(files / "t.nii.gz"), sitk.sitkLinear, -3.0)
    ours = sitk.ReadImage(str(files / "out.nii.gz"))
    assert ours.GetOrigin() == fixed.GetOrigin()
    difference = np.abs(sitk.GetArrayFromImage(theirs) - sitk.GetArrayFromImage(ours))
    assert difference.mean() < 1e-3 * np.ptp(sitk.GetArrayFromImage(moving))
    assert nibabel.load(files / "out.nii.gz").get_data_dtype() == np.float32


@pytest.mark.parametrize("interpolation", ["nearest", "label"])
def test_labels_keep_their_type(files, interpolation):
    assert run(files, moving="labels.nii.gz", interpolation=interpolation).exit_code == 0
    assert nibabel.load(files / "out.nii.gz").get_data_dtype() == np.uint8
    assert set(np.unique(read_labels(files / "out.nii.gz").data)) == {0, 7}


def test_affine_text_and_another_reference(files):
    np.savetxt(files / "a.txt", np.eye(4))
    assert run(files, transform="a.txt", reference="moving.nii.gz").exit_code == 0
    before, after = (read_image(files / f"{name}.nii.gz").data for name in ("moving", "out"))
    torch.testing.assert_close(after, before, atol=1e-3, rtol=0)


def test_not_finite(files):
    image = nibabel.load(files / "moving.nii.gz")
    data = image.get_fdata(dtype=np.float32)
    data[10, 10, 10] = np.nan
    nibabel.save(nibabel.Nifti1Image(data, image.affine), files / "nan.nii.gz")
    result = run(files, moving="nan.nii.gz")
    assert result.exit_code == 2
    assert "--nan-to" in result.output
    assert run(files, moving="nan.nii.gz", nan_to=0).exit_code == 0


def test_bad_input_is_one_line_and_leaves_no_file(files):
    (files / "cut.nii.gz").write_bytes((files / "t.nii.gz").read_bytes()[:5000])
    (files / "text.nii.gz").write_text("text")
    write_image(files / "flat.nii.gz", torch.rand(5, 6), np.eye(3))
    before = sorted(p.name for p in files.iterdir())
    for options, words in (
        ({"transform": "missing.nii.gz"}, "transform"),
        ({"transform": "cut.nii.gz"}, "cut short"),
        ({"transform": "text.nii.gz"}, "not an image"),
        ({"transform": "moving.nii.gz"}, "not a displacement field"),
        ({"moving": "missing.nii.gz"}, "moving image"),
        ({"moving": "t.nii.gz"}, "vector"),
        ({"moving": "flat.nii.gz"}, "2-D"),
        ({"reference": "missing.nii.gz"}, "reference image"),
        ({"reference": "flat.nii.gz"}, "2-D"),
        ({"out": "no/out.nii.gz"}, "does not exist"),
        ({"out": "out.png"}, "suffix"),
        ({"out": "moving.nii.gz"}, "overwritten"),
        ({"interpolation": "cubic"}, "linear, nearest, label"),
        ({"interpolation": "label"}, "no label map"),
    ):
        result = run(files, **options)
        assert result.exit_code == 2, (options, result.output)
        lines = [line for line in result.output.splitlines() if line.strip()]
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert words in lines[0], lines[0]
        assert sorted(p.name for p in files.iterdir()) == before
