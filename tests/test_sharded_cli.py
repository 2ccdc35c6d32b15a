"""`neuralreg register` in 2 processes: its files, who speaks, and what happens when one of them fails."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from neuralreg.errors import InputError
from tests.processes import Job, command, ranks, side_by_side
from tests.sharded_cases import make_pairs
from tests.small import call, save

SMALL = [
    *("--iterations", "4", "--threads", "1"),
    *(word for option in ("levels=3", "base=3", "finest=8", "hidden=16,16") for word in ("--option", option)),
]
OUTPUTS = {
    "--transform-out": "t.nii.gz",
    "--inverse-out": "i.nii",
    "--warped-out": "w.nii.gz",
    "--field-out": "f.pt",
    "--summary": "s.json",
}
FAULTS = ("nothing", "spoilt", "alone", "killed")


def failing(fault: str, *words: str) -> None:
    """A rank's command; in the 3rd iteration rank 1 fails alone, or is killed, where that is asked."""
    from neuralreg.cli import together
    from neuralreg.sharded.ranks import Together

    together.WORD_SECONDS = 3.0
    right, calls = Together.sum_gradients, []

    def spoiled(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 3 and fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if len(calls) == 3:
            raise InputError("the planted fault")
        right(*arguments)

    if os.environ["RANK"] == "1" and fault in ("alone", "killed"):
        Together.sum_gradients = spoiled  # type: ignore[method-assign]
    command(*words)


@dataclass
class Launched:
    folder: Path
    codes: dict[str, list[int]]

    def told(self, fault: str, rank: int, stream: int) -> str:
        return (self.folder / f"{fault}{rank}{stream}").read_text()


def inputs(folder: Path, pair: str = "oblique") -> list[str]:
    return [
        "--fixed",
        str(folder / f"{pair}-fixed.nii.gz"),
        "--moving",
        str(folder / f"{pair}-moving.nii.gz"),
    ]


def outputs(folder: Path) -> list[str]:
    folder.mkdir()
    return [word for flag, name in OUTPUTS.items() for word in (flag, str(folder / name))]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    folder = tmp_path_factory.mktemp("sharded-cli")
    make_pairs(folder)
    values = np.asarray(nibabel.load(folder / "oblique-moving.nii.gz").dataobj).copy()
    values[3, 4, -1] = np.nan  # which one rank alone reads first
    save(folder / "spoilt-moving.nii.gz", values)
    (folder / "spoilt-fixed.nii.gz").symlink_to(folder / "oblique-fixed.nii.gz")
    jobs = []
    for fault in FAULTS:
        pair = inputs(folder, "spoilt" if fault == "spoilt" else "oblique")
        words = ["register", *pair, *SMALL, *outputs(folder / f"out-{fault}")]
        jobs += [
            Job(failing, (fault, *words), folder / f"{fault}{rank}", environment)
            for rank, environment in enumerate(ranks(2))
        ]
    codes = side_by_side(jobs)
    return Launched(folder, {fault: codes[2 * i : 2 * i + 2] for i, fault in enumerate(FAULTS)})


def test_files_are_those_of_one_process(launched: Launched, tmp_path: Path) -> None:
    assert launched.codes["nothing"] == [0, 0], launched.told("nothing", 0, 2) + launched.told(
        "nothing", 1, 2
    )
    assert call("register", *inputs(launched.folder), *SMALL, *outputs(tmp_path / "out")).exit_code == 0
    two, one = launched.folder / "out-nothing", tmp_path / "out"
    assert {path.name for path in two.iterdir()} == set(OUTPUTS.values())
    # Transforms in millimetres: rounding, and for the inverse what its iteration leaves, a fiftieth of a voxel.
    for name, near in (("t.nii.gz", 0.002), ("i.nii", 0.08), ("w.nii.gz", 0.002)):
        several, alone = (nibabel.load(folder / name) for folder in (two, one))
        assert several.header == alone.header
        values = alone.get_fdata()
        assert np.abs(values).max() > 0.25
        np.testing.assert_allclose(several.get_fdata(), values, atol=near, err_msg=name)
    several, alone = (json.loads((folder / "s.json").read_text()) for folder in (two, one))
    assert (several["world_size"], len(several["ranks"])) == (2, 2)
    assert all(0 < rank["peak_memory_mb"] <= several["peak_memory_mb"] for rank in several["ranks"])
    for key in ("loss", "folds_percent", "sdlogj"):
        assert several[key] == pytest.approx(alone[key], rel=1e-3, abs=1e-6)
    for key, value in alone["inverse_consistency"].items():
        assert several["inverse_consistency"][key] == pytest.approx(value, rel=0.2, abs=0.01)


def test_rank_0_alone_speaks(launched: Launched) -> None:
    assert "2, memory is of the largest" in launched.told("nothing", 0, 1)
    assert [launched.told("nothing", *which) for which in ((0, 2), (1, 1), (1, 2))] == ["", "", ""]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("spoilt", "holds 1 voxels that are NaN or infinite"),
        ("alone", "process 1: the planted fault"),
        ("killed", "another process has ended without a word"),
    ],
)
def test_one_failure_ends_all_with_one_line(launched: Launched, fault: str, words: str) -> None:
    assert launched.codes[fault] == [2, -signal.SIGKILL if fault == "killed" else 2]
    lines = launched.told(fault, 0, 2).splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert launched.told(fault, 1, 2) == ""
    assert list((launched.folder / f"out-{fault}").iterdir()) == []


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--center"], "do not serve --center"),
        (["--start-similarity", "lncc"], "do not serve --start-similarity"),
        (["--time-budget", "3"], "do not serve --time-budget"),
        (["--preset", "fast-diffeomorphic"], "do not serve output velocity"),
        (["--preset", "paper-hybrid"], "do not serve hybrid"),
        (["--option", "sampler=patches"], "do not serve sampler patches"),
        (["--option", "jacobian=analytic"], "do not serve jacobian analytic"),
        (["--method", "ncf"], "serve method nir, not ncf"),
        (["--margin", "-1"], "margin must be at least 0"),
        (["--quantiles", "0.5,1.5"], "quantiles 0.5,1.5"),
    ],
)
def test_what_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], words: str
) -> None:
    make_pairs(tmp_path)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    result = call("register", *inputs(tmp_path), *SMALL, *outputs(tmp_path / "out"), *more)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.stderr
    assert words in result.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_zero_is_a_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of --nan-to and of --margin, which are nothing by default."""
    make_pairs(tmp_path)
    values = np.asarray(nibabel.load(tmp_path / "oblique-moving.nii.gz").dataobj).copy()
    values[3, 4, -1] = np.nan
    save(tmp_path / "oblique-moving.nii.gz", values)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    more = ["--nan-to", "0", "--margin", "0"]
    result = call("register", *inputs(tmp_path), *SMALL, *outputs(tmp_path / "out"), *more)
    assert result.exit_code == 0, result.stderr
    assert json.loads((tmp_path / "out/s.json").read_text())["margin_mm"] == 0.0


def test_a_margin_belongs_to_torchrun(tmp_path: Path) -> None:
    make_pairs(tmp_path)
    result = call("register", *inputs(tmp_path), *outputs(tmp_path / "out"), "--margin", "3")
    assert (result.exit_code, "start with torchrun" in result.stderr) == (2, True)
