"""Adapters of other tools, trajectories, IDIR, and the figures of their rows."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from neuralreg.bench import figures, idir, peers, plain_nir, registration
from neuralreg.bench.pairs import PairSet
from neuralreg.bench.process import run
from neuralreg.bench.rows import latest, provenance, write_rows
from neuralreg.bench.suites import registration as suite
from neuralreg.bench.suites import training
from neuralreg.bench.suites.plan import Settings, plan_of
from neuralreg.bench.tools import Settings as ToolSettings
from neuralreg.bench.tools import Task, Tool, parse_tools
from neuralreg.errors import InputError
from neuralreg.pair import Pair
from tests.bench_pairs import shift_transform, small_pair
from tests.small import SHAPE, call


@pytest.fixture
def small(monkeypatch):
    only = PairSet(lambda: [("a", "b")], lambda name, fixed, moving: small_pair(name))
    monkeypatch.setattr("neuralreg.bench.pairs.SETS", {"small": only})


@pytest.fixture
def copying(tmp_path, monkeypatch):
    """A peer that copies a file as its result, in this Python."""
    file = tmp_path / "copying.py"
    lines = [
        "PACKAGE, MODULE = 'numpy', 'numpy'",
        f"SETTINGS = {{'default': {{'source': {str(tmp_path / 'warp.nii.gz')!r}}}, 'broken': {{}}}}",
        "LADDER = {name: [{'times': '1'}, {'times': '2'}] for name in SETTINGS}",
        "def register(fixed, moving, out, threads, *, source, times):",
        "    import shutil; shutil.copyfile(source, out)",
    ]
    file.write_text("\n".join(lines))
    monkeypatch.setattr(peers, "NAMES", ["copying"])
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    (tmp_path / "run.py").write_text((Path(peers.__file__).parent / "run.py").read_text())
    monkeypatch.setattr(peers, "SCRIPT", str(tmp_path / "run.py"))
    monkeypatch.setattr("neuralreg.bench.tools.DEFAULTS", {"copying": "default"})
    monkeypatch.delenv("NEURALREG_PEERS", raising=False)
    peers.adapter.cache_clear()
    peers.version.cache_clear()
    shift_transform(small_pair()).save(tmp_path / "warp.nii.gz")
    yield
    peers.adapter.cache_clear()
    peers.version.cache_clear()


@pytest.mark.parametrize("name", peers.NAMES)
def test_an_adapter_is_short_and_says_what_it_needs(name):
    file = Path(peers.__file__).with_name(f"{name}.py")
    assert len(file.read_text().splitlines()) < 40
    adapter = peers.adapter(name)
    assert adapter.PACKAGE
    assert adapter.LADDER.keys() == adapter.SETTINGS.keys()
    for setting, ladder in adapter.LADDER.items():
        assert ladder[-1].items() <= adapter.SETTINGS[setting].items(), "a trajectory ends with the whole run"
    assert parse_tools(name)[0].setting == next(iter(adapter.SETTINGS))
    assert "numpy" not in vars(adapter), "nothing is imported at the top"


def test_a_peer_is_run_scored_and_named_with_its_version(copying):
    tool = Tool("copying", "default", {"times": "1"})
    assert tool.missing() is None
    assert tool.version == np.__version__
    row = registration.one_row(small_pair(), tool, ToolSettings(threads=1))
    assert row["error"] == ""
    assert row["dice"] > 0.99
    assert row["area_mb_s"] > 0
    assert row["seed"] == "", "it takes none of ours"
    broken = registration.one_row(
        small_pair(), Tool("copying", "broken", {"times": "1"}), ToolSettings(threads=1)
    )
    assert "source" in broken["error"]


def test_a_peers_warp_comes_before_the_start(copying, tmp_path):
    pytest.importorskip("SimpleITK")
    pair = small_pair(initial=True)
    task = Task.write(pair, tmp_path)
    command = Tool("copying", "default", {"times": "1"}).command(task, ToolSettings(threads=1))
    assert command is not None
    files = [task.fixed, task.folder / "moving_aligned.nii.gz", task.result]
    assert command[4:7] == [str(file) for file in files]


def test_a_trajectory_is_planned_run_and_absent_peers_are_listed(copying, small, monkeypatch):
    monkeypatch.setattr(suite, "OURS", {})
    monkeypatch.setattr(suite, "BASELINES", {("greedy", "2x2x2"): [{"n": "1"}]})
    monkeypatch.setattr("neuralreg.bench.tools._greedy", lambda: None)
    plan = plan_of("registration", Settings(pair="small/a-b", threads=1, filter=":d"))
    assert [item.name for item in plan.items] == ["small/a-b, start", "small/a-b, copying:default"]
    start, *runs = [row for item in plan.items for row in item.run()]
    assert "cpu_s" not in start
    assert [row["contender"] for row in runs] == ["copying:default[times=1]", "copying:default[times=2]"]
    assert all(row["series"] == "copying:default" and row["dice"] > 0.99 > start["dice"] for row in runs)
    (left,) = [why for name, why in plan_of("registration", Settings(pair="small/a-b", filter=":")).left_out]
    assert left.startswith("absent: no greedy")
    monkeypatch.setenv("NEURALREG_PEERS", "no-such-python")
    with pytest.raises(InputError, match="NEURALREG_PEERS"):
        plan_of("registration", Settings(pair="small/a-b"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_area_is_memory_over_time_of_a_process_and_its_children():
    held = "import time; held = bytearray(200 << 20); time.sleep(0.6)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {held!r}])"
    for words in (held, child):
        cost = run([sys.executable, "-S", "-c", words])
        assert 0.4 * 200 * 0.6 < cost.area_mb_s < 1.6 * cost.peak_mb * cost.wall_seconds


# ------------------------------------------------------------------------------------------------------ IDIR


def quadratic(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x[:, 0] ** 2, 3 * x[:, 0] * x[:, 1], x[:, 2]], 1)


def test_idirs_regularisers_are_those_of_the_formulas():
    x = torch.rand(5, 3, dtype=torch.float64).requires_grad_()
    # d2u0/dx0^2 = 2; d2u1/dx0dx1 = 3 twice
    bending = idir.regularity(quadratic(x), x, idir.PRESETS["bending"])
    assert float(bending.detach()) == pytest.approx(4 + 18)
    determinant = (1 + 2 * x[:, 0]) * (1 + 3 * x[:, 0]) * 2
    found = idir.regularity(quadratic(x), x, idir.PRESETS["jacobian"])
    assert float(found.detach()) == pytest.approx(float((determinant - 1).abs().mean().detach()))


def test_idir_pulls_two_images_together():
    pair = small_pair()
    images = [image.data[None, None] / 100 for image in (pair.fixed, pair.moving)]
    options = idir.Options(hidden=(16, 16), points=300, iterations=25, lr=3e-3, weight=0.01)
    before = correlation_of(torch.zeros(3, *SHAPE), images)
    network = idir.fit(Pair(*images, torch.eye(3, 4)), options)
    after = correlation_of(plain_nir.dense_displacement(network, SHAPE), images)
    assert after > before + 0.02


def correlation_of(displacement: torch.Tensor, images: list[torch.Tensor]) -> float:
    from neuralreg import kernels

    return float(idir.correlation(images[0], kernels.warp(images[1], displacement[None])))


# ------------------------------------------------------------------------------------------------------ figures


def test_figures_are_drawn_from_rows_and_again_the_same(tmp_path):
    common = {**provenance(), "settings": "", "part": "", "in_tolerance": True}
    common |= {"backend": "auto", "device": "cpu", "dtype": "float32"}
    rows = [
        {**common, "suite": "kernels", "case": "op", "contender": name, "median_ms": time}
        for name, time in (("neuralreg", 1.0), ("torch", 8.0))
    ]
    rows += [
        {
            **common,
            "suite": "iteration",
            "case": "nir fast",
            "contender": "neuralreg",
            "part": part,
            "median_ms": 2.0,
        }
        for part in ("sampling", "field", "backward")
    ]
    rows += [
        {**common, "suite": "memory-scaling", "case": f"cube {n}", "contender": "neuralreg nir fast", "size": n,
         "points": points, "extra_mb": float(n), "median_ms": 1.0}
        for n, points in ((24, ""), (32, ""), (32, 1000))
    ]  # fmt: skip
    rows += [
        {**rows[-1], "case": "cube 40", "size": 40, "points": "", "failed": "no memory", "beyond_limit": True}
    ]
    rows += [
        {**common, "suite": "registration", "case": "a/b", "contender": f"nir:fast[{n}]", "series": "nir:fast",
         "dice": 0.5 + n / 100, "cpu_s": float(n)}
        for n in (1, 2)
    ]  # fmt: skip
    rows += [
        {**common, "suite": "training", "case": "shapes", "contender": "ofg:fast", "dice": 0.5, "cpu_s": 1.0}
    ]
    write_rows(tmp_path / "rows.csv", rows)
    words = ("bench", "report", "--results", tmp_path, "--out", tmp_path / "drawn")
    assert call(*words).exit_code == 0
    drawn = {file.name: file.read_bytes() for file in (tmp_path / "drawn").iterdir()}
    assert drawn.keys() == {f"{name}.png" for name in figures.FIGURES}
    assert call(*words).exit_code == 0
    assert drawn == {file.name: file.read_bytes() for file in (tmp_path / "drawn").iterdir()}
    write_rows(tmp_path / "rows.csv", [{**rows[0], "failed": "no memory"}])
    assert call(*words).exit_code == 2


# ------------------------------------------------------------------------------------------------------ training


def test_a_short_training_has_a_row_a_look(monkeypatch):
    monkeypatch.setattr(training, "SCORED", 2)
    monkeypatch.setattr(training, "pairs_of", lambda case, quick: small_shapes())
    settings = Settings(quick=True, seconds=1.0, threads=1, filter="ofg:fast[mode=unsupervised]")
    (item,) = plan_of("training", settings).items
    rows = list(item.run())
    assert rows[-1]["cpu_s"] >= 1.0
    assert len(latest([{"suite": "training"} | row for row in rows])) == len(rows), "all are drawn"
    assert all(0 <= row["dice"] <= 1 and row["pairs"] == 2 for row in rows)
    assert [row["cpu_s"] for row in rows] == sorted(row["cpu_s"] for row in rows)


def small_shapes():
    subjects = training.shapes(4, 16)
    return training.Pairs(subjects), training.all_pairs(subjects, [0, 1])
