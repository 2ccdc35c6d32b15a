"""Comparing two tables: a deliberate slowdown, a wrong kernel, a lost row; and noise that is none of these."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from neuralreg.bench import compare, harness
from neuralreg.bench.compare import Finding
from neuralreg.bench.harness import Case, measure
from neuralreg.bench.rows import provenance, read_rows, write_rows
from neuralreg.errors import InputError
from tests.small import call

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when a step says so."""
    state = {"now": 0.0}
    monkeypatch.setattr(harness.time, "perf_counter", lambda: state["now"])
    monkeypatch.setattr(harness.time, "process_time", lambda: state["now"])
    monkeypatch.setattr(harness, "extra_bytes", lambda step, device: 5e6)

    def pass_time(seconds: float) -> None:
        state["now"] += seconds

    return pass_time


def table(path, clock, slow=1.0, seed=0, value=1.0, **changes):
    """A table of two contenders, of which ours takes 10 ms, a fifth more or less, times ``slow``."""
    noise = random.Random(seed)

    def step(milliseconds: float, value: float):
        def run():
            clock(1e-3 * milliseconds * noise.uniform(0.9, 1.1))
            return (torch.tensor([value]),)

        return run

    contenders = {"neuralreg": step(10 * slow, value), "torch": step(50, 1.0)}
    case = Case("op", "work", contenders, lambda: (torch.ones(1, dtype=torch.float64),), 1e-3, 0.0)
    common = {**provenance(), "suite": "kernels", "case": "op, work", "device": "cpu"}
    rows = [
        {**common, "contender": one.contender, **one.row(1e-3), **changes}
        for one in measure(case, CPU, rounds=15, budget=1e9)
    ]
    write_rows(path, rows)
    return path


def test_a_deliberate_slowdown_is_caught_and_noise_is_not(tmp_path, clock):
    before = table(tmp_path / "a.csv", clock)
    same = table(tmp_path / "b.csv", clock, seed=1)
    slow = table(tmp_path / "c.csv", clock, slow=1.3, seed=2)
    found, notes = compare.compare(before, same)
    assert found == []
    assert notes[-1] == "2 rows compared"
    assert "not neuralreg's took x 1.0" in notes[0] or "took x 0.9" in notes[0]
    (found,), _ = compare.compare(before, slow)
    assert (found.kind, found.name) == ("slower", "kernels, op, work, neuralreg")
    assert found.regression
    (found,), _ = compare.compare(slow, before)
    assert found.kind == "faster"
    assert not found.regression
    assert call("bench", "compare", before, same).exit_code == 0
    done = call("bench", "compare", before, slow)
    assert done.exit_code == 1
    assert "slower" in done.stdout
    assert "1 regressions" in done.stdout


def test_what_is_wrong_larger_failed_missing_or_new(tmp_path, clock):
    before = table(tmp_path / "a.csv", clock)
    wrong = table(tmp_path / "b.csv", clock, value=1.1, seed=1)
    assert [one.kind for one in compare.compare(before, wrong)[0]] == ["wrong"]
    large = table(tmp_path / "c.csv", clock, seed=1, extra_mb=20.0, threads=64)
    found, notes = compare.compare(before, large)
    assert [one.kind for one in found] == ["larger", "larger"]
    assert any(note.startswith("threads differs") for note in notes)
    failed = table(tmp_path / "d.csv", clock, seed=1, failed="no memory")
    assert [one.kind for one in compare.compare(before, failed)[0]] == ["failed", "failed"]
    rows = read_rows(before)
    write_rows(tmp_path / "e.csv", [rows[0], {**rows[1], "contender": "another", "in_tolerance": False}])
    found, _ = compare.compare(before, tmp_path / "e.csv")
    assert found == [
        Finding("missing", "kernels, op, work, torch"),
        Finding("new", "kernels, op, work, another", "out of tolerance"),
    ]


@pytest.mark.parametrize(("before", "after", "kind"), [(0.77, 0.76, "worse"), (0.77, 0.78, "better")])
def test_scores_of_registrations(tmp_path, before, after, kind):
    for name, dice in (("a", before), ("b", after)):
        row = {**provenance(), "suite": "registration", "case": "pair", "contender": "nir:fast", "dice": dice}
        write_rows(tmp_path / f"{name}.csv", [row])
    (found,), _ = compare.compare(tmp_path / "a.csv", tmp_path / "b.csv")
    assert found.kind == kind


def test_what_is_no_table_is_one_line(tmp_path, clock):
    good = table(tmp_path / "a.csv", clock)
    (tmp_path / "b.csv").write_text("x,y\n1,2\n")
    write_rows(tmp_path / "c.csv", [{**read_rows(good)[0], "case": "another"}])
    for bad in ("b.csv", "c.csv", "nowhere.csv"):
        with pytest.raises(InputError, match=bad.split(".")[0]):
            compare.compare(good, tmp_path / bad)


def test_older_tables_are_read_as_they_are(tmp_path):
    old = {**provenance(), "op": "ssim", "work": "64x64x64", "contender": "neuralreg", "error": 1e-7}
    write_rows(tmp_path / "a.csv", [old])
    tools = {**provenance(), "pair": "brain1mm/a-b", "tool": "greedy", "dice": 0.7, "error": "exit code 1"}
    write_rows(tmp_path / "b.csv", [tools])
    kernel, tool = itertools.chain(read_rows(tmp_path / "a.csv"), read_rows(tmp_path / "b.csv"))
    assert (kernel["suite"], kernel["case"], kernel["failed"]) == ("kernels", "ssim, 64x64x64", "")
    assert (tool["suite"], tool["case"], tool["contender"]) == ("registration", "brain1mm/a-b", "greedy")
    assert (tool["error"], tool["failed"]) == ("", "exit code 1")
