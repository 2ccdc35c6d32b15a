"""`neuralreg train nephi` and `neuralreg register --method nephi`: files, flags and words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

import neuralreg
from neuralreg.errors import InputError
from neuralreg.saved_field import load_saved_field
from neuralreg.transforms import SpatialMap, Transform, load_transform
from tests.small import SHAPE, blobs, call, save

TINY = {
    "widths": "4,8",
    "hidden": "8,8",
    "frequencies": "4",
    "global_code": "3",
    "local_code": "2",
    "head": "8",
    "strides": "4",
}
OPTIONS = [word for name, value in TINY.items() for word in ("--option", f"{name}={value}")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pair and weights of a training of three steps."""
    folder = tmp_path_factory.mktemp("nephi")
    images = np.stack([blobs(shift=shift) for shift in (0.0, 1.0, 2.0, 1.5)])
    labels = (images > 30).astype(np.uint8)
    np.savez(folder / "data.npz", images=images, labels=labels, names=np.array(list("abcd")))
    for name, image in zip(("fixed", "moving"), images, strict=False):
        save(folder / f"{name}.nii.gz", image)
    call_ok(
        *("train", "nephi", "--data", folder / "data.npz", "--out", folder / "run", "--steps", 3),
        *("--batch", 2, "--validation", 2, "--threads", 1, "--quiet", *OPTIONS),
    )
    return folder


def call_ok(*arguments: Any) -> None:
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr


def register(folder: Path, *more: Any) -> list[Any]:
    pair = ["--fixed", folder / "fixed.nii.gz", "--moving", folder / "moving.nii.gz", "--threads", 1]
    return ["register", *pair, "--method", "nephi", "--quiet", *more]


def inverse_by_iteration(forward: SpatialMap) -> Transform:
    assert isinstance(forward, Transform)
    return forward.inverse(forward.fixed)


def test_weights_predict_both_maps_and_the_field_loads_again(trained: Path, tmp_path: Path) -> None:
    names = {n: tmp_path / n for n in ("t.nii.gz", "i.nii.gz", "f.pt", "s.json")}
    flags = zip(("--transform-out", "--inverse-out", "--field-out", "--summary"), names.values(), strict=True)
    outputs = [word for flag in flags for word in flag]
    call_ok(*register(trained, "--weights", trained / "run/best.pt", "--refine", 4, *outputs))
    summary = json.loads(names["s.json"].read_text())
    assert summary["iterations"] == 4
    assert summary["preset"] is None
    assert summary["weights"].endswith("best.pt")
    assert summary["inverse_consistency_mm"] is not None
    forward, inverse = load_transform(names["t.nii.gz"]), load_transform(names["i.nii.gz"])
    assert forward.displacement.any()
    assert inverse.fixed.shape == SHAPE
    field = load_saved_field(names["f.pt"])
    # files round vectors to a 4096th of a voxel
    torch.testing.assert_close(field.dense().displacement, forward.displacement, rtol=0, atol=1e-3)
    points = np.array([[3.3, 4.1, 5.2]])
    assert np.abs(field.transform_points(points) - points).max() > 0
    # the file holds the backward map, too: its inverse is that map and not an iteration
    backward = field.inverted().dense(inverse.fixed).displacement
    torch.testing.assert_close(backward, inverse.displacement, rtol=0, atol=2e-3)
    assert (backward - inverse_by_iteration(forward).displacement).abs().max() > 1e-2


def test_a_prediction_is_the_trainees_and_the_inverse_its_own(trained: Path) -> None:
    from neuralreg.training.trainee import load_trainee

    path = trained / "run/last.pt"
    paths = trained / "fixed.nii.gz", trained / "moving.nii.gz"
    result = neuralreg.register(*paths, "nephi", weights=path, threads=1)
    trainee = load_trainee(path)
    images = [torch.from_numpy(nibabel.load(p).get_fdata(dtype=np.float32)) for p in paths]
    scaled = [
        ((image - image.min()) / (result.summary["intensity"][name]["high"] - image.min())).clamp(0, 1)
        for name, image in zip(("fixed", "moving"), images, strict=True)
    ]
    expected = trainee.displacement(*(image[None, None] for image in scaled))[0]
    torch.testing.assert_close(result.transform.displacement, expected, rtol=1e-3, atol=1e-3)
    assert result.summary["iterations"] == 0
    assert result.summary["similarity"] is None
    approximate = result.transform.inverse().displacement
    assert not torch.equal(result.inverse.displacement, approximate)


def test_without_weights_one_pair_is_fitted(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    call_ok(*register(trained, "--iterations", 3, "--summary", out, *OPTIONS))
    assert json.loads(out.read_text())["iterations"] == 3


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--refine", "3"], "refine belongs to a prediction"),
        (["--weights", "WEIGHTS", "--preset", "fast"], "leave preset 'fast' out"),
        (["--weights", "WEIGHTS", "--iterations", "3"], "refined by refine steps"),
        (["--weights", "WEIGHTS", "--refine", "-1"], "at least 0 steps"),
        (["--weights", "WEIGHTS", "--time-budget", "3"], "give refine, too"),
        (["--weights", "WEIGHTS", "--refine", "1", "--option", "omega=4"], "omega cannot change"),
        (["--weights", "WEIGHTS", "--method", "nir"], "takes no weights"),
        (["--weights", "nowhere.pt"], "does not exist"),
        (["--option", "colour=red"], "has no option 'colour'"),
    ],
)
def test_bad_arguments_in_one_line(trained: Path, tmp_path: Path, more: list[str], words: str) -> None:
    more = [str(trained / "run/best.pt") if word == "WEIGHTS" else word for word in more]
    result = call(*register(trained, "--summary", tmp_path / "s.json", *more))
    assert result.exit_code != 0
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "s.json").exists()


def test_a_prior_comes_behind_the_new_map(trained: Path, tmp_path: Path) -> None:
    paths = trained / "fixed.nii.gz", trained / "moving.nii.gz"
    coarse = neuralreg.register(*paths, "nir", iterations=3, threads=1)
    file = tmp_path / "coarse.nii.gz"
    coarse.transform.save(file)
    # no step away from the identity: what is left is the prior
    still = {name: value for name, value in TINY.items()}
    result = neuralreg.register(*paths, "nephi", iterations=1, refine_lr=1e-9, prior=file, threads=1, **still)
    torch.testing.assert_close(
        result.transform.displacement, coarse.transform.displacement, rtol=0, atol=2e-3
    )
    torch.testing.assert_close(result.warped.data, coarse.warped.data, rtol=0, atol=0.5)
    assert result.inverse.fixed.shape == SHAPE
    assert result.summary["prior"] == str(file)
    with pytest.raises(InputError, match="save the transform instead"):
        result.save_field(tmp_path / "f.pt")
    with pytest.raises(InputError, match="give no initial_transform"):
        neuralreg.register(*paths, "nephi", prior=file, center=True)
