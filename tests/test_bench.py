"""The harness measures what it says; every case of the quick suite does the same work in every contender."""

from __future__ import annotations

import csv
import importlib
import math
import pkgutil
import sys
from types import SimpleNamespace

import pytest
import torch

from neuralreg.bench import harness
from neuralreg.bench import kernels as suite
from neuralreg.bench.harness import Case, Setup, measure, relative_error
from tests.processes import python
from tests.small import call

OPS = sorted(module.name for module in pkgutil.iter_modules(suite.__path__))
CPU = torch.device("cpu")


@pytest.mark.parametrize("op", OPS)
def test_contenders_agree_with_the_truth(op):
    module = importlib.import_module(f"{suite.__name__}.{op}")
    for case in module.cases(Setup(CPU, True, sizes=((20, 18, 22),))):
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


def test_other_work_on_the_machine_does_not_lift_the_floor(monkeypatch):
    monkeypatch.setattr(harness, "timed", lambda step, device: (4.0, 1.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert harness.bandwidth(CPU, volume=64) == 2 * 4 * 64 / 0.5
    monkeypatch.setattr(harness, "timed", lambda step, device: (0.25, 1.0))
    assert harness.product_rate(CPU, size=4) == 2 * 4**3 / 0.25


def test_a_graph_is_timed_where_one_can_be_captured_and_the_table_says_how(monkeypatch):
    def step() -> tuple[torch.Tensor, ...]:
        return (torch.ones(1),)

    def replay() -> tuple[torch.Tensor, ...]:
        return (torch.zeros(1),)

    def refuse(step, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(harness, "capture", lambda step, device: replay)
    assert harness.on_clock(step, gpu) == (replay, "graph")
    assert harness.on_clock(step, CPU) == (step, "wall")
    monkeypatch.setattr(harness, "capture", refuse)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert harness.on_clock(step, gpu) == (step, "events")
    # what is timed is the replay; what is weighed is the step itself
    ran = []
    monkeypatch.setattr(harness, "on_clock", lambda step, device: (lambda: ran.append("replay"), "graph"))
    monkeypatch.setattr(harness, "extra_bytes", lambda step, device: float(len(step())))
    one = harness.Measurement("neuralreg", 0.0)
    harness.in_turn([one], [step], CPU, rounds=3, budget=0.0)
    assert (ran, one.extra_bytes) == (["replay"] * 3, 1.0)
    assert one.row(1e-3)["clock"] == "graph"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_extra_memory_sees_what_a_step_holds():
    size = 1 << 26

    def step() -> tuple[torch.Tensor, ...]:
        return (torch.ones(size // 4).sum(),)

    found = harness.extra_bytes(step, CPU)
    assert math.isfinite(found)
    assert 0.9 * size < found < 1.5 * size


SMALL = ["--quick", "--size", "16", "--filter"]


def test_the_module_is_the_kernels_suite_and_writes_rows(tmp_path):
    out = tmp_path / "rows.csv"
    done = python("-m", "neuralreg.bench", *SMALL, "sampling", "--out", out)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(out.open()))
    assert {row["case"].split(",")[0] for row in rows} == {"warp", "grid_sample"}
    assert rows[0]["contender"] == "neuralreg"
    assert "torch grid_sample" in [row["contender"] for row in rows if row["case"].startswith("warp")]
    assert all(float(row["median_ms"]) > 0 and row["in_tolerance"] == "True" for row in rows)
    assert all(row["suite"] == "kernels" and row["dtype"] == "float32" for row in rows)
    assert "will run  sampling" in done.stdout
    assert "left out" in done.stdout


def test_a_folder_gets_a_table_a_suite_and_peers_can_stay_away(tmp_path):
    done = call(
        *("bench", "kernels", *SMALL, "ssim", "--peers", "none", "--dtype", "float64", "--threads", 1),
        *("--out", tmp_path / "new"),
    )
    assert done.exit_code == 0
    (table,) = (tmp_path / "new").iterdir()
    rows = list(csv.DictReader(table.open()))
    assert [row["contender"] for row in rows] == ["neuralreg", "neuralreg recompute"]
    assert all(float(row["error"]) < 1e-12 for row in rows), "in float64 nothing is left of the error"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["kernels", *SMALL, "nothing"], "nothing"),
        (["kernels", "--points", "3"], "--points"),
        (["kernels", "--size", "16x"], "--size"),
        (["kernels", "--dtype", "float8"], "float8"),
        (["kernels", "--device", "tpu"], "tpu"),
        (["kernels", *SMALL, "ssim", "--backend", "nowhere"], "nowhere"),
        (["kernels", "--out", "rows.txt"], "rows.txt"),
    ],
)
def test_what_a_suite_cannot_honour_is_one_line(words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if told == "nothing":  # one family is enough to go through
        monkeypatch.setattr("pkgutil.iter_modules", lambda path: [SimpleNamespace(name="ssim")])
    done = call("bench", *words)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_contender_that_fails_is_a_row_with_its_last_words():
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("first words\nlast words")

    x = torch.arange(1.0, 5.0)
    case = Case(
        "double", "", {"right": lambda: (2 * x,), "broken": broken}, lambda: (2 * x.double(),), 1e-3, 1.0
    )
    right, failed = measure(case, CPU, rounds=3, budget=0.0)
    assert failed.row(1e-3) == {"failed": "last words"}
    assert right.row(1e-3)["in_tolerance"] is True


def test_a_wrong_kernel_is_shown_out_of_tolerance_and_not_ranked(tmp_path, monkeypatch):
    from neuralreg import kernels

    right = kernels.ssim

    def wrong(*arguments, backend=None, **options):
        value = right(*arguments, backend=backend, **options)
        return value if backend == "reference" else value * 1.01

    monkeypatch.setattr(kernels, "ssim", wrong)
    out = tmp_path / "rows.csv"
    done = call("bench", "kernels", *SMALL, "ssim", "--out", out)
    assert done.exit_code == 0, (done.stderr, done.exception)
    ours, _, torchs = list(csv.DictReader(out.open()))
    assert ours["in_tolerance"] == "False"
    assert torchs["in_tolerance"] == "True"
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("│ neuralreg  ")]
    assert "out of tolerance" in line
    assert line.rstrip(" │").endswith("-"), "no ratio"


def test_what_was_measured_before_a_kill_is_on_disk(tmp_path, monkeypatch):
    from neuralreg.bench.suites import kernels as one
    from neuralreg.bench.suites import runner
    from neuralreg.bench.suites.plan import Item, Plan, Settings

    def rows():
        yield {"case": "first", "contender": "neuralreg", "median_ms": 1.0}
        raise KeyboardInterrupt

    monkeypatch.setattr(one, "plan", lambda settings: Plan([Item("one", "", rows)]))
    with pytest.raises(KeyboardInterrupt):
        runner.run(["kernels"], Settings(), tmp_path / "rows.csv", runner.Console())
    (row,) = csv.DictReader((tmp_path / "rows.csv").open())
    assert row["case"] == "first"
