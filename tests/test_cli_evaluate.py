import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from neuralreg.cli import app
from neuralreg.images import read_labels, write_image
from neuralreg.metrics import dice, regularity
from neuralreg.transforms import Transform, load_transform
from tests.geometry import GRIDS, image_on, smooth_displacement
from tests.processes import python


@pytest.fixture
def files(tmp_path):
    fixed, moving = GRIDS["oblique"]
    transform = Transform(smooth_displacement(fixed.shape), fixed, moving)
    transform.save(tmp_path / "t.nii.gz")
    image = image_on(moving)
    labels = type(image)(
        (image.data > 0).to(torch.int32) * 3 + (image.data > 1).to(torch.int32) * 4, image.affine
    )
    warped = transform.warp(labels, interpolation="nearest")
    write_image(tmp_path / "moving.nii.gz", labels.data.to(torch.uint8), moving.affine)
    write_image(tmp_path / "fixed.nii.gz", warped.data.to(torch.uint8), fixed.affine)
    mask = torch.zeros(fixed.shape, dtype=torch.uint8)
    mask[5:12, 5:12, 5:12] = 1
    write_image(tmp_path / "mask.nii.gz", mask, fixed.affine)
    points = fixed.voxel_to_world(np.random.default_rng(0).uniform(3, np.array(fixed.shape) - 4, (9, 3)))
    moved = transform.transform_points(points, "RAS")
    header = ",".join(f"{which}_{axis}_ras" for which in ("fixed", "moving") for axis in "xyz")
    np.savetxt(tmp_path / "l.csv", np.hstack([points, moved]), delimiter=",", header=header, comments="")
    (tmp_path / "labels.json").write_text('{"ids": [3, 7], "note": "what counts"}')
    return tmp_path


def run(folder, *words, **options):
    files = (
        "fixed_labels",
        "moving_labels",
        "warped_labels",
        "transform",
        "labels_json",
        "landmarks",
        "mask",
        "out",
    )
    for name, value in options.items():
        words += (f"--{name.replace('_', '-')}", str(folder / value) if name in files else str(value))
    return CliRunner().invoke(app, ["evaluate", *words])


