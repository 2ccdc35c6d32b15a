"""One pair over 2 and 4 processes gives what one process gives: losses, weights, displacement, files."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import neuralreg
from neuralreg.registration import Registration
from tests.processes import Job, ranks, side_by_side, told
from tests.sharded_cases import CASES, arguments, make_pairs

FOUR = ["fast", "zero rule", "far"]  # with 4 ranks, too


def register_cases(folder: Path, names: list[str]) -> None:
    """What one rank does: all cases, and it leaves what it has found."""
    from neuralreg.sharded.ranks import joined
    from neuralreg.sharded.registration import register

    with joined(torch.device("cpu")) as together:
        for name in names:
            part = register(together, **arguments(folder, name))
            out = f"{name}-{together.world}"
            part.save_transform(folder / f"{out}.nii.gz" if together.first else None)
            part.save_warped(folder / f"{out}-warped.nii" if together.first else None)
            found = {
                "box": part.box,
                "displacement": part.transform.displacement.clone(),
                "history": part.history,
                "weights": part.field.state_dict(),
                "summary": part.summary,
            }
            torch.save(found, folder / f"{out}-{together.rank}.pt")


@dataclass
class Found:
    """What the ranks have left."""

    folder: Path

    def ranks(self, name: str, world: int) -> list[dict[str, Any]]:
        paths = [self.folder / f"{name}-{world}-{rank}.pt" for rank in range(world)]
        return [torch.load(path, weights_only=False) for path in paths]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("sharded")
    make_pairs(folder)
    jobs = [
        Job(register_cases, (folder, names), folder / f"{world}-{rank}-", environment)
        for world, names in ((2, list(CASES)), (4, FOUR))
        for rank, environment in enumerate(ranks(world))
    ]
    assert side_by_side(jobs) == [0] * len(jobs), told(jobs)
    return Found(folder)


@functools.cache
def alone(folder: Path, name: str) -> Registration:
    """What one process finds in a case."""
    asked = arguments(folder, name)
    asked.pop("margin", None)
    return neuralreg.register(**asked)


@pytest.mark.parametrize(("name", "world"), [(n, 2) for n in CASES] + [(n, 4) for n in FOUR])
def test_ranks_give_what_one_process_gives(found: Found, name: str, world: int) -> None:
    one, far = alone(found.folder, name), name == "far"
    ranks = found.ranks(name, world)
    boxes = [rank["box"] for rank in ranks]
    axis = ranks[0]["summary"]["axis"]
    assert [box[axis][0] for box in boxes[1:]] == [box[axis][1] for box in boxes[:-1]]
    for record in ("loss", "similarity", "regulariser"):
        for rank in ranks:
            several = [entry[record] for entry in rank["history"]]
            assert several == pytest.approx([entry[record] for entry in one.history], rel=1e-4, abs=2e-6)
    for key, weight in one.field.state_dict().items():
        for rank in ranks:
            assert torch.equal(rank["weights"][key], ranks[0]["weights"][key])
        # Adam's step is as long for a gradient of rounding alone as for any: large rates show it.
        torch.testing.assert_close(ranks[0]["weights"][key], weight, rtol=1e-3, atol=0.01 if far else 1e-4)
    displacement = torch.cat([rank["displacement"] for rank in ranks], 1 + axis)
    assert one.transform.displacement.abs().max() > 0.05
    near = 0.02 if far else 1e-3
    torch.testing.assert_close(displacement, one.transform.displacement, rtol=1e-4, atol=near)
    if far:  # beyond what a rank reads at first, which another rank's voxels lie in
        assert displacement[axis].abs().max() > 4
        assert max(rank["readings_of_moving"] for rank in ranks[0]["summary"]["ranks"]) > 1
    for key in ("intensity", "options", "initial_matrix_ras", "inputs"):
        assert ranks[0]["summary"][key] == one.summary[key]
    assert ranks[0]["summary"]["sdlogj"] == pytest.approx(one.summary["sdlogj"], rel=1e-3)
