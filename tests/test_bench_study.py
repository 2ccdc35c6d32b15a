"""The studies: curves of a watched fit, tables, the figure."""

from __future__ import annotations

import csv

import pytest

from neuralreg.bench import curves, study
from neuralreg.bench.curves import Job
from neuralreg.bench.process import Cost
from neuralreg.errors import InputError
from tests.bench_pairs import small_pair

SMALL = ["hidden=8,8", "frequencies=8", "levels=2", "base=3", "finest=6", "stride=2", "lncc_window=3"]
PATCHES = ["patch_side=7", "patch_window=5"]


@pytest.fixture
def small(monkeypatch):
    """Small images in place of the real ones, and fits in this process, which saves the imports."""
    monkeypatch.setattr(study, "load_pair", small_pair)

    def here(job: Job) -> curves.Curve:
        return curves.Curve(curves.measure(job))

    monkeypatch.setattr(study, "watched", here)


def test_a_watched_fit_in_a_process_of_its_own():
    options = {"iterations": 5, "hidden": (8,), "levels": 2, "lncc_window": 3, "scales": (1,)}
    curve = curves.watched(Job(small_pair(), "nir", "fast", options, every=2))
    assert curve.error == ""
    assert [row["iteration"] for row in curve.rows] == [2, 4, 5]
    seconds = [row["seconds"] for row in curve.rows]
    assert 0 < seconds[0] < seconds[1] < seconds[2]
    assert curve.rows[-1]["peak_mb"] > 100, "torch alone takes more"
    assert 0 < curve.rows[-1]["fit_mb"] < curve.rows[-1]["peak_mb"] - 100
    assert all({"dice", "folds_percent_mask", "tre_mean_mm"} <= row.keys() for row in curve.rows)


def test_a_fit_that_fails_says_why(monkeypatch):
    job = Job(small_pair(), "nir", "fast", {"no_such_option": 1}, every=2)
    with pytest.raises(InputError, match="no_such_option"):
        curves.measure(job)
    failed = Cost(1, 0.1, 0.1, 1.0, "some words\nthe last words\n")
    monkeypatch.setattr(curves, "run", lambda command, environment: failed)
    assert curves.watched(job) == curves.Curve([], "the last words")


def test_looking_changes_nothing():
    options = {"iterations": 6, "hidden": (8,), "levels": 2, "lncc_window": 3, "scales": (1,)}
    often = curves.measure(Job(small_pair(), "nir", "fast", options, every=1))
    once = curves.measure(Job(small_pair(), "nir", "fast", options, every=6))
    assert len(often) == 6
    assert [often[-1][name] for name in ("dice", "tre_mean_mm")] == [
        once[-1][name] for name in ("dice", "tre_mean_mm")
    ]


def test_samplers(small, tmp_path):
    out, figure = tmp_path / "rows.csv", tmp_path / "curves.png"
    study.samplers(out, figure, "small/a-b", "paper-displacement", 6, 3, [*SMALL, *PATCHES], 0, 1)
    rows = list(csv.DictReader(out.open()))
    assert [row["sampler"] for row in rows] == ["downsize"] * 2 + ["mini-patch"] * 2 + ["hybrid"] * 2
    assert [row["iteration"] for row in rows] == ["3", "6"] * 3
    assert len({row["tre_mean_mm"] for row in rows if row["iteration"] == "6"}) == 3, (
        "three samplers, three fields"
    )
    assert figure.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="sampler"):
        study.samplers(out, None, "small/a-b", "fast", 2, 1, ["sampler=whole"], 0, 1)


def test_patches_have_as_many_points_as_the_lattice():
    pair = small_pair()  # 20 x 18 x 16
    assert study.patches_for(pair, "paper-displacement", {"stride": 2, "patch_side": 5}) == round(720 / 125)
    assert study.patches_for(pair, "paper-displacement", {}) == 1


def test_choices(small, tmp_path, capsys):
    out = tmp_path / "rows.csv"
    study.choices(
        out, "small/a-b", "paper-displacement", 4, "grid,fourier", "relu,sine", "0,0.2", SMALL, 0, 1
    )
    rows = list(csv.DictReader(out.open()))
    assert len({(row["encoding"], row["activation"], row["dropout"]) for row in rows}) == len(rows) == 8
    assert all(row["error"] == "" and float(row["dice"]) > 0 for row in rows)
    assert len({row["tre_mean_mm"] for row in rows}) == 8, "eight settings, eight fields"
    assert "fourier" in capsys.readouterr().out
