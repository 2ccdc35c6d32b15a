"""Limits of a registration on the command line, NIR and NCF, 3-D and 2-D: time, plateau, memory, the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from neuralreg import memory
from tests.small import blobs, call, save

SHAPES = {"3-D": (18, 16, 14), "2-D": (30, 26)}
SMALL: dict[str, list[str]] = {
    "nir": ["--option", "levels=3", "--option", "hidden=16"],
    "ncf": ["--option", "hidden=16,16", "--option", "channels=4"],
}


@pytest.fixture(params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A pair and masks that leave a corner of each image out, where it is far too bright."""
    shape = SHAPES[request.param]
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    corner = tuple(slice(0, 5) for _ in shape)
    for name, shift in (("fixed", 0.0), ("moving", 1.0)):
        values, mask = blobs(shape, shift), np.ones(shape, np.uint8)
        values[corner], mask[corner] = 0 if shift else 500, 0
        save(tmp_path / f"{name}.nii.gz", values, affine)
        save(tmp_path / f"{name}-mask.nii.gz", mask, affine)
    return tmp_path


def register(method: str, folder: Path, name: str, *more: Any) -> tuple[Any, dict[str, Any]]:
    """The command's result, and the summary where it succeeded."""
    out = folder / f"{name}.json"
    result = call(
        *["register", "--method", method, "--threads", 1, *SMALL[method], "--summary", out],
        *["--fixed", folder / "fixed.nii.gz", "--moving", folder / "moving.nii.gz", *more],
    )
    return result, json.loads(out.read_text()) if result.exit_code == 0 else {}


@pytest.mark.parametrize("method", SMALL)
def test_masks_and_the_same_bytes_twice(method: str, folder: Path) -> None:
    masks = ["--fixed-mask", folder / "fixed-mask.nii.gz", "--moving-mask", folder / "moving-mask.nii.gz"]
    read = {}
    for name, flags in (("a", masks), ("b", masks), ("without", [])):
        file = folder / f"{name}.nii.gz"
        result, _ = register(
            method, folder, name, "--iterations", 6, "--deterministic", *flags, "--transform-out", file
        )
        assert result.exit_code == 0, result.output
        read[name] = np.asarray(nibabel.load(file).dataobj)
    assert read["a"].tobytes() == read["b"].tobytes()
    assert not np.array_equal(read["a"], read["without"]), "the masks were read"


@pytest.mark.parametrize("method", SMALL)
def test_the_clock_and_a_plateau_end_a_fit(method: str, folder: Path) -> None:
    result, summary = register(method, folder, "t", "--iterations", 10**6, "--time-budget", 0.3)
    assert result.exit_code == 0, result.output
    assert 0 < summary["iterations"] < 10**5
    never = ["--option", "lr=1e-12", "--option", "table_lr=1e-12" if method == "nir" else "smoother_lr=1e-12"]
    result, summary = register(method, folder, "p", "--iterations", 500, "--option", "patience=10", *never)
    assert result.exit_code == 0, result.output
    assert 20 <= summary["iterations"] <= 300, "nothing is learned: both scales end at once"


@pytest.mark.parametrize("method", SMALL)
def test_a_limit_on_memory(method: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "held_bytes", lambda: 100 * memory.MB)
    more = "--iterations", 2, "--option", "scales=1"
    _, plain = register(method, folder, "plain", *more)
    result, limited = register(method, folder, "limited", *more, "--max-memory", 126)
    assert result.exit_code == 0, result.output
    assert memory.FEWEST_POINTS <= limited["options"]["max_points"] < plain["options"]["max_points"]
    result, _ = register(method, folder, "none", *more, "--max-memory", 110)
    assert result.exit_code == 2
    assert "cannot be met: libraries and images hold 100 MB" in " ".join(result.stderr.split())
    assert not (folder / "none.json").exists()
