"""`neuralreg convert` and `neuralreg apply` on files: what they write, what they compose, what they refuse."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from neuralreg.images import read_image, write_image
from neuralreg.registration import register
from neuralreg.saved_field import load_saved_field
from neuralreg.transforms import Affine, Transform, compose, load_transform
from tests.formats.known import FLIP, IMAGE_ERROR, POINT_ERROR, Known, known
from tests.geometry import initial_affine
from tests.small import call

PAIR = "left-handed"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with the pair's images, its transform as t.nii.gz, an affine a.txt, and both as Learn2Reg's file."""
    pair = known("bend", PAIR)
    write_image(tmp_path / "fixed.nii.gz", torch.zeros(pair.fixed.shape), pair.fixed.affine)
    write_image(tmp_path / "moving.nii.gz", pair.image().data, pair.moving.affine)
    pair.transform.save(tmp_path / "t.nii.gz")
    pair.transform.save(tmp_path / "l2r.nii.gz", "learn2reg")
    Affine(initial_affine()).save(tmp_path / "a.txt")
    return tmp_path


def run(folder: Path, command: str, *words: Any) -> Any:
    """A command; words that name files of the folder, or have a suffix, become its paths."""
    paths = [folder / word if "." in str(word) and not str(word)[0].isdigit() else word for word in words]
    return call(command, *paths)


def refused(result: Any, *words: str) -> None:
    lines = [line for line in result.output.splitlines() if line.strip()]
    assert result.exit_code == 2, result.output
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0], lines[0]


def images() -> list[str]:
    return ["--reference", "fixed.nii.gz", "--moving", "moving.nii.gz"]


@pytest.mark.parametrize("out", ["x.h5", "x.nii", "x.pt", "x1Warp.nii.gz", "x.npz"])
def test_converted_and_applied(files: Path, out: str) -> None:
    pair = known("bend", PAIR)
    named = {"x1Warp.nii.gz": ["--to", "ants"], "x.npz": ["--to", "torch-grid", "--align-corners"]}.get(
        out, []
    )
    result = run(files, "convert", "-t", "t.nii.gz", *images(), "--out", out, *named)
    assert result.exit_code == 0, result.output
    again = ["--from", "ants"] if "Warp" in out else []
    result = run(files, "apply", "-t", out, *images(), "--out", "w.nii.gz", *again)
    assert result.exit_code == 0, result.output
    assert pair.image_error(read_image(files / "w.nii.gz").data.numpy()) < IMAGE_ERROR


@pytest.mark.parametrize("route", ["invert", "inverse of a field in voxels"])
def test_inverted(files: Path, route: str) -> None:
    back = known("bend", PAIR, backward=True)
    write_image(files / "moving.nii.gz", back.image().data, back.moving.affine)
    write_image(files / "fixed.nii.gz", torch.zeros(back.fixed.shape), back.fixed.affine)
    source = ["-t", "t.nii.gz"] if route == "invert" else ["-t", "l2r.nii.gz", "--from", "learn2reg"]
    result = run(files, "convert", *source, "--invert", *images(), "--out", "i.h5")
    assert result.exit_code == 0, result.output
    run(files, "apply", "-t", "i.h5", *images(), "--out", "w.nii.gz")
    assert back.image_error(read_image(files / "w.nii.gz").data.numpy()) < IMAGE_ERROR
    result = run(files, "apply", *source, "--invert", source[1], *images(), "--out", "v.nii.gz")
    assert result.exit_code == 0, result.output
    assert back.image_error(read_image(files / "v.nii.gz").data.numpy()) < IMAGE_ERROR


def test_points_pass_the_first_transform_first(files: Path) -> None:
    pair = known("bend", PAIR)
    points = pair.points()[:20]
    table(files / "in.csv", points, "_ras")
    chain = compose(pair.transform, Affine(initial_affine()).inverted())
    words = ["-t", "t.nii.gz", "-t", "a.txt", "--invert", "a.txt"]
    result = run(files, "apply", *words, "--points", "in.csv", "--points-out", "out.csv")
    assert result.exit_code == 0, result.output
    expected = chain.transform_points(points, "RAS")
    np.testing.assert_allclose(read_back(files / "out.csv", "_ras"), expected, atol=5e-3)
    result = run(files, "convert", "-t", "t.nii.gz", "-t", "a.txt", "--out", "both.h5")
    assert result.exit_code == 0, result.output
    both = load_transform(files / "both.h5").transform_points(points, "RAS")
    there = Affine(initial_affine()).transform_points(pair.truth(points), "RAS")
    assert np.abs(both - there).max() < 2 * POINT_ERROR
    result = run(files, "apply", *words, *images(), "--out", "w.nii.gz")
    warped = read_image(files / "w.nii.gz").data
    ours = chain.warp(read_image(files / "moving.nii.gz"), pair.fixed).data
    torch.testing.assert_close(warped, ours, atol=5e-3, rtol=0)


