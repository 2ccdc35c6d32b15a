"""One pair over 2 and 4 processes gives what one process gives: losses, weights, displacement, files."""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import neuralreg
from neuralreg.registration import Registration
from tests.geometry import CENTRE, GRIDS, image_on, world_of
from tests.small import blobs, save

ROOT = Path(__file__).resolve().parents[1]
FIELD: dict[str, Any] = {"levels": 3, "base": 3, "finest": 8, "hidden": (16, 16), "log2_table_size": 10}
SMALL = {**FIELD, "iterations": 5}

# Name of a case: the pair, and what is asked for. Rows of 20 and 24 voxels leave 2 and 4 ranks unequal shares.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "fast": ("oblique", {}),
    "jitter": ("anisotropic", {"stride": 3, "scales": (1,), "lncc_window": 3}),
    "masks": ("left-handed", {"masks": True, "similarity": "ssim", "lncc_window": 4}),
    "masked windows": ("oblique", {"masks": True}),
    "zero rule": (
        "blobs",
        {
            "padding": "valid",
            "zero_rule": True,
            "dropout": 0.2,
            "lncc_window": 3,
            "scales": (1,),
            "stride": 2,
        },
    ),
    "valid masked": ("oblique", {"padding": "valid", "masks": True, "lncc_window": 2, "scales": (1,)}),
    "ncc": ("anisotropic", {"similarity": "ncc", "sampler": "whole", "scales": (3, 1)}),
    "mse": ("anisotropic", {"similarity": "mse", "dropout": 0.3, "sampler": "center", "window": (-1.0, 2.0)}),
    "l1": ("left-handed", {"similarity": "l1", "nir_compat": True, "quantiles": (0.01, 0.9)}),
    "far": (
        "shifted",
        {"margin": 0.0, "similarity": "mse", "scales": (1,), "iterations": 12, "lr": 0.05, "table_lr": 0.05},
    ),
    "planar": ("planar", {"lncc_window": 3}),
}

FOUR = ["fast", "zero rule", "far"]  # with 4 ranks, too

# Ranks are forked after the imports, which take longer than their work. Each runs all cases and leaves what it found.
LAUNCHER = """
import json, os, sys, traceback
from pathlib import Path
import torch, torch._dynamo  # what the first step of an optimiser imports
from neuralreg.sharded.ranks import joined
from neuralreg.sharded.registration import register
from tests.test_sharded import arguments
folder, groups = Path(sys.argv[1]), json.loads(sys.argv[2])
children = []
for world, port, names in groups:
    for rank in range(world):
        child = os.fork()
        if child:
            children.append(child)
            continue
        code = 1
        try:
            os.environ.update(WORLD_SIZE=str(world), RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            with joined(torch.device("cpu")) as ranks:
                for name in names:
                    part = register(ranks, **arguments(folder, name))
                    out = folder / f"{name}-{world}"
                    part.save_transform(out.with_suffix(".nii.gz") if rank == 0 else None)
                    part.save_warped(folder / f"{name}-{world}-warped.nii" if rank == 0 else None)
                    found = {"box": part.box, "displacement": part.transform.displacement.clone(),
                             "history": part.history, "weights": part.field.state_dict(), "summary": part.summary}
                    torch.save(found, f"{out}-{rank}.pt")
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
sys.exit(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
"""


def make_pairs(folder: Path) -> None:
    """The images and masks of the cases."""
    shapes = {name: (24, 18, 16) for name in ("blobs", "shifted")}
    pairs = {name: [image_on(geometry) for geometry in both] for name, both in GRIDS.items()}
    for name, (fixed, moving) in pairs.items():
        for role, image in (("fixed", fixed), ("moving", moving)):
            save(folder / f"{name}-{role}.nii.gz", image.data.numpy(), image.affine)
            near = np.linalg.norm(world_of(image.geometry) - np.array(CENTRE), axis=-1) < 17
            save(folder / f"{name}-{role}-mask.nii.gz", near.astype(np.uint8), image.affine)
    for name, shape in shapes.items():
        for role, shift in (("fixed", 0.0), ("moving", 1.0 if name == "blobs" else 5.0)):
            values = blobs(shape, shift, seed=3)
            save(folder / f"{name}-{role}.nii.gz", np.where(values < 5, 0, values).astype(np.float32))
    for role, shift in (("fixed", 0.0), ("moving", 1.0)):
        save(folder / f"planar-{role}.nii.gz", blobs((18, 30), shift, seed=1), np.diag([2.0, 1.5, 1.0, 1.0]))


def arguments(folder: Path, name: str) -> dict[str, Any]:
    """What a case asks of register."""
    pair, options = CASES[name]
    options = {**SMALL, **options}
    if options.pop("masks", False):
        options |= {f"{role}_mask": folder / f"{pair}-{role}-mask.nii.gz" for role in ("fixed", "moving")}
    return {role: folder / f"{pair}-{role}.nii.gz" for role in ("fixed", "moving")} | options


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Found:
    """What the ranks have left."""

    folder: Path

    def ranks(self, name: str, world: int) -> list[dict[str, Any]]:
        paths = [self.folder / f"{name}-{world}-{rank}.pt" for rank in range(world)]
        return [torch.load(path, weights_only=False) for path in paths]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    if sys.platform != "linux":
        pytest.skip("processes are forked")
    folder = tmp_path_factory.mktemp("sharded")
    make_pairs(folder)
    groups = [(2, free_port(), list(CASES)), (4, free_port(), FOUR)]
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, str(folder), json.dumps(groups)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
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
