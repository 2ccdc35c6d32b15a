"""The studies of OFG, on subjects of a few hundred pixels and trainings of a second."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from neuralreg.bench import ofg as bench
from neuralreg.bench import ofg_cost, ofg_runs
from neuralreg.errors import InputError
from neuralreg.kernels import refine
from neuralreg.training.trainee import load_trainee
from tests.bench_pairs import small_pair
from tests.small import blobs

SMALL = [
    word
    for option in ("encoder=4,4", "decoder=4,4,4", "window=5", "lr=0.01")
    for word in ("--option", option)
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six slices of moving blobs with a label each."""
    images = np.stack([blobs((20, 18, 3), shift=0.7 * k)[..., 1] for k in range(6)])
    np.savez(tmp_path / "slices.npz", images=images, labels=(images > 40).astype(np.uint8))
    return tmp_path / "slices.npz"


def call(*arguments: Any) -> str:
    found = CliRunner().invoke(bench.app, [str(word) for word in arguments], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.output


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_modes_train_score_and_go_on(data: Path, tmp_path: Path) -> None:
    out, runs = tmp_path / "modes.csv", tmp_path / "runs"
    words = ["modes", "--out", out, "--runs", runs, "--data", data, "--test", 3, "--cpu-seconds", 0.4]
    words += [*SMALL, "--looks", 2, "--own", "ofg:steps=2"]
    call(*words, "--mode", "unsupervised,ofg")
    rows = read(out)
    assert [(row["mode"], row["look"], row["share"]) for row in rows] == [
        (mode, look, share)
        for mode in ("unsupervised", "ofg")
        for look, share in (("curve", "0.5"), ("curve", "1"), ("test", "1"))
    ]
    assert [row["pairs"] for row in rows[:3]] == ["3", "3", "6"]
    assert all(0 < float(row["dice"]) <= 1 for row in rows)
    assert all(row["steps"] and 0.4 <= float(row["cpu_seconds"]) < 2 for row in rows if row["look"] == "test")
    assert "steps=2" in rows[-1]["options"]
    assert "steps=2" not in rows[0]["options"]
    before = out.read_text()
    call(*words, "--mode", "unsupervised,ofg")  # nothing is left to do
    assert out.read_text() == before
    call(*words, "--mode", "optimised-self-training", "--figure", tmp_path / "curves.png")
    last = read(out)[-1]
    assert last["mode"] == "optimised-self-training"
    assert int(last["teacher_steps"]) > 0
    assert float(last["cpu_seconds"]) >= 0.4  # both halves
    assert out.read_text().startswith(before)
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_weights_at_half_time_are_earlier_ones(data: Path, tmp_path: Path) -> None:
    split = ofg_runs.split(data, 3)
    options = {"encoder": "4,4", "decoder": "4,4,4", "window": 5, "lr": 0.01, "mode": "unsupervised"}
    files, took = ofg_runs.trained(ofg_runs.Run("", options, 0, 0.4, looks=2), split, tmp_path / "run")
    half, end = (load_trainee(files[share]).module.flow.weight for share in (0.5, 1.0))
    assert not torch.equal(half, end)
    again, same = ofg_runs.trained(ofg_runs.Run("", options, 0, 0.4, looks=2), split, tmp_path / "run")
    assert (again, same) == (files, took)


def test_steps(data: Path, tmp_path: Path) -> None:
    words = ["--data", data, "--test", 2, "--cpu-seconds", 0.2, *SMALL]
    call("steps", "--out", tmp_path / "steps.csv", "--runs", tmp_path / "runs", "--counts", "1,3", *words)
    found = [(row["setting"], row["look"]) for row in read(tmp_path / "steps.csv")]
    assert found == [(f"steps={n}", look) for n in (1, 3) for look in ("curve", "test")]


def test_a_run_that_fails_leaves_a_row(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "modes.csv"
    words = ["--out", out, "--runs", tmp_path / "runs", "--data", data, "--test", 2, "--mode", "ofg"]
    call("modes", *words, "--network", "nowhere_at_all:Net")
    assert "nowhere_at_all" in read(out)[0]["error"]


def test_optimiser_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = small_pair()
    monkeypatch.setattr(ofg_cost, "load_pair", lambda name: pair)
    out = tmp_path / "alone.csv"
    call("optimiser", "--out", out, "--counts", "0,3,20", "--rounds", 1, "--threads", 1)
    rows = read(out)
    assert [(row["start"], row["steps"]) for row in rows[:-2]] == [
        (start, count) for start in ("zero", "random", "parameters") for count in ("0", "3", "20")
    ]
    assert float(rows[2]["dice"]) > float(rows[0]["dice"])
    assert float(rows[3]["folds_percent"]) > 1  # a random field folds
    assert [row["contender"] for row in rows[-2:]] == ["neuralreg", "torch"]
    assert float(rows[-2]["over_ours"]) == 1
    prepared, *_ = ofg_cost.prepare(pair.fixed, pair.moving, pair.initial, pair.window)
    field = refine(ofg_cost.zero_start(prepared.fixed, prepared.moving), prepared.fixed, prepared.moving, 20)
    assert abs(ofg_cost.judge(pair, field[0])["dice"] - float(rows[2]["dice"])) < 1e-5


def test_cost(tmp_path: Path) -> None:
    out = tmp_path / "cost.csv"
    call("cost", "--out", out, "--size", 16, "--rounds", 1, "--steps", 2, "--threads", 1)
    rows = read(out)
    assert [row["contender"] for row in rows] == ["without", "unsupervised", "guided", "guided by torch"]
    assert float(rows[0]["over_without"]) == float(rows[1]["over_unsupervised"]) == 1


def test_bad_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected MODE:NAME=VALUE"):
        bench.parse_own(["steps=3"])
    with pytest.raises(InputError, match="none of zero, random, parameters"):
        call("optimiser", "--out", tmp_path / "a.csv", "--starts", "zero,one")
