"""Learn2Reg's figures: those of its own script on a small task made by formulas, and what is not copied from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

pytest.importorskip("surface_distance")

from neuralreg.errors import InputError
from neuralreg.learn2reg import evaluate_learn2reg
from tests.small import call

SHAPE, SPACING = (20, 18, 16), (1.5, 2.0, 1.0)
PAIRS = (("0001_0000", "0002_0000"), ("0002_0000", "0001_0001"), ("0003_0001", "0001_0000"))

# What evaluation/evaluation.py of github.com/MDL-UzL/L2R at 8847509 wrote for this task, with numpy's nan for its NAN.
nan = float("nan")
EXPECTED: dict[str, dict[str, list[float]]] = {
    "0001_0000<--0002_0000": {
        "LogJacDetStd": [0.1355717807],
        "DSC": [0.5951065509, 0.6198830409, nan, nan],
        "HD95": [2, 1.414213562, nan],
        "TRE_kp": [3.111929462, 1.763838092, 1.752896721, 2.156397728],
    },
    "0002_0000<--0001_0001": {
        "LogJacDetStd": [6.341482654],
        "DSC": [0.1692969871, 0.05904059041, nan, nan],
        "HD95": [4, 5.385164807, nan],
        "TRE_kp": [8.121158304, 6.668671673, 8.657166574, 4.743331852],
    },
    "0003_0001<--0001_0000": {
        "LogJacDetStd": [0.2022511786],
        "DSC": [0.4655172414, 0.4630541872, 0.2553191489, nan],
        "HD95": [2.828427125, 2.236067977, 2.449489743],
        "TRE_kp": [5.324706445, 1.377587951, 2.100746675, 3.569729401],
    },
}
AGGREGATES = {
    "LogJacDetStd": {"mean": 2.226435204, "std": 2.909905287, "30": 2.657943769},
    "DSC": {"mean": 0.3720979257, "std": 0.202028735, "30": 0.282445631},
    "HD95": {"mean": 2.968116933, "std": 1.262103878, "30": 2.185639681},
    "TRE_kp": {"mean": 4.11234674, "std": 2.107577524, "30": 4.674948411},
}


def task(folder: Path) -> tuple[Path, Path]:
    """Writes a task of three pairs (alike, two modalities in order, and in disorder); its configuration and fields."""
    index = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in SHAPE], indexing="ij"))
    for k, name in enumerate(("0001_0000", "0002_0000", "0001_0001", "0003_0001")):
        distance = np.sqrt(((index.T - [9.3 + 0.7 * k, 8.2 - 0.4 * k, 7.6]) ** 2).sum(-1).T)
        labels = (distance < 6).astype(np.uint8) + (distance < 3 + 0.3 * k)
        labels[15:, 14:, 12:] = 4 if k != 1 else 0  # one subject lacks the label
        points = 4 + np.array([[1, 2, 3], [7, 5, 6], [9, 3, 1], [4, 8, 2]]) + 0.25 * k
        for kind, values in (("images", distance), ("labels", labels), ("masks", distance < 7)):
            (folder / f"{kind}Tr").mkdir(parents=True, exist_ok=True)
            image = nibabel.Nifti1Image(values.astype(np.float32), np.diag([*SPACING, 1.0]))
            nibabel.save(image, folder / f"{kind}Tr" / f"X_{name}.nii.gz")
        for kind in ("keypoints", "keypoints00000001"):
            (folder / f"{kind}Tr").mkdir(exist_ok=True)
            shift = 0.5 if kind == "keypoints00000001" else 0
            np.savetxt(folder / f"{kind}Tr" / f"X_{name}.csv", points + shift, delimiter=",")
    fields = folder / "fields"
    fields.mkdir()
    for k, (size, name) in enumerate(((1.0, "0001_0002"), (4.0, "0002_0001"), (1.5, "0003_0001_0001_0000"))):
        u = np.stack([size * np.sin(0.45 * index[a] + 0.3 * index[a - 1] + k) for a in range(3)], -1)
        if k:
            nibabel.save(nibabel.Nifti1Image(u, np.eye(4)), fields / f"disp_{name}.nii.gz")
        else:
            np.savez_compressed(fields / f"disp_{name}.npz", u.astype(np.float16))
    metrics: list[dict[str, Any]] = [
        {"name": "LogJacDetStd", "metric": "sdlogj"},
        {"name": "DSC", "metric": "dice", "labels": [1, 2, 4, 9]},
        {"name": "HD95", "metric": "hd95", "labels": [1, 2, 4]},
        {"name": "TRE_kp", "metric": "tre", "dest": "keypoints"},
    ]
    config = {
        "task_name": "Made",
        "evaluation_methods": metrics,
        "expected_shape": [*SHAPE, 3],
        "eval_pairs": [
            {s: f"imagesTr/X_{n}.nii.gz" for s, n in zip(("fixed", "moving"), p, strict=True)} for p in PAIRS
        ],
        "masked_evaluation": True,
        "evaluation_config_version": "0.2",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "config.json", fields


def test_figures_are_those_of_its_script(tmp_path: Path) -> None:
    result = evaluate_learn2reg(*task(tmp_path))
    assert list(result["cases"]) == list(EXPECTED)
    for name, expected in EXPECTED.items():
        for metric, values in expected.items():
            found = result["cases"][name][metric]
            assert np.allclose(np.ravel(found["detailed"]), values, rtol=1e-6, equal_nan=True), (name, metric)
            assert found["mean"] == pytest.approx(np.nanmean(values), rel=1e-6)
    for metric, numbers in AGGREGATES.items():
        assert result["aggregates"][metric] == pytest.approx(numbers, rel=1e-6)
    assert "surface-distance" in result["implementation"]["hd95"]


def test_folds_are_counted(tmp_path: Path) -> None:
    """Where the script says 0 whatever the field: its count comes after 3 is added and the values are clipped."""
    result = evaluate_learn2reg(*task(tmp_path))
    assert not any("num_foldings" in case for case in result["cases"].values())
    field = nibabel.load(tmp_path / "fields" / "disp_0002_0001.nii.gz").get_fdata()
    jacobian = np.stack([np.stack(np.gradient(field[..., a], axis=(0, 1, 2)), -1) for a in range(3)], -2)
    det = np.linalg.det(jacobian + np.eye(3))[2:-2, 2:-2, 2:-2]
    assert [case["folds"]["mean"] for case in result["cases"].values()][1] == (det <= 0).sum() > 1000


def test_command_writes_and_shows(tmp_path: Path) -> None:
    config, fields = task(tmp_path)
    words = ("evaluate", "--learn2reg", config, "--fields", fields)
    done = call(*words, "--out", tmp_path / "m.json")
    assert done.exit_code == 0, done.output
    for word in ("Made", "0002_0000<--0001_0001", "HD95", "folds", "mean"):
        assert word in done.stdout
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["cases"]["0001_0000<--0002_0000"]["DSC"]["detailed"][2] is None
    for more, told in (
        (("--data", tmp_path / "fields"), "labels"),
        (("--transform", "t.nii.gz"), "alone"),
    ):
        failed = call(*words, *more)
        assert (failed.exit_code, failed.stderr.count("\n")) == (2, 1)
        assert told in failed.stderr
    assert call("evaluate", "--fields", fields).exit_code == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"expected_shape": [10, 9, 8, 3]}, "the task expects 10 x 9 x 8 x 3"),
        ({"eval_pairs": [{"fixed": "imagesTr/a.nii.gz", "moving": "b.nii.gz"}]}, "must end in"),
        ({"eval_pairs": []}, "no pairs"),
        ({"evaluation_methods": [{"name": "x", "metric": "hd96"}]}, "hd96"),
        ({"evaluation_methods": [{"name": "x", "metric": "dice"}]}, "labels"),
        ({"evaluation_methods": [{"name": "x", "metric": "sdlogj"}] * 2}, "a name of its own"),
        ({"task_name": None}, ""),
    ],
)
def test_bad_configuration(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    config, fields = task(tmp_path)
    content = json.loads(config.read_text()) | change
    if change == {"task_name": None}:
        del content["task_name"]
        words = "task_name"
    config.write_text(json.dumps(content))
    with pytest.raises(InputError, match=words):
        evaluate_learn2reg(config, fields)


def test_missing_displacement(tmp_path: Path) -> None:
    config, fields = task(tmp_path)
    (fields / "disp_0001_0002.npz").unlink()
    with pytest.raises(InputError, match=r"disp_0001_0002\.nii\.gz"):
        evaluate_learn2reg(config, fields)