@pytest.mark.parametrize(("named", "option"), [("_lps", None), ("_ras", None), ("", "LPS"), ("", "ras")])
def test_points_of_either_image(files: Path, named: str, option: str | None) -> None:
    pair = known("bend", PAIR)
    sign = FLIP if "lps" in named or option == "LPS" else 1
    fixed, moving = pair.points()[:20], pair.truth(pair.points()[:20])
    table(files / "fixed.csv", fixed * sign, named)
    table(files / "moving.csv", moving * sign, named)
    space = [] if option is None else ["--points-space", option]
    for points_of, expected in (("fixed", moving), ("moving", fixed)):
        words = ["--points", f"{points_of}.csv", "--points-out", "out.csv", "--points-of", points_of, *space]
        result = run(files, "apply", "-t", "t.nii.gz", *words)
        assert result.exit_code == 0, result.output
        assert np.abs(read_back(files / "out.csv", named) - expected * sign).max() < POINT_ERROR
    with (files / "out.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][0] == "name"
    assert rows[3][0] == "point, 2"


def table(path: Path, points: np.ndarray, named: str) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *(f"{axis}{named}" for axis in "xyz")])
        writer.writerows([f"point, {k}", *point] for k, point in enumerate(points))


def read_back(path: Path, named: str) -> np.ndarray:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return np.array([[float(row[f"{axis}{named}"]) for axis in "xyz"] for row in rows])


def test_an_affine_stays_one(files: Path) -> None:
    for out in ("b.h5", "b.txt", "b.mat"):
        result = run(files, "convert", "-t", "a.txt", "-t", "a.txt", "--invert", "--out", out)
        assert result.exit_code == 0, result.output
        again = load_transform(files / out)
        assert isinstance(again, Affine)
        expected = np.linalg.inv(initial_affine() @ initial_affine())
        np.testing.assert_allclose(again.matrix, expected, atol=1e-9)


def test_what_cannot_be_done_is_one_line_and_leaves_no_file(files: Path) -> None:
    np.savez(files / "bare.npz", arr_0=np.zeros((4, 4, 4, 3)))
    torch.save(torch.zeros(1, 20, 18, 16, 3), files / "grid.pt")
    (files / "nothing.h5").write_bytes(b"nothing")
    table(files / "no_space.csv", np.zeros((2, 3)), "")
    before = sorted(p.name for p in files.iterdir())
    convert = ["--reference", "fixed.nii.gz", "--out"]
    for words, said in (
        (["-t", "bare.npz", *convert, "x.h5"], ["--from", "learn2reg, voxelmorph"]),
        (["-t", "l2r.nii.gz", *convert, "x.h5"], ["not a displacement field", "learn2reg, voxelmorph"]),
        (["-t", "l2r.nii.gz", "--from", "learn2reg", *convert, "x.h5"], ["--moving"]),
        (["-t", "bare.npz", "--from", "learn2reg", *images(), "--out", "x.h5"], ["20 x 18 x 16 voxels"]),
        (["-t", "bare.npz", "--from", "voxelmorph", *images(), "--out", "x.h5"], ["no VoxelMorph warp"]),
        (["-t", "bare.npz", "--from", "torch-grid", *images(), "--out", "x.h5"], ["no sampling grid"]),
        (["-t", "grid.pt", *convert, "x.h5"], ["not a field"]),
        (["-t", "grid.pt", "--from", "torch-grid", *images(), "--out", "x.h5"], ["align_corners"]),
        (["-t", "t.nii.gz", "-t", "a.txt", "--from", "ants", *convert, "x.h5"], ["several"]),
        (["-t", "t.nii.gz", "--from", "ants", *convert, "x.h5"], ["1Warp.nii.gz"]),
        (["-t", "t.nii.gz", *convert, "x.npz"], ["several formats", "learn2reg, voxelmorph, torch-grid"]),
        (["-t", "t.nii.gz", *convert, "x.png"], ["unknown suffix"]),
        (["-t", "t.nii.gz", *convert, "x.txt"], ["affine alone"]),
        (["-t", "t.nii.gz", *convert, "x.npz", "--to", "learn2reg"], ["--moving"]),
        (["-t", "t.nii.gz", *convert, "x.npz", "--to", "elastix"], ["no transform format", "itk-nifti"]),
        (["-t", "t.nii.gz", *convert, "x.h5", "--to", "learn2reg"], ["unknown suffix"]),
        (["-t", "t.nii.gz", *convert, "x.pt", "--to", "field"], ["read, not written"]),
        (["-t", "t.nii.gz", *convert, "x.nii.gz", "--to", "ants"], ["1Warp.nii.gz"]),
        (["-t", "t.nii.gz", *convert, "x.h5", "--align-corners"], ["no option align-corners"]),
        (["-t", "t.nii.gz", *convert, "t.nii.gz"], ["overwritten"]),
        (["-t", "a.txt", "--out", "x.nii.gz"], ["reference"]),
        (["-t", "nothing.h5", "--out", "x.nii.gz"], ["cannot be read"]),
        (["-t", "missing.h5", "--out", "x.nii.gz"], ["does not exist"]),
    ):
        refused(run(files, "convert", *words), *said)
        assert sorted(p.name for p in files.iterdir()) == before
    points = ["--points", "no_space.csv", "--points-out", "x.csv"]
    for words, said in (
        ([], ["nothing to do"]),
        (["--out", "x.nii.gz"], ["--moving, --reference"]),
        (["--points", "no_space.csv"], ["nothing to do"]),
        (points, ["--points-space"]),
        ([*points, "--points-space", "MNI"], ["RAS or LPS"]),
        ([*points, "--points-space", "LPS", "--points-of", "atlas"], ["fixed or moving"]),
        ([*points, "--points-space", "LPS", "--moving", "moving.nii.gz"], ["--out"]),
        ([*points, "--points-space", "LPS", "--invert", "a.txt"], ["not one of the transforms"]),
    ):
        refused(run(files, "apply", "-t", "t.nii.gz", *words), *said)
        assert sorted(p.name for p in files.iterdir()) == before


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A small registration and its field's file."""
    pair = known("shift", "oblique")
    path = tmp_path_factory.mktemp("fitted") / "field.pt"
    fixed = Known(pair.transform, pair.truth, pair.moving, pair.fixed).image()
    result = register(fixed, pair.image(), iterations=10, levels=2, base=3, finest=6, scales=(1,), threads=1)
    result.save_field(path)
    return result, path


