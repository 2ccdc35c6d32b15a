"""The harness measures what it says; every case of the quick suite does the same work in every contender."""

from __future__ import annotations

import csv
import importlib
import math
import pkgutil
import subprocess
import sys

import pytest
import torch

from neuralreg.bench import harness
from neuralreg.bench import kernels as suite
from neuralreg.bench.harness import Case, measure, relative_error

OPS = sorted(module.name for module in pkgutil.iter_modules(suite.__path__))
CPU = torch.device("cpu")


@pytest.mark.parametrize("op", OPS)
def test_contenders_agree_with_the_truth(op, monkeypatch):
    monkeypatch.setattr(harness, "sizes", lambda quick: iter([(20, 18, 22)]))
    module = importlib.import_module(f"{suite.__name__}.{op}")
    if hasattr(module, "sizes"):
        monkeypatch.setattr(module, "sizes", lambda quick: iter([(20, 18, 22)]))
    for case in module.cases(CPU, True):
        truth = case.truth()
        assert all(t.dtype == torch.float64 for t in truth)
        for name, step in case.contenders.items():
            if name != "MONAI":  # clamps where the others add eps
                assert relative_error(step(), truth) <= case.tolerance, f"{case.op} {case.work}: {name}"


def test_a_wrong_contender_is_measured_and_told():
    x = torch.arange(1.0, 5.0)
    case = Case(
        "double", "four numbers", {"right": lambda: (2 * x,), "wrong": lambda: (2.1 * x,)}, lambda: (2 * x.double(),),
        1e-3, 32.0,
    )  # fmt: skip
    right, wrong = measure(case, CPU, rounds=4, budget=0.0)
    assert right.error <= case.tolerance < wrong.error
    assert len(right.wall) == len(wrong.wall) == 3  # the budget is spent, but never before three rounds
    assert right.quantile(0.2) <= right.median <= right.quantile(0.8)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_extra_memory_sees_what_a_step_holds():
    size = 1 << 26

    def step() -> tuple[torch.Tensor, ...]:
        return (torch.ones(size // 4).sum(),)

    found = harness.extra_bytes(step, CPU)
    assert math.isfinite(found)
    assert 0.9 * size < found < 1.5 * size


def test_the_command_writes_rows(tmp_path):
    out = tmp_path / "rows.csv"
    command = [sys.executable, "-m", "neuralreg.bench", "--quick", "--filter", "sampling", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(out.open()))
    assert {row["op"] for row in rows} == {"warp", "grid_sample"}
    assert rows[0]["contender"] == "neuralreg"
    assert "torch grid_sample" in [row["contender"] for row in rows if row["op"] == "warp"]
    assert all(float(row["median_ms"]) > 0 and row["in_tolerance"] == "True" for row in rows)


def test_an_unknown_filter_is_told():
    command = [sys.executable, "-m", "neuralreg.bench", "--quick", "--filter", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "nothing" in done.stderr
