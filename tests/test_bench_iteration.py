"""The iteration suite: the step of every method is the method's own, its parts sum up, and a wrong one is told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from neuralreg.bench import floors, parts
from neuralreg.bench.harness import relative_error
from neuralreg.bench.parts import PARTS, parts_of
from neuralreg.bench.steps import Step, Work
from neuralreg.bench.suites import iteration
from neuralreg.bench.suites.plan import Settings, plan_of
from neuralreg.errors import InputError
from neuralreg.methods import nir

CPU = torch.device("cpu")
SHAPE = (16, 16, 16)


def rows(name: str, settings: Settings):
    (item,) = [item for item in plan_of("iteration", settings).items if item.name.startswith(name)]
    return list(item.run())


@pytest.mark.parametrize(
    ("name", "its_parts"),
    [
        ("nir fast,", {"sampling", "field", "warp", "loss", "regulariser", "backward", "optimiser"}),
        ("ncf fast,", {"sampling", "field", "warp", "loss", "regulariser", "backward", "optimiser"}),
        ("nephi fast, train", {"sampling", "field", "warp", "loss", "regulariser", "backward", "optimiser"}),
        ("nephi fast, refine", {"sampling", "field", "warp", "loss", "regulariser", "backward", "optimiser"}),
        ("ofg fast", {"field", "guidance", "regulariser", "backward", "optimiser"}),
    ],
)
def test_a_step_agrees_with_float64_and_has_its_parts(name, its_parts):
    peers = "plain torch" if name == "nir fast," else "none"
    found = rows(name, Settings(quick=True, size="16", peers=peers, seconds=0))
    whole = [row for row in found if not row.get("part")]
    assert [row["contender"] for row in whole] == ["neuralreg", *(["plain torch"] if peers != "none" else [])]
    assert all(row["error"] < 1e-3 and row["in_tolerance"] for row in whole)
    assert len({row["floor_ms"] for row in whole}) == 1, "they do the same work"
    assert whole[0]["floor_ms"] > 0
    mine = {row["part"]: row for row in found if row.get("part") and row["contender"] == "neuralreg"}
    assert its_parts | {"rest"} == mine.keys()
    assert list(mine) == [part for part in PARTS if part in mine]


def test_the_plain_nir_takes_the_same_step():
    work = Work("nir", "paper-displacement")
    ours, plain = work.make((32,) * 3, CPU), iteration.plain_step((32,) * 3, CPU)
    first = [iteration._seeded(step.loss_and_gradients)() for step in (ours, plain)]
    assert relative_error(first[1], tuple(x.double() for x in first[0])) < iteration.TOLERANCE


def test_a_wrong_step_is_out_of_tolerance(monkeypatch):
    right = nir.sampled_similarity
    monkeypatch.setattr(nir, "sampled_similarity", lambda *pair, **words: 1.2 * right(*pair, **words))
    work = Work("nir", "fast")
    wrong = iteration._seeded(work.make(SHAPE, CPU).loss_and_gradients)()
    monkeypatch.undo()
    assert relative_error(wrong, iteration._truth(work, SHAPE, CPU)) > iteration.TOLERANCE


def test_parts_sum_up_to_the_step(monkeypatch):
    now = iter(range(10_000))
    monkeypatch.setattr("neuralreg.bench.parts.time.perf_counter", lambda: float(next(now)))
    step = Work("nir", "fast").make(SHAPE, CPU)
    before = next(now)
    found = parts_of(step, CPU)
    # every look at the clock is a second; all of them but those before and behind the step are in a part
    assert sum(wall for wall, _ in found.values()) == next(now) - before - 3


def test_the_floor_counts_products_and_what_parts_hand_on(monkeypatch):
    layer = torch.nn.Linear(4, 8, bias=False)
    x = torch.ones(16, 4)
    optimiser = torch.optim.Adam(layer.parameters())
    owner = SimpleNamespace(field=layer.forward, loss=torch.sum)
    monkeypatch.setattr(parts, "ENTRIES", {"field": [(owner, "field")], "loss": [(owner, "loss")]})
    step = Step(lambda: owner.loss(owner.field(x)), optimiser, layer)
    # 16 x 8 numbers and their sum, both ways, written and read; 32 parameters, two moments each and a count of steps
    handed, learned = 4 * 4 * (16 * 8 + 1), 4 * 32 * 5 + 2 * (4 * 2 * 32 + 4)
    assert floors.moved_bytes(step, CPU) == handed + learned
    _, flops = floors.counted(step)
    assert flops == 2 * 2 * 16 * 4 * 8, "forward, and backward to the weights alone"


def test_the_floor_of_a_guidance_grows_with_its_steps():
    def moved(steps: int) -> float:
        ledger = floors.Ledger(CPU)
        guidance = SimpleNamespace(steps=steps)
        ledger.done("guidance", (guidance, torch.ones(10), torch.ones(10), "u"), torch.ones(30))
        return ledger.bytes

    assert moved(5) == 5 * moved(1) == 5 * 4 * (8 * 30 + 20)


def test_points_are_as_many_as_asked(monkeypatch):
    asked, right = [], nir.Downsize

    def spying(grid, stride, *rest, **more):
        asked.append(stride)
        return right(grid, stride, *rest, **more)

    monkeypatch.setattr(nir, "Downsize", spying)
    for points in (600, 5000):
        Work("nir", "fast").make(SHAPE, CPU, points=points)
    assert asked[2::3] == [2, 1], "the smallest strides that leave so many of 4096 voxels"
    with pytest.raises(InputError, match="whole images"):
        Work("ofg", "fast", "train").make(SHAPE, CPU, points=100)


def test_what_does_not_fit_is_a_row_and_the_plan_says_what_is_left_out():
    settings = Settings(quick=True, size="20", filter="nir paper-displacement")
    plan = plan_of("iteration", settings)
    assert [item.name for item in plan.items] == ["nir paper-displacement, 20x20x20"]
    with pytest.raises(InputError, match="lncc_window"):
        list(plan.items[0].run())
    left = [name for name, _ in plan_of("iteration", Settings(quick=True)).left_out]
    assert "nir paper-hybrid" in left
    assert "plain torch, compiled" in left