def test_a_saved_field_is_asked_at_the_reference_itself(fitted: tuple[Any, Path], tmp_path: Path) -> None:
    result, path = fitted
    fine = result.fixed.affine @ np.diag([0.5, 0.5, 0.5, 1])
    write_image(tmp_path / "fine.nii.gz", torch.zeros(30, 20, 24), fine)
    write_image(tmp_path / "moving.nii.gz", result.moving.data, result.moving.affine)
    words = ["--reference", tmp_path / "fine.nii.gz", "--moving", tmp_path / "moving.nii.gz"]
    assert call("apply", "-t", path, *words, "--out", tmp_path / "w.nii.gz").exit_code == 0
    exact = load_saved_field(path).dense(read_image(tmp_path / "fine.nii.gz").geometry)
    through = Transform(result.transform.displacement, result.fixed.geometry, None, result.transform.initial)
    warped = read_image(tmp_path / "w.nii.gz").data
    torch.testing.assert_close(warped, exact.warp(result.moving).data, atol=1e-3, rtol=0)
    assert (warped - through.warp(result.moving, exact.fixed).data).abs().max() > 2e-3
    saved = load_saved_field(path)
    points = np.array([[8.0, -19.0, 303.0], [14.0, -24.0, 297.0]])
    there = saved.apply_to_points(points, "RAS")
    np.testing.assert_allclose(saved.apply_to_points(there, "RAS", "moving"), points, atol=5e-3)


@pytest.mark.parametrize("kind", [".h5", ".nii.gz", "matrix"])
def test_register_starts_from_any_transform_and_writes_by_suffix(kind: str, tmp_path: Path) -> None:
    pair = known("bend", PAIR)
    fixed = Known(pair.transform, pair.truth, pair.moving, pair.fixed).image()
    write_image(tmp_path / "fixed.nii.gz", fixed.data, fixed.affine)
    write_image(tmp_path / "moving.nii.gz", pair.image().data, pair.moving.affine)
    start: Any = pair.transform
    if kind == "matrix":
        start = Affine(pair.transform.initial)
    path = tmp_path / f"start{'.tfm' if kind == 'matrix' else kind}"
    start.save(path)
    result = call(
        "register", "--fixed", tmp_path / "fixed.nii.gz", "--moving", tmp_path / "moving.nii.gz",
        "--initial-transform", path, "--transform-out", tmp_path / "t.h5", "--inverse-out", tmp_path / "i.h5",
        "--iterations", 1, "--option", "lr=1e-6", "--option", "table_lr=1e-6", "--threads", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    points = pair.points()
    found = load_transform(tmp_path / "t.h5")
    np.testing.assert_allclose(
        found.transform_points(points, "RAS"), start.transform_points(points, "RAS"), atol=0.05
    )
    there = found.transform_points(points, "RAS")
    np.testing.assert_allclose(
        load_transform(tmp_path / "i.h5").transform_points(there, "RAS"), points, atol=0.2
    )


def test_what_3d_slicer_needs_is_in_the_composite(files: Path) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="ITK's files (extra itk)")
    known("bend", PAIR).transform.save(files / "x.h5")
    composite = sitk.ReadTransform(str(files / "x.h5"))
    assert composite.GetTransformEnum() == sitk.sitkComposite
    kinds = [composite.GetNthTransform(i).Downcast().GetName() for i in range(2)]
    assert kinds == ["AffineTransform", "DisplacementFieldTransform"]
    assert nibabel.load(files / "t.nii.gz").shape == (20, 18, 16, 1, 3)
