"""What stands in examples/ runs, and does what it says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuralreg.methods.ofg import Energy
from tests.small import blobs, pair_folder

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_network_learns_from_guidance() -> None:
    example = load("ofg_own_network")
    assert len((EXAMPLES / "ofg_own_network.py").read_text().splitlines()) < 30
    network = example.MyNetwork()
    waves = [torch.sin(0.6 * torch.arange(28.0) + phase) for phase in (0.0, 0.5, 1.1)]
    images = [0.5 + 0.25 * (a[:, None] + a[None]) for a in waves]
    pairs = [(images[k][None, None], images[k + 1][None, None]) for k in range(2)]

    def energy() -> float:
        with torch.no_grad():
            return sum(float(Energy()(fixed, moving, network(moving, fixed))) for fixed, moving in pairs)

    before = energy()
    example.train(network, pairs, steps=60)
    assert energy() < before - 0.1


def test_own_loop_finds_a_shift() -> None:
    fixed, moving = (torch.from_numpy(blobs(shift=shift))[None, None] / 100 for shift in (0.0, 1.5))
    u = load("own_loop").fit(fixed, moving, steps=60)
    inside = fixed[0, 0] > 0.2
    assert u[0, 0][inside].mean() == pytest.approx(1.5, abs=0.3)
    assert u[0, 1:, inside].abs().mean() < 0.4


def test_two_files_are_registered_and_landmarks_follow(tmp_path: Path) -> None:
    folder = pair_folder(
        tmp_path
    )  # 2 mm voxels; the moving image lies one voxel further along RAS x, which is -2 mm in LPS
    voxels = np.argwhere(blobs() > 60)[::9]
    landmarks = voxels * 2.0 * [-1, -1, 1]
    found = load("register_two_images").register(
        folder / "fixed.nii.gz", folder / "moving.nii.gz", landmarks, folder / "out", iterations=60, threads=1
    )
    assert np.abs(found - landmarks - [-2, 0, 0]).mean() < 0.5
    assert {path.name for path in (folder / "out").iterdir()} == {
        "transform.nii.gz",
        "inverse.nii.gz",
        "disp.npz",
    }