def test_everything_at_once(files):
    result = run(
        files,
        "--json",
        fixed_labels="fixed.nii.gz",
        moving_labels="moving.nii.gz",
        transform="t.nii.gz",
        labels_json="labels.json",
        landmarks="l.csv",
        mask="mask.nii.gz",
        out="m.json",
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found == json.loads((files / "m.json").read_text())
    assert list(found["dice"]) == ["3", "7"]
    assert found["dice_mean"] > 0.97  # the fixed labels are the moving ones, warped by the same transform
    assert found["dice_mean_before"] < 0.9
    assert found["dice_mean"] == pytest.approx(np.mean(list(found["dice"].values())))
    assert found["tre_mean_mm"] < 1e-2
    assert found["tre_before_mm"]["mean"] > 1
    assert len(found["tre_mm"]["per_point"]) == 9
    expected = regularity(
        load_transform(files / "t.nii.gz").displacement, read_labels(files / "mask.nii.gz").data
    )
    assert found["sdlogj"] == pytest.approx(expected["sdlogj"])
    assert found["folds_percent"] == expected["folds_percent"]
    assert found["inputs"]["transform"] == str(files / "t.nii.gz")


def test_table(files):
    result = run(
        files,
        fixed_labels="fixed.nii.gz",
        moving_labels="moving.nii.gz",
        transform="t.nii.gz",
        landmarks="l.csv",
    )
    assert result.exit_code == 0, result.output
    for word in (
        "Dice",
        "before",
        "after",
        "mean",
        "median",
        "SDlogJ",
        "folds",
        "non-diffeomorphic",
        "TRE (mm)",
        "points",
    ):
        assert word in result.output


def test_parts_alone(files):
    found = json.loads(run(files, "--json", transform="t.nii.gz").output)
    regular = {"folds", "folds_percent", "sdlogj", "sdlogj_learn2reg", "min_determinant", "ndv_voxels"}
    assert set(found) == regular | {"inputs"}
    found = json.loads(run(files, "--json", landmarks="l.csv").output)
    assert "tre_mm" not in found
    assert found["tre_mean_before_mm"] > 1
    found = json.loads(
        run(files, "--json", fixed_labels="fixed.nii.gz", warped_labels="fixed.nii.gz", labels="3,99").output
    )
    assert found["dice"] == {"3": 1.0, "99": None}
    assert found["dice_mean"] == 1
    fixed = read_labels(files / "fixed.nii.gz")
    write_image(files / "zero.nii.gz", torch.zeros_like(fixed.data), fixed.affine)
    found = json.loads(run(files, "--json", fixed_labels="fixed.nii.gz", moving_labels="zero.nii.gz").output)
    assert found["dice_before"] == {str(k): v for k, v in dice(fixed, torch.zeros_like(fixed.data)).items()}
    np.savetxt(files / "a.txt", np.eye(4))
    found = json.loads(run(files, "--json", transform="a.txt", landmarks="l.csv").output)
    assert found["tre_mean_mm"] == pytest.approx(found["tre_mean_before_mm"], abs=1e-2)


def test_bad_input_is_one_line(files):
    fixed = read_labels(files / "fixed.nii.gz")
    shifted = fixed.affine.copy()
    shifted[0, 3] += 5
    write_image(files / "shifted.nii.gz", fixed.data, shifted)
    (files / "bad.json").write_text('{"a": [1], "b": [2]}')
    before = sorted(p.name for p in files.iterdir())
    both = {"fixed_labels": "fixed.nii.gz", "moving_labels": "moving.nii.gz"}
    for options, words in (
        ({}, "nothing to evaluate"),
        ({"moving_labels": "moving.nii.gz"}, "--fixed-labels"),
        ({"fixed_labels": "fixed.nii.gz"}, "nothing to compare with"),
        ({"fixed_labels": "missing.nii.gz", "warped_labels": "fixed.nii.gz"}, "fixed labels"),
        ({"fixed_labels": "fixed.nii.gz", "warped_labels": "shifted.nii.gz"}, "another grid"),
        ({"fixed_labels": "fixed.nii.gz", "warped_labels": "moving.nii.gz"}, "another grid"),
        ({**both, "labels": "1,x"}, "--labels"),
        ({**both, "labels": "1", "labels_json": "labels.json"}, "one of them"),
        ({**both, "labels_json": "bad.json"}, "one list"),
        ({**both, "labels_json": "missing.json"}, "--labels-json"),
        ({**both, "mask": "mask.nii.gz"}, "--transform"),
        ({"transform": "t.nii.gz", "mask": "shifted.nii.gz"}, "another grid"),
        ({"transform": "fixed.nii.gz"}, "not a displacement field"),
        ({"landmarks": "missing.csv"}, "landmarks"),
        ({"landmarks": "l.csv", "landmarks_space": "LPS"}, "header says RAS"),
        ({"transform": "t.nii.gz", "out": "m.txt"}, ".json"),
        ({"transform": "t.nii.gz", "out": "no/m.json"}, "does not exist"),
    ):
        result = run(files, **options)
        assert result.exit_code == 2, (options, result.output)
        lines = [line for line in result.output.splitlines() if line.strip()]
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert words in lines[0], lines[0]
        assert sorted(p.name for p in files.iterdir()) == before


def test_the_module_loads_nothing_heavy():
    code = (
        "import sys, neuralreg.cli.apply, neuralreg.cli.evaluate;"
        "print([m for m in ('torch', 'nibabel', 'numpy', 'SimpleITK', 'rich.table') if m in sys.modules])"
    )
    done = python("-c", code)
    assert done.stdout.strip() == "[]", done.stderr
