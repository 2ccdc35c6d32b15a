"""The demo: its truth is exact, smooth, the same at every resolution; the command writes and says it all."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from neuralreg import demo
from neuralreg.images import Image
from neuralreg.kernels import invert, jacobian_determinant, warp
from neuralreg.transforms import Transform
from tests.small import call

SPACING = 4.0
SHAPE = (36, 40, 34)


def template() -> demo.Template:
    """An ellipsoid of three smoothly bounded tissues: what the MNI template is to the demo."""
    noise = demo.smooth_noise(1, SHAPE, (SPACING,) * 3, 30.0, torch.Generator().manual_seed(3))[0]
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    brain = torch.sigmoid((0.8 - torch.stack(axes).norm(dim=0)) * 30)
    white = torch.sigmoid((noise - 0.1) * 20)
    grey = (1 - white) * torch.sigmoid((noise + 0.2) * 20)
    tissues = brain * torch.stack([1 - white - grey, grey, white])
    t1 = 0.3 * tissues[0] + 0.6 * tissues[1] + 0.95 * tissues[2]
    return demo.Template(Image(t1, np.diag([SPACING, SPACING, SPACING, 1.0])), tissues)


def found(case: demo.Case, displacement: torch.Tensor) -> Any:
    return SimpleNamespace(transform=Transform(displacement, case.fixed.geometry, case.moving.geometry))


def test_truth_is_a_diffeomorphism_of_the_promised_size() -> None:
    case = demo.make_case(template(), seed=1)
    assert 6 < case.max_displacement_mm < 10
    assert float(jacobian_determinant(case.truth[None], scheme="central").min()) > 0.2


def test_seed_decides() -> None:
    first, again, other = (demo.make_case(template(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.moving.data, again.moving.data)
    assert not torch.equal(first.truth, other.truth)


def test_same_deformation_at_every_resolution() -> None:
    """Voxel i of the coarse grid lies where voxel 2 i of the fine one lies."""
    coarse, fine = (
        demo.smooth_noise(3, shape, (step,) * 3, 24.0, torch.Generator().manual_seed(5))
        for shape, step in (((20, 22, 18), 4.0), ((39, 43, 35), 2.0))
    )
    assert torch.allclose(coarse, fine[:, ::2, ::2, ::2], atol=1e-5)


def test_flow_backwards_is_the_inverse() -> None:
    velocity = demo.smooth_noise(3, SHAPE, (SPACING,) * 3, 24.0, torch.Generator().manual_seed(0))
    there, back = demo.flow(velocity), demo.flow(-velocity)
    error = there + warp(back[None], there[None], padding_mode="border")[0]
    assert float(error[:, 6:-6, 6:-6, 6:-6].abs().max()) < 0.05


def test_moving_image_shows_the_fixed_image_at_g() -> None:
    """Without bias and noise M(y) = F(g(y)): a known voxel is found where the truth says."""
    case = demo.make_case(template(), bias=0.0, noise=0.0)
    y = (18, 20, 17)
    g = np.array(y) + case.truth[:, 18, 20, 17].numpy()
    low = np.floor(g).astype(int)
    cell = case.fixed.data[tuple(slice(a, a + 2) for a in low)]
    for weight in torch.from_numpy(g - low):
        cell = cell[0] * (1 - weight) + cell[1] * weight
    assert float(case.moving.data[y]) == pytest.approx(float(cell), abs=1e-4)


def test_evaluation_of_the_truth_and_of_nothing() -> None:
    case = demo.make_case(template())
    nothing = demo.evaluate(case, found(case, torch.zeros_like(case.truth)))
    assert nothing["tre_after_mm"] == pytest.approx(nothing["tre_before_mm"], abs=1e-4)
    assert nothing["dice_after"] == pytest.approx(nothing["dice_before"])
    assert nothing["tre_before_mm"]["mean"] > 1
    # g takes moving to fixed; what a registration should find is its inverse
    perfect = demo.evaluate(case, found(case, invert(case.truth[None])[0][0]))
    assert perfect["tre_after_mm"]["mean"] < 0.15
    for tissue in demo.TISSUES:
        assert perfect["dice_after"][tissue] > nothing["dice_before"][tissue]
    wrong_way = demo.evaluate(case, found(case, case.truth))
    assert wrong_way["tre_after_mm"]["mean"] > 1.5 * nothing["tre_before_mm"]["mean"]


def test_without_nilearn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nilearn", None)
    result = call("demo", "--out", tmp_path / "d")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert "pip install 'neuralreg[demo]'" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_bad_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "nowhere" / "d"):
        result = call("demo", "--out", out)
        assert result.exit_code == 2
        assert str(out) in result.stderr or str(out.parent) in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and words, on the stand-in template."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(demo, "load_template", lambda resolution: template())
    monkeypatch.setattr(demo, "QUICK_ITERATIONS", 3)
    result = call("demo", "--quick", "--threads", "1", "--out", tmp_path / "d")
    assert result.exit_code == 0, result.output
    names = {"fixed.nii.gz", "moving.nii.gz", "warped.nii.gz", "transform.nii.gz", "qc.png", "summary.json"}
    assert {path.name for path in (tmp_path / "d").iterdir()} == names
    summary = json.loads((tmp_path / "d" / "summary.json").read_text())
    numbers = summary["demo"]
    for shown in (numbers["tre_before_mm"]["mean"], numbers["tre_after_mm"]["p95"]):
        assert f"{shown:.2f}" in result.stdout
    for word in ("TRE", "CSF", "grey matter", "white matter", "folds", "time", "backend"):
        assert word in result.stdout
    assert summary["iterations"] == 3


@pytest.mark.slow
def test_quick_demo_on_the_template(tmp_path: Path) -> None:
    pytest.importorskip("nilearn")
    pytest.importorskip("matplotlib")
    result = call("demo", "--quick", "--out", tmp_path / "d")
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "d" / "summary.json").read_text())
    before, after = summary["demo"]["tre_before_mm"], summary["demo"]["tre_after_mm"]
    assert after["mean"] < 0.8 * before["mean"]
    for tissue in demo.TISSUES:
        assert summary["demo"]["dice_after"][tissue] > summary["demo"]["dice_before"][tissue]
    assert summary["folds_percent"] < 0.5
