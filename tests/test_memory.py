"""A limit on memory: what it leaves room for, what it says where it cannot be met, and that a run keeps it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from neuralreg.errors import InputError
from neuralreg.kernels import use_backend
from neuralreg.memory import FEWEST_POINTS, MB, Holding, held_bytes, most_points
from neuralreg.methods import ncf, nir
from neuralreg.methods.nir import PRESETS, make_field, with_at_most
from neuralreg.pair import Pair
from tests.processes import python

GRID = (160, 192, 224)


def test_the_system_tells_what_is_held():
    # in a process of its own: a long one may have as much free memory, and then holds no more
    code = """
import torch
from neuralreg.memory import held_bytes, peak_bytes
before = held_bytes()
block = torch.ones(50_000_000, dtype=torch.uint8)
print(held_bytes() - before, peak_bytes() >= before, block.numel())
"""
    done = python("-c", code)
    grown, peaked, size = done.stdout.split()
    assert int(grown) > 40_000_000, done.stderr
    assert (peaked, size) == ("True", "50000000")


def test_room_grows_with_the_limit_and_too_little_is_told():
    image = torch.rand(1, 1, 60, 60, 60)
    pair = Pair(image, image, torch.eye(3, 4))
    held = held_bytes() / MB
    less, more = (most_points(held + extra, pair, Holding()) for extra in (60, 300))
    assert FEWEST_POINTS < less < more
    with pytest.raises(
        InputError, match=r"max_memory 100 MB cannot be met: .* give at least \d+ MB"
    ) as caught:
        most_points(100, pair, Holding())
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
    wanted = {"patches": min(8, max(1, most // 32**3)), "recompute": True} | expected
    assert found == replace(options, **wanted)


@pytest.mark.parametrize("sampler", ["whole", "patches"])
def test_what_cannot_be_made_smaller_is_told(sampler):
    with pytest.raises(InputError, match=f"sampler {sampler} takes"):
        with_at_most(replace(PRESETS["fast"], sampler=sampler), GRID, 20_000)


def test_under_a_limit_large_tables_are_read_again():
    """What the field keeps for its backward pass: the points' 12 features each, with what fills them up, or none."""
    options = replace(
        PRESETS["fast"], levels=3, base=60, finest=64, log2_table_size=18, hidden=(16,), min_cell=0.0
    )
    x = torch.rand(1000, 3)
    kept = [
        make_field(chosen, 3)(x).grad_fn.saved_tensors[1].numel()
        for chosen in (options, with_at_most(options, GRID, 50_000))
    ]
    assert kept[0] >= 12 * len(x)
    assert kept[1] == 0


def test_what_is_not_counted_is_refused():
    image = torch.rand(1, 1, 20, 20, 20)
    pair = Pair(image, image, torch.eye(3, 4))
    with use_backend("reference"), pytest.raises(InputError, match="with the backend reference on cpu"):
        most_points(10_000, pair, Holding())


@pytest.mark.parametrize("method", [nir, ncf])
def test_presets_say_what_they_hold(method):
    for options in method.PRESETS.values():
        assert 100 < method.holding(options).point < 500


# Small fields: layers are not what memory goes to. Points enough that they outweigh the rest.
SMALL = "levels=3,hidden=(16,)"
RUNS = {
    "fast": SMALL,
    "fast-diffeomorphic": SMALL + ",preset='fast-diffeomorphic'",
    "fast-lung": SMALL + ",preset='fast-lung'",
    "paper-displacement": "preset='paper-displacement',hidden=(16,),stride=0",
    "paper-diffeomorphic": "preset='paper-diffeomorphic',hidden=(16,),stride=0",
    "paper-hybrid": "preset='paper-hybrid',hidden=(16,),stride=0",
    "analytic": SMALL + ",jacobian='analytic'",
    "random": SMALL + ",sampler='random',similarity='mse'",
    "mind": SMALL + ",similarity='mind'",
    "ncf fast": "method='ncf',hidden=(16,16)",
    "ncf paper": "method='ncf',preset='paper',hidden=(16,16)",
    "ncf paper-encoded": "method='ncf',preset='paper-encoded',hidden=(16,16)",
}
QUICK = ("fast", "analytic", "ncf fast")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.thorough) for name in RUNS]
)
def test_a_run_stays_below_its_limit(name):
    """In a process of its own: a limit that leaves room for just the points of the grid."""
    code = f"""
import json, torch
from neuralreg import register
from neuralreg.images import Image
from neuralreg.memory import MB, held_bytes
from neuralreg.options import resolve
from neuralreg.registration import method_module
import numpy as np
torch.manual_seed(0)
torch.set_num_threads(1)
data = torch.nn.functional.interpolate(torch.rand(2, 1, 9, 9, 9), size=(60, 60, 60), mode="trilinear")
images = [Image(d[0].clone(), np.eye(4)) for d in data]
options = dict({RUNS[name]})
register(*images, **options, **dict(iterations=1, scales=(3,), max_points=3000))  # libraries and thread pools
options |= dict(iterations=2, scales=(1,), max_points=300_000)
method, preset = options.pop("method", "nir"), options.pop("preset", "fast")
module = method_module(method)
holding = module.holding(resolve(module.PRESETS, preset, options, method))
room = holding.scratch + 60**3 * (holding.image + holding.point)
limit = (held_bytes() + 1.02 * room) / MB + 3
found = register(*images, method, preset, **options, max_memory=limit)
print(json.dumps([limit, found.summary["peak_memory_mb"], found.summary["options"]["max_points"]]))
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    limit, peak, points = json.loads(done.stdout.splitlines()[-1])
    assert 60**3 <= points < 300_000, "an iteration sees every voxel, and the limit counts"
    assert peak < 1.02 * limit
