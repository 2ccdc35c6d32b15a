"""Memory over sizes: measured in processes of their own, stopped cleanly at the limit, answered by a fit."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch

from neuralreg.bench import budget, scaling
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
            return {"failed": "more than the memory allowed: not enough memory", "beyond_limit": True}
        return {"median_ms": 1.0, "p20_ms": 1.0, "p80_ms": 1.0, "peak_mb": extra + 50, "extra_mb": extra}

    for module in (suite, budget):
        monkeypatch.setattr(module, "taken", taken)
    cost = Cost(0, 1.0, 1.0, 50 * 1e6 / (1 << 20), "")
    monkeypatch.setattr(budget, "bare", lambda: cost)


def answers(settings: Settings) -> list[str]:
    """What is said behind the last row."""
    plan = plan_of("memory-scaling", settings)
    assert plan.closing is not None
    return list(plan.closing([row for item in plan.items for row in item.run()]))


def test_a_work_stops_at_the_first_size_that_does_not_fit(fake):
    settings = Settings(size="100,200,400,600", limit="1GB", filter="nir fast", threads=1)
    items = {item.name: item for item in plan_of("memory-scaling", settings).items}
    first, points = items["nir fast"], items["nir fast, points"]
    rows = list(first.run())
    assert [row["size"] for row in rows] == [100, 200, 400, 600]
    assert [bool(row.get("failed")) for row in rows] == [False, False, False, True]
    assert [row["points"] for row in points.run()] == list(suite.POINTS)
    settings = Settings(size="600,700,800", limit="1GB", filter="nir fast", threads=1)
    rows = list(plan_of("memory-scaling", settings).items[0].run())
    assert [row["size"] for row in rows] == [600], "a larger one is not tried"


def test_the_budget_is_answered_by_a_line_through_the_rows(fake):
    words = Settings(size="100,200", budget="1.23GB", limit="9GB", filter="nir fast")
    how, nir, register = answers(words)
    assert "by a line" in how
    # 1230 MB less 50 of imports less 100: 1080 MB of 10 bytes a voxel, 476 an axis
    assert nir.endswith("nir fast: cubes of 476 voxels an axis (extrapolated from 100 to 200)")
    assert "nir fast, register: cubes of 476" in register
    interpolated = answers(replace(words, size="100,200,450,500"))[1]
    assert interpolated.endswith("cubes of 476 voxels an axis (extrapolated from 100 to 450)")
    assert "two sizes at least" in answers(replace(words, size="100"))[1]
    with pytest.raises(ValueError, match="does not grow"):
        budget.fits([(100, 110.0), (200, 100.0)], 150.0)
    assert budget.fits([(100, 110.0), (200, 180.0)], 150.0) == 170


def test_an_answer_is_below_what_was_seen_not_to_fit(monkeypatch, fake):
    right = budget.fits
    monkeypatch.setattr(budget, "fits", lambda *words: right(*words) + 100)
    words = answers(Settings(size="100,200,480", budget="1.23GB", limit="1GB", filter="nir fast"))[1]
    assert "cubes of 479 voxels an axis" in words
    assert "480 did not fit" in words


def test_bisection_tries_until_two_neighbours_differ(fake):
    (item, *_) = (
        plan := plan_of("memory-scaling", Settings(budget="1.23GB", bisect=True, filter="nir fast"))
    ).items
    rows = list(item.run())
    # 1230 MB less 150: 476 an axis, between 464 and 480
    assert [row["size"] for row in rows] == [64, 128, 256, 512, 384, 448, 480, 464]
    assert all(row["limit_mb"] == 1230 for row in rows)
    assert plan.closing is not None
    assert list(plan.closing(rows))[1].endswith("nir fast: cubes of 464 voxels an axis ran, 480 did not")
    none = plan_of("memory-scaling", Settings(budget="120MB", bisect=True, filter="nir fast"))
    assert none.closing is not None
    words = list(none.closing(list(none.items[0].run())))
    assert words[1].endswith("no cube ran, 16 did not")


def test_a_fault_is_no_answer(monkeypatch, fake):
    monkeypatch.setattr(budget, "taken", lambda *words: {"failed": "no such preset"})
    words = answers(Settings(budget="1GB", bisect=True, filter="nir fast"))
    assert words[1].endswith("no answer, a cube of 64 failed: no such preset")


@pytest.mark.parametrize("work", [name for name in scaling.WORKS if name.endswith("register")])
def test_whole_registrations_of_every_method(work):
    scaling.make(work, 24, None)()


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
    assert budget.megabytes("8GB", "--limit") == 8000
    for words in (
        *({"limit": "much"}, {"budget": "0"}, {"size": "10x20x30"}, {"points": "many"}, {"bisect": True}),
        *({"bisect": True, "budget": "1GB", "size": "64"}, {"bisect": True, "budget": "9000TB"}),
    ):
        with pytest.raises(InputError):
            plan_of("memory-scaling", Settings(**words))
