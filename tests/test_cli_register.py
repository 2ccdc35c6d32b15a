"""`neuralreg register`: its files, its words, and how light the command is before it works."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from neuralreg.cli.flags import OWN_FLAGS, TOGETHER_FLAGS, parse_options, parse_pair
from neuralreg.cli.terminal import print_table, progress_bar
from neuralreg.errors import InputError
from tests.processes import python
from tests.small import FAST, SHAPE, blobs, call, save

FLAT_KEYS = {
    "seed": int,
    "parameters": int,
    "iterations": int,
    "wall_seconds": float,
    "cpu_seconds": float,
    "peak_memory_mb": float,
    "folds_percent": float,
    "sdlogj": float,
    "inverse_consistency_mm": float,
}


@pytest.fixture
def pair(tmp_path: Path) -> list[Any]:
    fixed = save(tmp_path / "fixed.nii.gz", blobs())
    moving = save(tmp_path / "moving.nii.gz", blobs((22, 18, 16), shift=1.0))
    return ["register", "--fixed", fixed, "--moving", moving, *FAST]


def test_no_inverse_is_found_that_nobody_asks_for(pair: list[Any], tmp_path: Path) -> None:
    result = call(*pair, "--summary", tmp_path / "s.json")
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["inverse_consistency_mm"] is None
    assert "inverse consistency" not in result.stdout


def test_writes_every_output(pair: list[Any], tmp_path: Path) -> None:
    names = {
        "--transform-out": "t.nii.gz",
        "--inverse-out": "i.nii.gz",
        "--warped-out": "w.nii.gz",
        "--field-out": "f.pt",
        "--figure-out": "q.png",
        "--summary": "s.json",
    }
    out = tmp_path / "out"
    out.mkdir()
    flags = [part for flag, name in names.items() for part in (flag, out / name)]
    result = call(*pair, "--seed", "7", "--option", "stride=2", *flags)
    assert result.exit_code == 0, result.output
    assert result.stderr == "", "no progress bar where stderr is no terminal"
    assert {path.name for path in out.iterdir()} == set(names.values())
    for name in names.values():
        assert str(out / name) in result.stdout
    for word in ("similarity", "folds", "inverse consistency", "time"):
        assert word in result.stdout

    transform, inverse = nibabel.load(out / "t.nii.gz"), nibabel.load(out / "i.nii.gz")
    assert transform.shape == (*SHAPE, 1, 3)
    assert inverse.shape == (22, 18, 16, 1, 3)
    assert int(transform.header["intent_code"]) == 1007
    assert nibabel.load(out / "w.nii.gz").shape == SHAPE
    assert (out / "q.png").read_bytes()[:4] == b"\x89PNG"
    summary = json.loads((out / "s.json").read_text())
    for key, kind in FLAT_KEYS.items():
        assert isinstance(summary[key], (int, float) if kind is float else kind), key
    assert summary["seed"] == 7
    assert summary["iterations"] == 3
    assert summary["options"]["stride"] == 2


def test_apply_repeats_the_warp(pair: list[Any], tmp_path: Path) -> None:
    files = {
        flag: tmp_path / name
        for flag, name in (("--transform-out", "t.nii.gz"), ("--warped-out", "w.nii.gz"))
    }
    call(*pair, "-q", "--center", *[part for item in files.items() for part in item])
    images = ["--moving", tmp_path / "moving.nii.gz", "--reference", tmp_path / "fixed.nii.gz"]
    call("apply", "--transform", tmp_path / "t.nii.gz", *images, "--out", tmp_path / "again.nii.gz")
    warped, again = (nibabel.load(tmp_path / f"{name}.nii.gz").get_fdata() for name in ("w", "again"))
    assert np.abs(warped - again).mean() < 1e-3 * np.ptp(warped)


def test_quiet_says_nothing(pair: list[Any], tmp_path: Path) -> None:
    result = call(*pair, "--quiet", "--warped-out", tmp_path / "w.nii.gz")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert (tmp_path / "w.nii.gz").exists()


def test_same_seed_same_result(pair: list[Any], tmp_path: Path) -> None:
    fields = []
    for seed, name in ((1, "a"), (1, "b"), (2, "c")):
        call(*pair, "-q", "--seed", seed, "--transform-out", tmp_path / f"{name}.nii.gz")
        fields.append(nibabel.load(tmp_path / f"{name}.nii.gz").get_fdata())
    assert np.array_equal(fields[0], fields[1])
    assert not np.array_equal(fields[0], fields[2])


def test_masks_window_and_start(pair: list[Any], tmp_path: Path) -> None:
    save(tmp_path / "fm.nii.gz", np.ones(SHAPE, np.uint8))
    save(tmp_path / "mm.nii.gz", np.ones((22, 18, 16), np.uint8))
    (tmp_path / "a.txt").write_text("1 0 0 -2\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    masks = ["--fixed-mask", tmp_path / "fm.nii.gz", "--moving-mask", tmp_path / "mm.nii.gz"]
    start = ["--initial-transform", tmp_path / "a.txt", "--window", "-10,90"]
    result = call(*pair, "-q", *masks, *start, "--summary", tmp_path / "s.json")
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["intensity"]["fixed"]["low"] == -10
    assert summary["intensity"]["moving"]["high"] == 90
    assert summary["initial_matrix_ras"][0][3] == 2, "the file is LPS, the summary RAS"


def test_center_and_quantiles(pair: list[Any], tmp_path: Path) -> None:
    result = call(*pair, "-q", "--center", "--quantiles", "0.05,0.95", "--summary", tmp_path / "s.json")
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["intensity"]["fixed"]["quantiles"] == [0.05, 0.95]
    assert summary["initial_matrix_ras"] != np.eye(4).tolist()


def test_nan_to_mends(pair: list[Any], tmp_path: Path) -> None:
    values = blobs()
    values[0, 0, 0], values[1, 1, 1] = np.nan, np.inf
    save(tmp_path / "fixed.nii.gz", values)
    result = call(*pair, "-q", "--nan-to", "-1", "--warped-out", tmp_path / "w.nii.gz")
    assert result.exit_code == 0, result.output
    assert np.isfinite(nibabel.load(tmp_path / "w.nii.gz").get_fdata()).all()


def test_planar_pair(tmp_path: Path) -> None:
    for name, shift in (("f", 0.0), ("m", 1.5)):
        save(tmp_path / f"{name}.nii.gz", blobs((40, 36), shift))
    images = ["--fixed", tmp_path / "f.nii.gz", "--moving", tmp_path / "m.nii.gz"]
    out = ["--figure-out", tmp_path / "q.png", "--transform-out", tmp_path / "t.nii.gz"]
    result = call("register", *images, *FAST, "-q", *out)
    assert result.exit_code == 0, result.output
    assert nibabel.load(tmp_path / "t.nii.gz").shape == (40, 36, 1, 1, 2)


# --------------------------------------------------------------------------------------------- parsing


def test_parse_options() -> None:
    given = [
        "lr=1e-3",
        "stride=2",
        "hidden=64,64",
        "start-at-zero=false",
        "encoding=grid",
        "x=none",
        "w=(3, 5)",
    ]
    assert parse_options(given) == {
        "lr": 1e-3,
        "stride": 2,
        "hidden": (64, 64),
        "start_at_zero": False,
        "encoding": "grid",
        "x": None,
        "w": (3, 5),
    }
    assert parse_options(["name=a=b"]) == {"name": "a=b"}


def test_parse_pair() -> None:
    assert parse_pair("--window", "-1000,400") == (-1000.0, 400.0)
    assert parse_pair("--window", None) is None
    for text in ("1", "1,2,3", "2,1", "nan,1", ""):
        with pytest.raises(InputError, match="--window"):
            parse_pair("--window", text)


def test_own_flags_are_those_of_the_function() -> None:
    import inspect

    import neuralreg

    # the inverse is found where --inverse-out asks for it
    names = set(inspect.signature(neuralreg.register).parameters) - {"progress", "options", "inverse"}
    assert names == OWN_FLAGS - TOGETHER_FLAGS
    import neuralreg.cli.register as module

    assert names <= set(inspect.signature(module.command).parameters)


# -------------------------------------------------------------------------------------------- terminal


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar() as progress:
        assert progress is not None
        for iteration in range(1, 11):
            progress(iteration, 10, float("nan"), "first")
        for iteration in range(1, 6):
            progress(iteration, 8, -0.125, "second")
    for word in ("second", "loss -0.1250", "5/8"):
        assert word in screen.getvalue()


def test_no_progress_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with progress_bar() as progress:
        assert progress is None
    monkeypatch.setattr(sys, "stderr", _Terminal())
    with progress_bar(quiet=True) as progress:
        assert progress is None


def test_table_keeps_long_paths_and_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/a/[red]folder/" + 40 * "long/" + "t.nii.gz"
    print_table("title", [("transform", path)])
    assert path in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------- start

HEAVY = ("torch", "numpy", "nibabel", "matplotlib", "SimpleITK", "scipy", "nilearn")


@pytest.mark.parametrize(
    "arguments", [["--help"], [], ["register", "--help"], ["demo", "--help"], ["register"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["neuralreg", *{arguments!r}]
from neuralreg.cli import main
try:
    main()
finally:
    print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = python("-c", code)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.returncode == (2 if arguments == ["register"] else 0)
    if "register" not in arguments:
        assert "neuralreg" in done.stdout


FLAGS = (
    "--warped-out",
    "--transform-out",
    "--inverse-out",
    "--field-out",
    "--figure-out",
    "--summary",
    "--quiet",
)


def test_help_names_every_flag_of_the_issue() -> None:
    text = call("register", "--help").stdout
    for flag in {*FLAGS, *(f"--{name.replace('_', '-')}" for name in OWN_FLAGS)}:
        assert flag in text, flag


def test_version() -> None:
    result = call("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("neuralreg ")
