"""Memory over sizes: measured in processes of their own, stopped cleanly at the limit, answered by a fit."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from neuralreg.bench import scaling
from neuralreg.bench.process import Cost
from neuralreg.bench.suites import memory_scaling as suite
from neuralreg.bench.suites.plan import Settings, plan_of
from neuralreg.errors import InputError


@pytest.fixture
def fake(monkeypatch):
    """Processes that take 100 MB and 10 bytes a voxel, and fail beyond their limit."""

    def taken(name, size, points, limit, threads):
        extra = 100 + 10e-6 * (points or size**3)
        if extra > limit:
            return {"failed": "more than the memory allowed: not enough memory"}
        return {"median_ms": 1.0, "p20_ms": 1.0, "p80_ms": 1.0, "peak_mb": extra + 50, "extra_mb": extra}

    monkeypatch.setattr(suite, "taken", taken)
    cost = Cost(0, 1.0, 1.0, 50 * 1e6 / (1 << 20), "")
    monkeypatch.setattr(suite, "bare", lambda: cost)


def test_a_work_stops_at_the_first_size_that_does_not_fit(fake):
    settings = Settings(size="100,200,400,600", limit="1GB", filter="nir fast", threads=1)
    first, points, *_ = plan_of("memory-scaling", settings).items
    rows = list(first.run())
    assert [row["size"] for row in rows] == [100, 200, 400, 600]
    assert [bool(row.get("failed")) for row in rows] == [False, False, False, True]
    assert [row["points"] for row in points.run()] == list(suite.POINTS)
    settings = Settings(size="600,700,800", limit="1GB", filter="nir fast", threads=1)
    rows = list(plan_of("memory-scaling", settings).items[0].run())
    assert [row["size"] for row in rows] == [600], "a larger one is not tried"


def test_the_budget_is_answered_by_a_line_through_the_rows(fake):
    plan = plan_of(
        "memory-scaling", Settings(size="100,200", budget="1.23GB", limit="9GB", filter="nir fast")
    )
    rows = [row for item in plan.items for row in item.run()]
    assert plan.closing is not None
    words = list(plan.closing(rows))
    # 1230 MB less 50 of imports less 100: 1080 MB of 10 bytes a voxel, 476 an axis
    assert words[0].endswith("cubes of 476 voxels an axis (extrapolated from 100 to 200)")
    assert scaling.fits([(100, 110.0), (200, 180.0)], 150.0) == (170, False)
    with pytest.raises(ValueError, match="two sizes"):
        scaling.fits([(100, 110.0)], 150.0)
    with pytest.raises(ValueError, match="does not grow"):
        scaling.fits([(100, 110.0), (200, 100.0)], 150.0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
@pytest.mark.thorough
def test_a_real_step_in_a_process_of_its_own_and_one_that_is_not_allowed_enough():
    row = scaling.taken("nir fast", 16, None, None, 1)
    assert row["rounds"] == scaling.STEPS - 1
    assert row["peak_mb"] > 100, "torch alone takes more"
    assert 0 < row["extra_mb"] < row["peak_mb"]
    assert scaling.taken("dense-field, refine", 128, None, 400.0, 1)["failed"].startswith(
        "more than the memory"
    )


def test_a_long_step_is_not_repeated(monkeypatch, capsys):
    monkeypatch.setattr(scaling, "make", lambda work, size, points: lambda: None)
    words = json.dumps(["nir fast", 16, None, None, torch.get_num_threads()])
    for patience, rounds in ((1e9, scaling.STEPS - 1), (-1.0, 1)):
        monkeypatch.setattr(scaling, "PATIENCE", patience)
        scaling.main(words)
        found = json.loads(capsys.readouterr().out)
        assert {name: len(times) for name, times in found.items()} == {
            "seconds": rounds,
            "cpu_seconds": rounds,
        }


def test_what_cannot_be_meant_is_refused():
    assert suite.megabytes("8GB", "--limit") == 8000
    for words in ({"limit": "much"}, {"budget": "0"}, {"size": "10x20x30"}, {"points": "many"}):
        with pytest.raises(InputError):
            plan_of("memory-scaling", Settings(**words))
