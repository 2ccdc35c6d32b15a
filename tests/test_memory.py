"""A limit on memory: what it leaves room for, what it says where it cannot be met, and that a run keeps it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from neuralreg.errors import InputError
from neuralreg.memory import FEWEST_POINTS, MB, held_bytes, most_points, peak_bytes
from neuralreg.methods.nir import PRESETS, with_at_most
from neuralreg.pair import Pair
from tests.processes import python

GRID = (160, 192, 224)


def test_the_system_tells_what_is_held():
    before = held_bytes()
    block = torch.ones(50 * MB, dtype=torch.uint8)
    assert held_bytes() - before > 40 * MB
    assert peak_bytes() >= before
    assert block.numel() == 50 * MB


def test_room_grows_with_the_limit_and_too_little_is_told():
    image = torch.rand(1, 1, 60, 60, 60)
    pair = Pair(image, image, torch.eye(3, 4))
    held = held_bytes() / MB
    less, more = (most_points(held + extra, pair) for extra in (60, 300))
    assert FEWEST_POINTS < less < more
    with pytest.raises(
        InputError, match=r"max_memory 100 MB cannot be met: .* give at least \d+ MB"
    ) as caught:
        most_points(100, pair)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "most", "expected"),
    [
        ({}, 400_000, {}),
        ({}, 100_000, {"max_points": 100_000}),
        ({"stride": 3}, 260_000, {"max_points": 260_000, "stride": 3}),
        ({"stride": 3}, 200_000, {"max_points": 200_000, "stride": 0}),
        ({"sampler": "patches"}, 100_000, {"max_points": 100_000, "patches": 3}),
        ({"sampler": "patches+downsize"}, 100_000, {"max_points": 50_000, "patches": 1}),
        ({"sampler": "random", "similarity": "ncc"}, 5000, {"max_points": 5000, "patches": 1}),
    ],
)
def test_fewer_points(changes, most, expected):
    options = replace(PRESETS["fast"], **changes)
    found = with_at_most(options, GRID, most)
    wanted = {"patches": min(8, max(1, most // 32**3))} | expected
    assert found == replace(options, **wanted)


@pytest.mark.parametrize("sampler", ["whole", "patches"])
def test_what_cannot_be_made_smaller_is_told(sampler):
    with pytest.raises(InputError, match=f"sampler {sampler} takes"):
        with_at_most(replace(PRESETS["fast"], sampler=sampler), GRID, 20_000)


def test_a_run_stays_below_its_limit():
    """In a process of its own: a million voxels, a limit that forces fewer points than the preset asks for."""
    code = """
import json, sys, torch
from neuralreg import register
from neuralreg.images import Image
from neuralreg.memory import MB, held_bytes
import numpy as np
torch.manual_seed(0)
torch.set_num_threads(1)
data = torch.nn.functional.interpolate(torch.rand(2, 1, 9, 9, 9), size=(100, 100, 100), mode="trilinear")
images = [Image(d[0].clone(), np.eye(4)) for d in data]
register(images[0], images[1], iterations=1, scales=(4,))  # libraries and thread pools
limit = held_bytes() / MB + 70
found = register(images[0], images[1], iterations=4, max_memory=limit)
print(json.dumps([limit, found.summary["peak_memory_mb"], found.summary["options"]["max_points"]]))
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    limit, peak, points = json.loads(done.stdout.splitlines()[-1])
    assert points < 300_000
    assert peak < 1.02 * limit
